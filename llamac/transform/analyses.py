"""Results of analyses, kept for one version of a module: a pass that changes the module makes them all stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llamac.ir.graph import Module

Result = TypeVar("Result")


class AnalysisManager:
    """Runs each analysis once between two changes of the module that it is asked about.

    An analysis is a function of the module. `run_pass` calls `invalidate` whenever a pass reports a change, and
    validation refuses a pass that changes the module without saying so; a pass that asks again after its own rewrites
    calls it itself.
    """

    def __init__(self) -> None:
        self._module: Module | None = None
        self._kept: dict[Callable[[Module], Any], Any] = {}

    def get(self, analysis: Callable[[Module], Result], module: Module) -> Result:
        """`analysis(module)`, from before if nothing has changed since."""
        if module is not self._module:
            self._module, self._kept = module, {}
        if analysis not in self._kept:
            self._kept[analysis] = analysis(module)
        return cast(Result, self._kept[analysis])

    def invalidate(self) -> None:
        """Forget everything: the module has changed."""
        self._kept = {}

"""Passes from outside llamac, and where they go in a pipeline: what `--passes-from pkg.module` loads.

The module defines `insert(steps) -> steps`, which may put passes anywhere and take others out; or, simpler, `Pass`
classes with `after = "fuse-swiglu"`: each runs behind the last step of that name. `pkg.module:name` picks one function
or class. A pass that its package also lists in the entry point group `llamac.passes` is known by name everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from llamac.errors import LlamacError, did_you_mean

from .base import Pass
from .pipeline import Step
from .registry import BUILT_IN, contract_fault

Edit = Callable[[list[Step]], list[Step]]
"""A pipeline -> the pipeline with outside passes in it."""


def load_edits(specs: Sequence[str]) -> Edit:
    """The edits that `specs` name, one after the other (LLC0509 when one cannot be loaded or does not fit)."""
    edits = [_load(spec) for spec in specs]

    def edit(steps: list[Step]) -> list[Step]:
        for one in edits:
            steps = one(steps)
        return steps

    return edit


def load_classes(specs: Sequence[str]) -> dict[str, type[Pass]]:
    """Every pass that the modules of `specs` define, by name, for pipelines given as text."""
    found: dict[str, type[Pass]] = {}
    for spec in specs:
        module = _module(spec, spec.partition(":")[0])
        values = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Pass) and v is not Pass]
        imported = [v for v in values if v.__module__.startswith("llamac.") and v.__module__ != module.__name__]
        for value in values:
            if value not in imported and getattr(value, "name", None) is not None:
                _check_class(spec, value)
                found[value.name] = value
    return found


def _check_class(spec: str, found: type[Pass], made: bool = False) -> None:
    if reason := contract_fault(found, made):
        raise LlamacError("LLC0509", spec, reason, "docs/write-a-pass.md shows a whole pass")


def _load(spec: str) -> Edit:
    name, _, attribute = spec.partition(":")
    module = _module(spec, name)
    found = getattr(module, attribute or "insert", None)
    if isinstance(found, type) and issubclass(found, Pass):
        return lambda steps: _place(spec, steps, [found])
    classes = [] if attribute else _placed_classes(module)
    if callable(found) and classes:
        reason = f"{name} defines insert(steps) and {classes[0].__name__} with `after`, which insert leaves to itself"
        raise LlamacError("LLC0509", spec, reason, "name one of them, as in pkg.module:insert, or leave `after` out")
    if callable(found):
        return lambda steps: _inserted(spec, found, steps)
    if not classes:
        what = f"'{attribute}'" if attribute else "insert(steps) or a pass with `after`"
        raise LlamacError("LLC0509", spec, f"the module {name} defines no {what}", "docs/write-a-pass.md shows both")
    return lambda steps: _place(spec, steps, classes)


def _module(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the module's own code raises is a failure to load it
        reason = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise LlamacError("LLC0509", spec, reason, "install its package, or put its folder on PYTHONPATH") from error


def _placed_classes(module: ModuleType) -> list[type[Pass]]:
    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return [v for v in own if issubclass(v, Pass) and v.after]


def _place(spec: str, steps: list[Step], classes: Sequence[type[Pass]]) -> list[Step]:
    for found in classes:
        _check_class(spec, found)
        names = [step.run.name for step in steps]
        if found.after not in names:
            reason = f"{found.name} goes after '{found.after}', which is not in the pipeline"
            hint = f"it runs {', '.join(dict.fromkeys(names))}"
            raise LlamacError("LLC0509", spec, f"{reason}{did_you_mean(found.after, names)}", hint)
        place = len(names) - names[::-1].index(found.after)
        steps = [*steps[:place], Step(found()), *steps[place:]]
    return _checked(spec, steps)


def _inserted(spec: str, insert: Callable[[list[Step]], Any], steps: list[Step]) -> list[Step]:
    found = insert(list(steps))
    if not isinstance(found, list) or not all(isinstance(step, Step) for step in found):
        raise LlamacError("LLC0509", spec, "insert(steps) must return a list of Step", "docs/write-a-pass.md shows one")
    return _checked(spec, found)


def _checked(spec: str, steps: list[Step]) -> list[Step]:
    for step in steps:
        if step.run.name in BUILT_IN and not type(step.run).__module__.startswith("llamac."):
            reason = f"'{step.run.name}' is the name of a built-in pass"
            raise LlamacError("LLC0509", spec, reason, "give the pass a name of its own")
        if not type(step.run).__module__.startswith("llamac."):
            _check_class(spec, type(step.run), made=True)
    return steps

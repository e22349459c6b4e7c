"""A deliberate bug: what is wrong, on which model, which check must find it; and the ways to put one into a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from mutations import caught_by
from small_models import SmallModel

from llamac.errors import LlamacError
from llamac.ir import registry
from llamac.ir.graph import Module, Value, Weight
from llamac.transform import weight_rows
from llamac.transform.outside import Edit

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """One bug: code replaced by `patch`, or a pipeline changed by `edit`; on `model` the check `caught` finds it."""

    name: str
    caught: str
    patch: Patch = lambda patch: None
    edit: Edit = list
    model: SmallModel = field(default_factory=SmallModel)


# Replacing the code of a pass.


def put(module: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(module, name, value)


def rewrite(module: Any, made: Callable[..., Value]) -> Patch:
    """The rules of a pass rewrite differently."""
    return put(module, "RULES", tuple(replace(rule, rewrite=made) for rule in module.RULES))


def both(*patches: Patch) -> Patch:
    def apply(patch: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(patch)

    return apply


def rows_by(module: Any, change: Callable[..., Any]) -> Patch:
    """`over_rows`, as this pass calls it, is given other arguments; `change` returns a weight or new arguments."""

    def over_rows(module: Module, name: str, opcode: str, weights: Any, **attributes: Any) -> Weight:
        found = change(name, list(weights), attributes)
        if isinstance(found, Weight):
            return found
        weights, attributes = found
        return weight_rows.over_rows(module, name, opcode, weights, **attributes)

    return put(module, "over_rows", over_rows)


def meaning(name: str, evaluate: Callable[..., Any]) -> Patch:
    """An op of the IR computes something else."""
    return lambda patch: patch.setitem(registry.all_ops(), name, replace(registry.find_op(name), evaluate=evaluate))


def check_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is found before code is generated, by the check that it names."""
    bug.patch(monkeypatch)
    with pytest.raises(LlamacError) as raised:
        bug.model.run(bug.edit)
    assert caught_by(raised.value) == bug.caught, raised.value.message()

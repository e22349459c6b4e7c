"""Runs the ragged step of a module in turn by each of its entries, and checks what the ranking one adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.definition import Array
from llamac.ir.graph import STEP_TOP
from llamac.ir.interpreter import Interpreter


def run_step(interpreter: Interpreter, inputs: Mapping[str, Any], number: int) -> tuple[Array, list[Any]]:
    """Logits and next state of step `number` of a run: every other one goes through `@step_top` where there is one.

    LLC0507 when its ranks and sums are not those of its own logits.
    """
    if number % 2 == 0 or STEP_TOP not in interpreter.module.graphs:
        logits, *states = interpreter.run(inputs)
        return logits, states
    inverse = np.linspace(0.5, 2.0, len(inputs["logit_rows"]))
    logits, ids, values, sums, *states = interpreter.run({**inputs, "inverse_temperature": inverse}, STEP_TOP)
    if np.isfinite(logits).all():  # otherwise whoever compares the logits says what is wrong
        _check(logits, ids, values, sums, inverse)
    return logits, states


def _check(logits: Array, ids: Array, values: Array, sums: Array, inverse: Array) -> None:
    order = np.argsort(-logits, axis=1, kind="stable")[:, : ids.shape[1]]
    peak = logits.max(axis=1, keepdims=True)
    expected = np.exp((logits - peak) * inverse.astype(np.float32)[:, None]).sum(axis=1)
    is_ranked = np.array_equal(ids, order) and np.array_equal(values, np.take_along_axis(logits, order, axis=1))
    if not is_ranked or not np.allclose(sums, expected, rtol=1e-6):
        raise LlamacError("LLC0507", f"@{STEP_TOP}", "does not rank its own logits", "look at its head")

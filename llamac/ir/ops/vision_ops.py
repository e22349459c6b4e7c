"""Elementwise functions that the image encoders add: the error function of GELU, and the tanh of their gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..levels import CAPTURED, MODEL
from ..types import Type

_error_function = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """The error function, computed in f64."""
    return np.asarray(_error_function(x)) if x.size else np.asarray(x)


def _infer(s: Signature) -> Sequence[Type]:
    x = s.tensor(0)
    if not x.dtype.is_float:
        raise OpError(f"needs a float operand, got {x}")
    return [x]


def _elementwise(name: str, function: Callable[[Array], Array], summary: str) -> OpDefinition:
    def evaluate(e: Evaluation) -> Sequence[Any]:
        return [e.rounded(function(e.inputs[0]))]

    return OpDefinition(name, frozenset({CAPTURED, MODEL}), ("x",), {}, _infer, evaluate, summary)


OPS: tuple[OpDefinition, ...] = (
    _elementwise("erf", erf, "Elementwise error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."),
    _elementwise("tanh", np.tanh, "Elementwise hyperbolic tangent."),
)

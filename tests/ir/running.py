"""One op on concrete values: what the tests of meanings call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llamac.ir.definition import Evaluation
from llamac.ir.dtypes import F32, I1, I32
from llamac.ir.graph import Attribute
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.registry import find_op, infer_types
from llamac.ir.types import TensorType, Type, tensor


def run(
    opcode: str, inputs: Sequence[Any], exact: bool = True, types: Sequence[Type] = (), **attributes: Attribute
) -> list[Any]:
    """The op on concrete inputs, its types inferred from the arrays unless given."""
    kinds = {"f": F32, "i": I32, "b": I1}
    given = list(types) or [tensor(*np.shape(x), kinds[np.asarray(x).dtype.kind]) for x in inputs]
    results = infer_types(opcode, given, attributes)
    float_type = np.float64 if exact else np.float32
    values = [x if isinstance(x, CacheState) else np.asarray(x) for x in inputs]
    values = [
        x.astype(float_type) if getattr(x, "dtype", None) is not None and x.dtype.kind == "f" else x for x in values
    ]
    found = list(find_op(opcode).evaluate(Evaluation(values, attributes, results, {}, exact)))
    for value, type in zip(found, results, strict=True):
        if isinstance(type, TensorType):
            assert np.shape(value) == type.concrete_shape({}), opcode
    return found

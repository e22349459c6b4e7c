"""What a profile says of every op: its name, shape and format, and the work that a call of it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from llamac.analysis.cost import StepShape, op_cost
from llamac.ir.dims import Dim, evaluate
from llamac.ir.graph import Graph, Op, Value, Weight
from llamac.ir.layouts import format_of
from llamac.ir.types import CacheType, TensorType

from .literals import c_text


class Per(IntEnum):
    """What the operations of an op count for; the numbers are those of `llamac_op.per`."""

    CALL = 0
    TOKEN = 1
    LOGIT_ROW = 2
    TOKEN_AND_KEY = 3


UNITS = {"": 0, "int8": 1, "bf16": 2, "f32": 3}
"""Arithmetic unit -> its number in C (peaks.h)."""

_STORED = re.compile(r"(\.(i4|u4|i8|u8|e4m3fn|f32|f16|bf16))?(\.packed)?$")
"""What passes add to the name of a weight."""


@dataclass(frozen=True)
class ProfiledOp:
    """One row of the table: fields as in `llamac_op` (profile_abi.py)."""

    function: str
    kind: str
    name: str
    detail: str
    unit: str
    weight_bytes: int
    token_bytes: int
    key_bytes: int
    operations: int
    per: Per
    cache: int
    experts: int
    chosen: int

    def c_row(self) -> str:
        """The row as a C initializer."""
        texts = ", ".join(c_text(text) for text in (self.function, self.kind, self.name, self.detail))
        numbers = (self.weight_bytes, self.token_bytes, self.key_bytes, self.operations)
        rest = (int(self.per), UNITS[self.unit], self.cache, self.experts, self.chosen)
        sizes = ", ".join(f"UINT64_C({number})" for number in numbers)
        return f"    {{{texts}, {sizes}, {', '.join(map(str, rest))}}},"


def describe(graph: Graph, op: Op, weights: Sequence[Value], cache: int) -> ProfiledOp:
    """The row of `op`, an op of a kernel-level `graph`.

    `weights` are the arguments of the graph that are weights, `cache` is the number of the cache that it attends to.
    """
    once = op_cost(op, StepShape(1, 1, 1, 1))
    more_tokens = op_cost(op, StepShape(2, 1, 1, 1))
    more_rows = op_cost(op, StepShape(1, 1, 2, 1))
    more_keys = op_cost(op, StepShape(1, 2, 1, 2))
    per = Per.CALL
    if more_keys.flops != once.flops:
        per = Per.TOKEN_AND_KEY
    elif more_rows.flops != once.flops:
        per = Per.LOGIT_ROW
    elif more_tokens.flops != once.flops:
        per = Per.TOKEN
    experts = op.attributes.get("experts", 0)
    assert isinstance(experts, int)
    rows = op.operands[0].tensor.shape[0] if experts else 0
    # Of experts, the expected share of a step is read; of a table that is looked up, a row a token.
    token_bytes = 0 if experts else more_tokens.weight_bytes - once.weight_bytes
    token_bytes += more_tokens.cache_bytes - once.cache_bytes
    return ProfiledOp(
        function=graph.name,
        kind=op.opcode,
        name=_name(op, weights),
        detail=_detail(op),
        unit=_unit(op, once.flops),
        weight_bytes=_weight_bytes(op) if experts else 2 * once.weight_bytes - more_tokens.weight_bytes,
        token_bytes=token_bytes,
        key_bytes=more_keys.cache_bytes - once.cache_bytes,
        operations=once.flops,
        per=per,
        cache=cache,
        experts=experts,
        chosen=_slots(rows),
    )


def _slots(rows: object) -> int:
    """Routed rows of one token."""
    return evaluate(rows, {"T": 1}) if isinstance(rows, int | Dim) else 0


def _packed(op: Op) -> Value | None:
    """The matrix that an op multiplies with or looks rows up in."""
    if "format" not in op.attributes:
        return None
    widest = [v for v in op.operands if isinstance(v.type, TensorType) and v.name.endswith(".packed")]
    return widest[0] if widest else None


def _weight_bytes(op: Op) -> int:
    packed = _packed(op)
    if packed is None:
        return 0
    size = packed.tensor.dtype.bits // 8
    for dim in packed.tensor.shape:
        assert isinstance(dim, int)
        size *= dim
    return size


def _name(op: Op, weights: Sequence[Value]) -> str:
    """The model's name of the weight an op works with; of the first one where it has several."""
    packed = _packed(op)
    named = [packed] if packed is not None else [v for v in op.operands if isinstance(v, Weight) or v in weights]
    return _STORED.sub("", named[0].name) if named else ""


def _detail(op: Op) -> str:
    """Format and shape, or heads, or the width of the rows."""
    given = op.attributes
    if "format" in given and "rows" in given:
        count = f"{given['experts']}x" if "experts" in given else ""
        return f"{given['format']} {count}{given['rows']}x{given['columns']}"
    if "heads" in given:
        caches = [v.type for v in op.operands if isinstance(v.type, CacheType)]
        width = caches[0].head_dim if caches else given.get("head_dim", "?")
        shared = f", {caches[0].kv_heads} of {caches[0].dtype.name} keys" if caches else ""
        return f"{given['heads']} heads of {width}{shared}"
    results = [v.tensor.shape[-1] for v in op.results if isinstance(v.type, TensorType) and v.tensor.rank > 1]
    return str(results[0]) if results else ""


def _unit(op: Op, flops: int) -> str:
    """The arithmetic unit whose peak bounds an op; none for those that only move memory."""
    if "format" not in op.attributes or flops == 0:
        return "f32" if flops and any(isinstance(v.type, CacheType) for v in op.operands) else ""
    fmt = format_of(str(op.attributes["format"]))
    if not fmt.is_dense:
        return "int8"
    return "bf16" if fmt.quants.name in ("bf16", "e4m3fn") else "f32"

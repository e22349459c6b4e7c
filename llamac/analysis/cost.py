"""FLOPs and bytes of a kernel-level module for a step of a given shape, op by op, from types alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.ir.dims import evaluate
from llamac.ir.graph import Graph, Module, Op, Value
from llamac.ir.types import CacheType, TensorType


@dataclass(frozen=True)
class StepShape:
    """`tokens` new rows, `logit_rows` of which need logits, attending to `context` cached tokens each.

    vision_tokens: those that each row attends to in layers that see pictures.
    """

    tokens: int
    context: int
    logit_rows: int = 1
    vision_tokens: int = 0

    @property
    def symbols(self) -> Mapping[str, int]:
        return {"T": self.tokens, "R": self.logit_rows, "S": 1, "N": 1, "M": 0}


@dataclass(frozen=True)
class Cost:
    """Floating-point (or integer multiply-add) operations, and bytes read or written, by what they belong to."""

    flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
            self.activation_bytes + other.activation_bytes,
        )

    @property
    def bytes(self) -> int:
        """All memory traffic, were nothing kept in caches between ops."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


_LINEARS = (
    "linear_dense",
    "linear_biased",
    "linear_grouped",
    "gated_linear_dense",
    "gated_linear_grouped",
    "head_dense",
    "head_grouped",
)

_FLOPS_PER_ELEMENT = {
    "rms_norm": 4,
    "swiglu": 5,
    "add": 1,
    "all_reduce": 1,
    "quantize_rows": 3,
    "rope_angles": 20,
    "rms_norm_quantized": 7,
    "swiglu_quantized": 8,
    "gather_routed": 1,
    "scatter_routed": 1,
    "norm_heads": 3,
    "temper_heads": 1,
    "gated_add": 2,
    "layer_norm": 7,
    "gelu": 30,
    "cos_sin": 20,
    "rope_pairs": 4,
    "add_places": 2,
}


def module_cost(module: Module, shape: StepShape) -> dict[str, Cost]:
    """Cost of one step by opcode; ops of an outlined layer count once a call."""
    totals: dict[str, Cost] = {}
    _add_graph(module, module.main, shape, totals)
    return totals


def total(costs: Mapping[str, Cost]) -> Cost:
    """The sum over opcodes."""
    return sum(costs.values(), Cost())


def _add_graph(module: Module, graph: Graph, shape: StepShape, totals: dict[str, Cost]) -> None:
    for op in graph.ops:
        if op.opcode == "call":
            _add_graph(module, module.graphs[str(op.attributes["callee"])], shape, totals)
        else:
            totals[op.opcode] = totals.get(op.opcode, Cost()) + op_cost(op, shape)


def op_cost(op: Op, shape: StepShape) -> Cost:
    """Cost of one op."""
    if op.opcode in _LINEARS:
        return _linear(op, shape)
    if op.opcode in ("expert_linear_dense", "expert_linear_grouped"):
        return _expert_linear(op, shape)
    if op.opcode == "attend_tokens":
        tokens = evaluate(op.result.tensor.shape[0], shape.symbols)
        moved = sum(_bytes(v, shape) for v in (*op.operands, *op.results))
        return Cost(4 * tokens * tokens * _integer(op, "heads") * _integer(op, "head_dim"), 0, 0, moved)
    if op.opcode in ("attend", "attend_range"):
        return _attend(op, shape)
    if op.opcode in ("rope_append", "append", "append_tokens"):
        return _append(op, shape)
    if op.opcode in ("qkv_dense", "qkv_grouped"):
        return _qkv(op, shape)
    if op.opcode == "embed_rows":
        packed = _bytes(op.operands[1], shape) // max(_integer(op, "rows"), 1)
        return Cost(0, packed * shape.tokens, 0, _bytes(op.results[0], shape))
    if op.opcode == "concat":
        return Cost()  # its parts are written in place
    moved = sum(_bytes(v, shape) for v in (*op.operands, *op.results))
    per_element = _FLOPS_PER_ELEMENT.get(op.opcode, 0)
    return Cost(per_element * _elements(op.results[0], shape) if per_element else 0, 0, 0, moved)


def _linear(op: Op, shape: StepShape) -> Cost:
    packed = op.operands[3 if op.opcode.endswith("_grouped") else 1]
    rows = evaluate(op.results[0].tensor.shape[0], shape.symbols)
    moved = sum(_bytes(v, shape) for v in (*op.operands, *op.results) if v is not packed)
    return Cost(2 * rows * _integer(op, "rows") * _integer(op, "columns"), _bytes(packed, shape), 0, moved)


def _expert_linear(op: Op, shape: StepShape) -> Cost:
    """As many experts' weights as are expected to be chosen, were every expert equally likely."""
    packed = op.operands[3 if op.opcode == "expert_linear_grouped" else 1]
    rows, experts = evaluate(op.results[0].tensor.shape[0], shape.symbols), _integer(op, "experts")
    read = round(_bytes(packed, shape) * (1 - (1 - 1 / experts) ** rows))
    moved = sum(_bytes(v, shape) for v in (*op.operands, *op.results) if v is not packed)
    return Cost(2 * rows * _integer(op, "rows") * _integer(op, "columns"), read, 0, moved)


def _attend(op: Op, shape: StepShape) -> Cost:
    cache, heads = op.operands[1].cache, _integer(op, "heads")
    context = min(shape.context, cache.chunk) if cache.chunk else shape.context
    context = shape.vision_tokens if cache.cross else context
    keys = shape.tokens * context
    row_bytes = cache.page_bytes // (cache.layers * cache.page)
    moved = _bytes(op.operands[0], shape) + _bytes(op.results[0], shape)
    return Cost(4 * keys * heads * cache.head_dim, 0, context * row_bytes, moved)


def _append(op: Op, shape: StepShape) -> Cost:
    cache = op.operands[0].cache
    rows = evaluate(op.operands[1].tensor.shape[0], shape.symbols)
    written = rows * cache.page_bytes // (cache.layers * cache.page)
    return Cost(3 * _elements(op.operands[1], shape), 0, written, _bytes(op.operands[1], shape))


def _qkv(op: Op, shape: StepShape) -> Cost:
    """A product, and the rows that are appended; what is done to its heads in between hardly counts."""
    cache, packed = op.operands[0].cache, op.operands[4 if op.opcode == "qkv_grouped" else 2]
    rows, width = evaluate(op.results[1].tensor.shape[0], shape.symbols), _integer(op, "rows")
    written = rows * cache.page_bytes // (cache.layers * cache.page)
    moved = sum(_bytes(v, shape) for v in (*op.operands, *op.results) if v is not packed)
    return Cost(2 * rows * width * _integer(op, "columns"), _bytes(packed, shape), written, moved)


def _integer(op: Op, name: str) -> int:
    value = op.attributes[name]
    assert isinstance(value, int)
    return value


def _elements(value: Value, shape: StepShape) -> int:
    count = 1
    for dim in value.tensor.shape:
        count *= evaluate(dim, shape.symbols)
    return count


def _bytes(value: Value, shape: StepShape) -> int:
    if isinstance(value.type, CacheType):
        return 0
    assert isinstance(value.type, TensorType)
    return _elements(value, shape) * value.type.dtype.bits // 8

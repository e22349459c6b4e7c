"""Runs a pipeline and keeps what the explorer shows of the module after each pass."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llamac.ir.dims import evaluate
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.printer import print_op, print_weight
from llamac.ir.types import TensorType, Type
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pipeline import Step, run_pipeline

from .layer_graph import LayerGraph, layer_graph

CACHED = 255
"""Past tokens of the step whose bytes are counted."""


@dataclass(frozen=True)
class Snapshot:
    """The module after one pass (the first: as captured).

    lines: the IR; values keep their numbers from pass to pass, so lines differ where the module does. ops: ops run in a
    step, calls expanded. weight_bytes: of the weights that ops use. value_bytes: of everything ops write for one token
    after CACHED others. refusals: (where, why) -> how often.
    """

    name: str
    text: str
    level: str
    purpose: str
    lines: tuple[str, ...]
    counts: Mapping[str, int]
    refusals: Mapping[tuple[str, str], int]
    ops: int
    weight_bytes: int
    value_bytes: int
    layer: LayerGraph


def take_snapshots(module: Module, steps: Sequence[Step], context: PassContext) -> list[Snapshot]:
    """Run `steps` on `module`; one snapshot before them and one after each."""
    camera = _Camera()
    found = [camera.take(module, "captured", "captured", "The graph as captured, before any pass.", PassResult())]

    def after(item: Pass, module: Module, result: PassResult) -> None:
        found.append(camera.take(module, item.name, str(item), purpose_of(item), result))

    run_pipeline(module, steps, context, after)
    return found


def purpose_of(item: Pass) -> str:
    """What a pass says of itself: the docstring of its file."""
    return (sys.modules[type(item).__module__].__doc__ or type(item).__doc__ or "").strip()


@dataclass
class _Camera:
    """Numbers values once and for all: `numbers` keeps them alive, so that no number is given twice."""

    numbers: dict[Value, str] = field(default_factory=dict)
    before: frozenset[str] = frozenset()

    def take(self, module: Module, name: str, text: str, purpose: str, result: PassResult) -> Snapshot:
        kept = {value: value.name for _, op in module.ops() for value in op.results}
        try:
            for value in kept:
                value.name = self.numbers.setdefault(value, str(len(self.numbers)))
            lines = tuple(_lines(module))
            layer = layer_graph(module, self.before)
        finally:
            for value, old in kept.items():
                value.name = old
        self.before = frozenset(line.strip() for line in lines)
        refusals = Counter((r.where, r.reason) for r in result.refusals)
        counts = dict(result.counts)
        return Snapshot(name, text, module.level, purpose, lines, counts, refusals, *_sizes(module), layer)


def _lines(module: Module) -> Iterator[str]:
    yield f"module @{module.name} at {module.level} {{"
    yield from (f"  {print_weight(weight)}" for weight in module.weights.values())
    for graph in module.graphs.values():
        arguments = ", ".join(f"{a.reference}: {a.type}" for a in graph.arguments)
        types = ", ".join(str(v.type) for v in graph.outputs)
        yield f"  graph @{graph.name}({arguments}) -> ({types}) {{"
        yield from (f"    {print_op(op)}" for op in graph.ops)
        yield f"    return {', '.join(v.reference for v in graph.outputs)}"
        yield "  }"
    yield "}"


def _sizes(module: Module) -> tuple[int, int, int]:
    """Ops, bytes of weights, bytes of values, as `Snapshot` has them."""
    ops = value_bytes = 0
    weights: dict[Value, None] = {}
    for op in _executed(module, module.step):
        ops += 1
        if not op.operands or any(not isinstance(v, Weight) for v in op.operands):  # not computed from weights alone
            value_bytes += sum(_bytes(result.type) for result in op.results)
        weights.update((v, None) for v in op.operands if isinstance(v, Weight))
    weights.update((v, None) for op in module.step.ops for v in op.operands if isinstance(v, Weight))
    return ops, sum(_stored(weight) for weight in weights), value_bytes


def _executed(module: Module, graph: Graph) -> Iterator[Op]:
    for op in graph.ops:
        if op.opcode == "call":
            yield from _executed(module, module.graphs[str(op.attributes["callee"])])
        else:
            yield op


def _stored(weight: Value) -> int:
    """Bytes of a weight; of a dequantized one, those of its integers and scales."""
    producer = weight.producer
    if producer is not None and producer.opcode == "dequantize":
        return sum(_stored(part) for part in producer.operands)
    return _bytes(weight.type)


def _bytes(type: Type) -> int:
    if not isinstance(type, TensorType):
        return 0
    symbols: dict[str, int] = defaultdict(lambda: 1, P=CACHED)
    bits = type.dtype.bits
    for dim in type.shape:
        bits *= evaluate(dim, symbols)
    return bits // 8

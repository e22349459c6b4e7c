"""Makes an image encoder work on one tile at a time, and hand out rows.

Before: `encode_image(%pixels: tensor<N x 3 x 56 x 56 x f32>) -> tensor<N x 4 x 64 x f32>`
After:  `encode_image(%pixels: tensor<1 x 3 x 56 x 56 x f32>) -> tensor<4 x 64 x f32>`

Tiles do not see one another, so the graph before, run on N tiles, equals the graph after, run on each of them: that is
its law. An encoder that works on all tiles of a picture at once has no N: only its result becomes rows. Must not fire
on a graph with any other symbol, nor on the step of a text model.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.builder import make_op
from llamac.ir.dims import Dim, DimLike, substitute
from llamac.ir.graph import Attribute, Graph, Module, Value, Weight
from llamac.ir.levels import CAPTURED
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

GRAPH = "encode_image"
_TILES = "N"


@dataclass(frozen=True)
class TakeOneTile(Pass):
    """The image encoder of N tiles -> that of one, whose result is [tokens, width]."""

    name = "take-one-tile"
    requires = (CAPTURED,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        graph = module.graphs.get(GRAPH)
        if graph is None:
            return PassResult()
        symbols = {name for a in graph.arguments for d in a.tensor.shape if isinstance(d, Dim) for name in d.symbols}
        if others := sorted(symbols - {_TILES}):
            return PassResult(refusals=(Refusal(f"@{GRAPH}", f"its arguments also depend on {', '.join(others)}"),))
        if symbols:
            module.graphs[GRAPH] = graph = _of_one_tile(graph)
        rows = _hand_out_rows(graph)
        return PassResult({"tile": len(symbols), "rows": rows})


def _of_one_tile(old: Graph) -> Graph:
    """The same ops with N = 1 everywhere."""
    new = Graph(old.name, [(a.name, a.tensor.substituted({_TILES: 1})) for a in old.arguments])
    mapped: dict[Value, Value] = dict(zip(old.arguments, new.arguments, strict=True))
    for op in old.ops:
        operands = tuple(v if isinstance(v, Weight) else mapped[v] for v in op.operands)
        attributes = {name: _one(value) for name, value in op.attributes.items()}
        made = make_op(op.opcode, operands, attributes, op.location)
        new.ops.append(made)
        mapped.update(zip(op.results, made.results, strict=True))
    new.outputs = [v if isinstance(v, Weight) else mapped[v] for v in old.outputs]
    for op in old.ops:
        op.drop_operands()
    return new


def _one(value: Attribute) -> Attribute:
    if isinstance(value, Dim):
        return substitute(value, {_TILES: 1})
    if isinstance(value, tuple):
        return tuple(substitute(v, {_TILES: 1}) if isinstance(v, Dim) else v for v in value)
    return value


def _hand_out_rows(graph: Graph) -> int:
    """Every result of more than two axes as a matrix; returns how many there were."""
    changed = 0
    for index, value in enumerate(graph.outputs):
        *leading, width = value.tensor.shape
        if len(leading) > 1:
            rows: DimLike = 1
            for length in leading:
                rows = rows * length
            place = value.producer.location if value.producer is not None else ""
            made = make_op("reshape", (value,), {"shape": (rows, width)}, place)
            graph.ops.append(made)
            graph.outputs[index] = made.result
            changed += 1
    return changed

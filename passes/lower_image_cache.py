"""Joins what the text model attends to, to the image encoder, and leaves it in the cache of vision tokens.

Before: `encode_image(...) -> tokens [n, d]`, `project_image(tokens [M, d]) -> cross_k.i [K, M, h], cross_v.i, ...`
After:  `encode_image(..., positions [M], page_tables.cross, cache.cross) -> cache.cross`, in which the first M tokens,
        those of the tiles that are filled, go to their positions: `take_rows`, then for each layer one product for k
        and v, `norm_heads` and `append_tokens`

Must not fire on an encoder without `project_image`. LLC0505 when k and v are anything else than projections, k normed
head by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from llamac.errors import LlamacError
from llamac.ir.builder import make_op
from llamac.ir.dims import symbol
from llamac.ir.dtypes import DTYPES, I32
from llamac.ir.graph import Attribute, Graph, Module, Value
from llamac.ir.levels import LOWERING
from llamac.ir.types import CacheType, tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, match
from llamac.transform.weight_rows import over_rows, scheme_of

from .lower_cross_attention import CACHE, TABLES
from .lower_kv_cache import PAGE
from .take_one_tile import GRAPH

PROJECT = "project_image"
_HEADS = Node("transpose", Node("reshape", Node("linear", Any("x"), AnyWeight("weight"))), name="heads")
_NORMED = Node("rms_norm", _HEADS, AnyWeight("norm"), name="normed")


@dataclass(frozen=True)
class LowerImageCache(Pass):
    """project_image -> writes to the cache of vision tokens, of `dtype`, at the end of encode_image."""

    name = "lower-image-cache"
    requires = (LOWERING,)
    dtype: str = "f16"
    page: int = PAGE

    def run(self, module: Module, context: PassContext) -> PassResult:
        if PROJECT not in module.graphs or GRAPH not in module.graphs:
            return PassResult()
        layers = list(_layers(module.graphs[PROJECT]))
        _join(module, layers, self.dtype, self.page)
        old = module.graphs.pop(PROJECT)
        for op in old.ops:
            op.drop_operands()
        return PassResult({"layer": len(layers)})


def _layers(graph: Graph) -> Iterator[tuple[Match, Match]]:
    """The projections of keys and of values, layer by layer."""
    if len(graph.outputs) % 2 or not graph.outputs:
        raise LlamacError("LLC0505", f"@{graph.name}", "does not return keys and values")
    for index, (keys, values) in enumerate(pairwise(graph.outputs)):
        if index % 2:
            continue
        where = keys.producer.location if keys.producer is not None else f"@{graph.name}"
        found = [
            match(p, v.producer) if v.producer is not None else None for p, v in ((_NORMED, keys), (_HEADS, values))
        ]
        k, v = found
        if k is None or v is None or keys.type != values.type:
            raise LlamacError("LLC0505", where, "k and v are not projections, k normed head by head")
        if any(part["x"] is not graph.arguments[0] for part in (k, v)):
            raise LlamacError("LLC0505", where, "k and v are not made of the tokens")
        if any(part.op("heads").attributes["permutation"] != (1, 0, 2) for part in (k, v)):
            raise LlamacError("LLC0505", where, "the projections are not split into [heads, tokens, head_dim]")
        yield k, v


def _join(module: Module, layers: list[tuple[Match, Match]], dtype: str, page: int) -> None:
    graph = module.graphs[GRAPH]
    kv_heads, count, width = layers[0][0].root.result.tensor.shape
    assert isinstance(kv_heads, int) and isinstance(width, int)
    positions = Value("positions", tensor(count, I32))
    tables = Value(TABLES, tensor(symbol("S"), symbol("N"), I32))
    cache = Value(CACHE, CacheType(len(layers), kv_heads, width, page, DTYPES[dtype], cross=True))
    graph.arguments += [positions, tables, cache]
    tokens = _op(graph, "take_rows", "vision.projector", graph.outputs[0], positions)
    for layer, (k, v) in enumerate(layers):
        at, eps = k.root.location, k.root.attributes["eps"]
        kv = _rows(module, graph, at, tokens, [k["weight"], v["weight"]])
        kv = _op(graph, "norm_heads", at, kv, k["norm"], heads=kv_heads, head_dim=width, eps=eps)
        cache = _op(graph, "append_tokens", at, cache, kv, positions, tables, layer=layer)
    graph.outputs = [cache]


def _rows(module: Module, graph: Graph, at: str, x: Value, weights: list[Value]) -> Value:
    """k and v side by side: one product, or two where the weights are stored by different schemes."""
    if len({scheme_of(w) for w in weights}) == 1:
        return _op(graph, "linear", at, x, over_rows(module, f"{at}.kv", "concat", weights, axis=0))
    return _op(graph, "concat", at, *(_op(graph, "linear", at, x, w) for w in weights), axis=-1)


def _op(graph: Graph, opcode: str, location: str, *operands: Value, **attributes: Attribute) -> Value:
    made = make_op(opcode, operands, attributes, location)
    graph.ops.append(made)
    return made.result

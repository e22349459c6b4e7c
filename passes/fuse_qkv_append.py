"""Puts the norm of q and k, the temperature, the rotation and the cache append inside the q, k, v product of the CPU.

Before: `%y = linear_grouped %q, %s, %t, @qkv`, `%c, %r = rope_append %cache, %y, ..., %cos, %sin`, `attend %r, %c, ...`
After:  `%c, %r = qkv_grouped %cache, %q, %s, %t, @qkv, ..., %cos, %sin`, `attend %r, %c, ...`

Likewise `linear_dense`. The thread that made the columns of a head finishes them: one barrier a layer less, and q, k
and v are not written to be read again. Must not fire when q, k and v are not one product, or have another use; when
heads do not fill whole panels; or when threads would share the work worse than without it, since heads that are normed
or quantized as a whole belong to one thread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from llamac.ir.builder import make_op
from llamac.ir.graph import Attribute, Graph, Module, Op, Value
from llamac.ir.layouts import PANEL
from llamac.ir.levels import KERNEL, LOWERING
from llamac.ir.types import CacheType
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

_QKV = {"linear_dense": ("qkv_dense", 2), "linear_grouped": ("qkv_grouped", 4)}
"""Product -> the kernel of everything, and that product's operands without a residual."""
_APPENDS = {"rope_append": 4, "append": 2}
"""Opcode -> where its positions stand; page tables are two further, and angles from 2 on."""
_THREADS = (2, 3, 4, 6, 8)
_UNEVEN = 1.25
"""How much more than without the fusion the thread with most work may get, for any of these numbers of threads."""


@dataclass(frozen=True)
class FuseQkvAppend(Pass):
    """A product of q, k and v, norm_heads, temper_heads and (rope_)append -> one kernel."""

    name = "fuse-qkv-append"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            for append in [op for op in graph.ops if op.opcode in _APPENDS]:
                found = _projection(graph, append)
                if isinstance(found, str):
                    refusals.append(Refusal(append.location, found))
                else:
                    _fuse(graph, append, found)
                    fused += 1
            graph.remove_dead_ops()
        return PassResult({"qkv_append": fused}, tuple(refusals))


@dataclass
class _Projection:
    """The product, and what happens to its heads on the way to the cache."""

    product: Op
    attributes: dict[str, Attribute] = field(default_factory=dict)


def _projection(graph: Graph, append: Op) -> _Projection | str:
    """What `append` gets its rows from, or the reason not to fuse."""
    found: dict[str, Attribute] = {}
    value, cache, heads = append.operands[1], append.operands[0].cache, _integer(append, "heads")
    for opcode, width in (("temper_heads", heads), ("norm_heads", heads + cache.kv_heads)):
        producer = value.producer
        if producer is None or producer.opcode != opcode:
            continue
        if producer.attributes["heads"] != width or _has_other_use(graph, value):
            return f"{opcode} changes other heads than a fused kernel would, or has another use"
        if opcode == "norm_heads" and len(producer.operands) > 1:
            return "the norm of q and k has a weight"
        names = {"eps": "qk_eps"} if opcode == "norm_heads" else {"floor": "floor", "scale": "scale"}
        found |= {new: producer.attributes[old] for old, new in names.items()}
        value = producer.operands[0]
    product = value.producer
    if product is None or len(product.operands) != _QKV.get(product.opcode, ("", 0))[1]:
        return "q, k and v are not one product alone"
    if _has_other_use(graph, value):
        return "q, k and v have another use"
    return _why_not(append, heads, cache, "qk_eps" in found) or _Projection(product, found)


def _why_not(append: Op, heads: int, cache: CacheType, is_normed: bool) -> str | None:
    if len(append.operands) > _APPENDS[append.opcode] + 3:
        return "the cache has scales of the checkpoint"
    if cache.head_dim % PANEL:
        return f"heads of {cache.head_dim} do not fill whole panels of {PANEL}"
    uneven = _unevenness(heads, cache, is_normed)
    if uneven > _UNEVEN:
        return f"whole heads are too coarse to share among threads: one would have {uneven:.2f} times its share"
    return None


def _unevenness(heads: int, cache: CacheType, is_normed: bool) -> float:
    """The largest share of a thread over that without the fusion, at the worst number of threads.

    Threads take ranges of pairs of panels, which begin with a head where that is normed or quantized as a whole.
    """
    pairs = -(-cache.head_dim // (2 * PANEL))
    queries, total = heads * pairs, (heads + 2 * cache.kv_heads) * pairs
    halves = cache.head_dim % (2 * PANEL) == 0
    whole = {True: not halves or is_normed, False: not halves or is_normed or cache.scale is not None}

    def cut(pair: int) -> int:
        return pair - pair % pairs if whole[pair < queries] else pair

    def largest(threads: int) -> float:
        ends = [cut(total * t // threads) for t in range(threads)] + [total]
        return max(stop - start for start, stop in itertools.pairwise(ends))

    return max(largest(threads) / -(-total // threads) for threads in _THREADS)


def _integer(op: Op, name: str) -> int:
    value = op.attributes[name]
    assert isinstance(value, int)
    return value


def _has_other_use(graph: Graph, value: Value) -> bool:
    return sum(value.users.values()) != 1 or value in graph.outputs


def _fuse(graph: Graph, append: Op, found: _Projection) -> None:
    product, at = found.product, _APPENDS[append.opcode]
    operands = (append.operands[0], *product.operands, *append.operands[at : at + 3], *append.operands[2:at])
    places = {name: append.attributes[name] for name in ("layer", "heads")}
    kept = {name: product.attributes[name] for name in ("format", "rows", "columns")}
    made = make_op(_QKV[product.opcode][0], operands, {**kept, **found.attributes, **places}, append.location)
    graph.ops.insert(graph.ops.index(append), made)
    for old, new in zip(append.results, made.results, strict=True):
        graph.replace(old, new)

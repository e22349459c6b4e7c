"""Puts the norm of q and k, their rotation, the temperature and the cache append inside the q, k, v projection.

Before: `%y = linear_rows16 %x, @n, @qkv`, `%c, %q = rope_append %cache, %y, %cos, %sin, ...`, `attend %q, %c, ...`
After:  `%c, %q = qkv_rows16 %cache, %x, @n, @qkv, %cos, %sin, ... {dtype = bf16}`, `attend %q, %c, ...`

Must not fire when q, k and v are not one product, or have another use; LLC0506 where they are several products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.errors import LlamacError
from llamac.ir.builder import make_op
from llamac.ir.graph import Attribute, Graph, Module, Op, Value
from llamac.ir.layouts import format_of
from llamac.ir.levels import LOWERING
from llamac.ir.row_layouts import between_type
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

_APPENDS = ("rope_append", "append")


@dataclass(frozen=True)
class FuseRowAppend(Pass):
    """linear_rows16, norm_heads, temper_heads and (rope_)append -> qkv_rows16."""

    name = "fuse-row-append"
    requires = (LOWERING,)

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
        return PassResult({"append": fused}, tuple(refusals))


@dataclass
class _Projection:
    """The product, and what happens to its heads on the way to the cache."""

    product: Op
    attributes: dict[str, Attribute] = field(default_factory=dict)


def _projection(graph: Graph, append: Op) -> _Projection | str:
    """What `append` gets its rows from, or the reason not to fuse."""
    attributes: dict[str, Attribute] = {}
    value, heads, cache = append.operands[1], append.attributes["heads"], append.operands[0].cache
    assert isinstance(heads, int)
    # The kernel norms q and k first, then tempers q.
    for opcode, width in (("temper_heads", heads), ("norm_heads", heads + cache.kv_heads)):
        change = value.producer
        if change is None or change.opcode != opcode or (opcode == "norm_heads" and len(change.operands) > 1):
            continue
        if change.attributes["heads"] != width or _has_other_use(graph, value):
            return f"{opcode} changes other heads than the kernel would, or has another use"
        names = {"eps": "qk_eps"} if opcode == "norm_heads" else {"floor": "floor", "scale": "scale"}
        attributes |= {new: change.attributes[old] for old, new in names.items()}
        value = change.operands[0]
    producer = value.producer
    if _has_other_use(graph, value):
        return "q, k and v have another use"
    if producer is not None and producer.opcode == "concat":
        reason = "q, k and v are stored differently, and one kernel makes all three"
        raise LlamacError("LLC0506", append.location, reason, "choose a --quantize for all weights")
    if producer is None or producer.opcode != "linear_rows16":
        return "q, k and v are not one product over rows"
    if {"residual", "rows"} & set(str(producer.attributes["operands"]).split()):
        return "the product does more than qkv_rows16 can"
    return _Projection(producer, attributes)


def _has_other_use(graph: Graph, value: Value) -> bool:
    return sum(value.users.values()) != 1 or value in graph.outputs


def _fuse(graph: Graph, append: Op, found: _Projection) -> None:
    product = found.product
    angles: list[Value] = list(append.operands[2:4]) if append.opcode == "rope_append" else []
    rows = append.operands[2 + len(angles) :]
    operands = [append.operands[0], *product.operands, *angles, *rows]
    names = ["cache", str(product.attributes["operands"]), *(["cos sin"] if angles else [])]
    names += ["positions sequence_of_token page_tables", *["kv_scales"] * (len(rows) - 3)]
    dtype = between_type(format_of(str(product.attributes["format"])))
    places = {name: append.attributes[name] for name in ("layer", "heads")}
    attributes = {**product.attributes, **found.attributes, **places, "dtype": dtype, "operands": " ".join(names)}
    made = make_op("qkv_rows16", tuple(operands), attributes, append.location)
    graph.ops.insert(graph.ops.index(append), made)
    for old, new in zip(append.results, made.results, strict=True):
        _replace(graph, old, new)


def _replace(graph: Graph, old: Value, new: Value) -> None:
    """Use `new` for `old`; attention gives rows of the type of its queries."""
    for user in [u for u in old.users if u.opcode == "attend" and u.operands[0] is old]:
        again = make_op("attend", (new, *user.operands[1:]), user.attributes, user.location)
        graph.ops.insert(graph.ops.index(user), again)
        graph.replace(user.result, again.result)
        user.drop_operands()
        graph.ops.remove(user)
    graph.replace(old, new)

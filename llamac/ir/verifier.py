"""Strict verification: order, types, attributes and level, each failure naming the op and where in the model it is."""

from __future__ import annotations

from llamac.errors import LlamacError

from .definition import OpError, Signature
from .graph import DataSource, FileSource, Graph, Module, Op, Value, Weight
from .levels import LEVELS, is_legal
from .registry import find_op
from .types import CacheType


def verify(module: Module) -> None:
    """Raise LLC0403 for the first thing in `module` that is not well formed."""
    if module.level not in LEVELS:
        raise _error("module", f"unknown level '{module.level}'")
    defined: set[Value] = set()
    for name, weight in module.weights.items():
        _verify_weight(module, name, weight, defined)
        defined.add(weight)
    for graph in module.graphs.values():
        _verify_graph(module, graph, defined)
    _verify_uses(module)


def _error(where: str, reason: str) -> LlamacError:
    return LlamacError("LLC0403", where, reason, "this is a malformed graph; `--verify-each` names the pass that made it")


def _verify_weight(module: Module, name: str, weight: Weight, defined: set[Value]) -> None:
    where = f"weight @{name}"
    if weight.name != name:
        raise _error(where, f"is entered under another name, @{weight.name}")
    if (weight.source is None) == (weight.producer is None):
        raise _error(where, "needs either a source or a defining op")
    if isinstance(weight.source, DataSource):
        count = 1
        for dim in weight.tensor.shape:
            count *= dim if isinstance(dim, int) else 0
        if len(weight.source.data) != count * weight.tensor.dtype.storage.itemsize:
            raise _error(where, f"holds {len(weight.source.data)} bytes, which is not a {weight.type}")
    if isinstance(weight.source, FileSource) and not all(isinstance(d, int) for d in weight.tensor.shape):
        raise _error(where, "has a symbolic shape")
    if weight.producer is not None:
        for operand in weight.producer.operands:
            if not isinstance(operand, Weight):
                raise _error(where, f"is defined from {operand.reference}, which is not a weight")
        if find_op(weight.producer.opcode).rows is None:
            raise _error(where, f"op {weight.producer.opcode} cannot define a weight")
        _verify_op(module, weight.producer, defined, where)


def _verify_graph(module: Module, graph: Graph, weights: set[Value]) -> None:
    names = [a.name for a in graph.arguments]
    if len(set(names)) != len(names):
        raise _error(f"graph @{graph.name}", "has two arguments of one name")
    defined = weights | set(graph.arguments)
    for op in graph.ops:
        where = f"@{graph.name}{f' {op.location}' if op.location else ''}"
        _verify_op(module, op, defined, where)
        defined.update(op.results)
    for value in graph.outputs:
        if value not in defined:
            raise _error(f"graph @{graph.name}", f"returns {value.reference}, which is not defined in it")


def _verify_op(module: Module, op: Op, defined: set[Value], where: str) -> None:
    try:
        definition = find_op(op.opcode)
        if not is_legal(definition.levels, module.level):
            raise OpError(f"is not legal at level {module.level}")
        for index, operand in enumerate(op.operands):
            if operand not in defined:
                raise OpError(f"operand {index} ({operand.reference}) is used before it is defined")
        definition.check_signature(len(op.operands), op.attributes)
        expected = list(definition.infer(Signature([v.type for v in op.operands], op.attributes)))
        found = [r.type for r in op.results]
        if expected != found:
            raise OpError(f"result types should be {', '.join(map(str, expected))}, not {', '.join(map(str, found))}")
        if op.opcode == "call":
            _verify_call(module, op)
    except OpError as error:
        raise _error(where, f"{op.opcode}: {error}") from None


def _verify_call(module: Module, op: Op) -> None:
    callee = module.graphs.get(str(op.attributes["callee"]))
    if callee is None:
        raise OpError(f"there is no graph @{op.attributes['callee']}")
    given, taken = [v.type for v in op.operands], [a.type for a in callee.arguments]
    if given != taken:
        raise OpError(f"operands do not fit the arguments of @{callee.name}")
    if [v.type for v in callee.outputs] != [r.type for r in op.results]:
        raise OpError(f"results do not fit what @{callee.name} returns")


def _verify_uses(module: Module) -> None:
    counts: dict[Value, dict[Op, int]] = {}
    producers = [w.producer for w in module.weights.values() if w.producer]
    for op in [*producers, *(op for _, op in module.ops())]:
        for operand in op.operands:
            users = counts.setdefault(operand, {})
            users[op] = users.get(op, 0) + 1
    for graph in module.graphs.values():
        for value in graph.values():
            if value.users != counts.get(value, {}):
                raise _error(f"graph @{graph.name}", f"{value.reference} has users outside the graph or stale ones")
            if isinstance(value.type, CacheType) and sum(value.users.values()) > _cache_uses(value):
                raise _error(f"graph @{graph.name}", f"{value.reference} is written twice: a cache has one next state")


def _cache_uses(value: Value) -> int:
    # Any number of ops may read a cache state, one may replace it.
    writers = sum(1 for op in value.users if op.opcode in ("rope_append", "call"))
    return sum(value.users.values()) if writers <= 1 else 0

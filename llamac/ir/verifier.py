"""Strict verification: order, types, attributes and level, each failure naming the op and where in the model it is."""

from __future__ import annotations

from collections.abc import Iterable

from llamac.errors import LlamacError

from .definition import PLACEMENT, OpError, check_type
from .dims import Dim, evaluate
from .dtypes import DTYPES, U8
from .gguf_blocks import BLOCKS
from .graph import NAME, DataSource, FileSource, Graph, Module, Op, Value, Weight
from .levels import LEVELS, is_legal
from .registry import find_op, infer_types
from .types import CacheType, TensorType

LAYER = "layer"
"""The symbol that `call` binds in the graph it runs."""


def verify(module: Module) -> None:
    """Raise LLC0403 for the first thing in `module` that is not well formed."""
    if module.level not in LEVELS:
        raise _error("module", f"unknown level '{module.level}'")
    _verify_names("module", [module.name])
    defined: set[Value] = set()
    for name, weight in module.weights.items():
        _verify_weight(module, name, weight, defined)
        defined.add(weight)
    for name, graph in module.graphs.items():
        if graph.name != name:
            raise _error(f"graph @{name}", f"is entered under another name, @{graph.name}")
        _verify_graph(module, graph, defined)
        _verify_symbols(graph, is_called=_is_called(module, name))
    _verify_calls(module)
    _verify_uses(module)


def _error(where: str, reason: str) -> LlamacError:
    hint = "this is a malformed graph; `--verify-each` names the pass that made it"
    return LlamacError("LLC0403", where, reason, hint)


def _verify_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise _error(where, f"the name '{name}' has characters that the text form cannot hold")


def _verify_weight(module: Module, name: str, weight: Weight, defined: set[Value]) -> None:
    where = f"weight @{name}"
    _verify_names(where, [name])
    if weight.name != name:
        raise _error(where, f"is entered under another name, @{weight.name}")
    if (weight.source is None) == (weight.producer is None):
        raise _error(where, "needs either a source or a defining op")
    if not all(isinstance(d, int) and d >= 0 for d in weight.tensor.shape):
        raise _error(where, f"has no fixed shape: {weight.type}")
    if isinstance(weight.source, DataSource):
        count = 1
        for dim in weight.tensor.shape:
            count *= dim if isinstance(dim, int) else 0
        if len(weight.source.data) != count * weight.tensor.dtype.storage.itemsize:
            raise _error(where, f"holds {len(weight.source.data)} bytes, which is not a {weight.type}")
    if isinstance(weight.source, FileSource):
        _verify_encoding(where, weight, weight.source.encoding)
    if weight.producer is not None:
        _verify_definition(module, weight, weight.producer, defined, where)


def _verify_encoding(where: str, weight: Weight, encoding: str) -> None:
    expected = U8 if encoding in BLOCKS else DTYPES.get(encoding)
    if expected is None:
        raise _error(where, f"unknown encoding '{encoding}'")
    if weight.tensor.dtype is not expected:
        raise _error(where, f"is a {weight.type}, but {encoding} is read as {expected}")


def _verify_definition(module: Module, weight: Weight, op: Op, defined: set[Value], where: str) -> None:
    for operand in op.operands:
        if not isinstance(operand, Weight):
            raise _error(where, f"is defined from {operand.reference}, which is not a weight")
    if op.results != [weight]:
        raise _error(where, f"is not the result of the {op.opcode} that defines it")
    _verify_op(module, op, defined, where)
    if find_op(op.opcode).rows is None:
        raise _error(where, f"op {op.opcode} cannot define a weight")


def _verify_graph(module: Module, graph: Graph, weights: set[Value]) -> None:
    where = f"graph @{graph.name}"
    names = [a.name for a in graph.arguments]
    _verify_names(where, [graph.name, *names])
    if len(set(names)) != len(names):
        raise _error(where, "has two arguments of one name")
    for argument in graph.arguments:
        try:
            check_type(argument.type)
        except OpError as error:
            raise _error(where, f"{argument.reference}: {error}") from None
    defined = weights | set(graph.arguments)
    written: set[Value] = set()
    for op in graph.ops:
        place = f"@{graph.name}{f' {op.location}' if op.location else ''}"
        _verify_op(module, op, defined, place)
        _verify_states(op, written, place)
        for result in op.results:
            if result in defined or result.producer is not op:
                raise _error(place, f"{op.opcode}: is in the graph twice, or its result is another op's")
            defined.add(result)
    for value in graph.outputs:
        if value not in defined:
            raise _error(where, f"returns {value.reference}, which is not defined in it")
        if value in written:
            raise _error(where, f"returns {value.reference}, a cache that has been written over: return its next state")


def _verify_states(op: Op, written: set[Value], where: str) -> None:
    """Code writes caches where they lie, so nothing may read the state before a write after it."""
    new = _replaced(op)
    for value in op.operands:
        if value in written and value not in new:
            raise _error(where, f"{op.opcode}: reads {value.reference}, a cache that has been written over since")
    written.update(new)


def _verify_op(module: Module, op: Op, defined: set[Value], where: str) -> None:
    try:
        definition = find_op(op.opcode)
        if not is_legal(definition.levels, module.level):
            raise OpError(f"is not legal at level {module.level}")
        for index, operand in enumerate(op.operands):
            if operand not in defined:
                raise OpError(f"operand {index} ({operand.reference}) is used before it is defined")
        expected = infer_types(op.opcode, [v.type for v in op.operands], op.attributes)
        found = [r.type for r in op.results]
        if expected != found:
            raise OpError(f"result types should be {', '.join(map(str, expected))}, not {', '.join(map(str, found))}")
        places = op.attributes.get(PLACEMENT, (0,) * len(found))
        if not isinstance(places, tuple) or len(places) != len(found) or not all(isinstance(p, int) for p in places):
            raise OpError(f"attribute '{PLACEMENT}' must hold one offset for each of {len(found)} results")
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
    _verify_layer(op, callee)


def _verify_layer(call: Op, callee: Graph) -> None:
    """The layer that a call names must be a place in every cache that the graph uses at it."""
    layer = call.attributes["layer"]
    assert isinstance(layer, int)
    for op in callee.ops:
        place = op.attributes.get(LAYER)
        if not isinstance(place, Dim) or place.symbols != {LAYER}:
            continue
        for cache in (v.type for v in op.operands if isinstance(v.type, CacheType)):
            if not 0 <= evaluate(place, {LAYER: layer}) < cache.layers:
                raise OpError(f"layer {layer} is outside {cache}, which @{callee.name} uses at it")


def _callees(graph: Graph) -> set[str]:
    return {str(op.attributes["callee"]) for op in graph.ops if op.opcode == "call"}


def _is_called(module: Module, name: str) -> bool:
    return any(name in _callees(graph) for graph in module.graphs.values())


def _verify_calls(module: Module) -> None:
    """Calls must end: no graph may run itself, directly or through others."""
    for name in module.graphs:
        reached, todo = set[str](), [name]
        while todo:
            found = _callees(module.graphs[todo.pop()]) - reached
            reached |= found
            todo += found
        if name in reached:
            raise _error(f"graph @{name}", "calls itself")


def _verify_symbols(graph: Graph, is_called: bool) -> None:
    """Every symbol of the graph must be a dimension of an argument, where running the graph gives it a value."""
    types = [a.type for a in graph.arguments if isinstance(a.type, TensorType)]
    bound = {d.lone_symbol for t in types for d in t.shape if isinstance(d, Dim)} | ({LAYER} if is_called else set())
    for value in graph.values():
        shape = value.type.shape if isinstance(value.type, TensorType) else ()
        _verify_bound(graph, f"{value.reference}: {value.type}", shape, bound)
    for op in graph.ops:
        for name, attribute in op.attributes.items():
            items = attribute if isinstance(attribute, tuple) else (attribute,)
            _verify_bound(graph, f"{op.opcode} {op.location}: attribute '{name}'", items, bound)


def _verify_bound(graph: Graph, what: str, items: Iterable[object], bound: set[str | None]) -> None:
    for item in items:
        for name in sorted(item.symbols - bound) if isinstance(item, Dim) else ():
            raise _error(f"graph @{graph.name}", f"{what} depends on {name}, which is no dimension of an argument")


def _verify_uses(module: Module) -> None:
    counts: dict[Value, dict[Op, int]] = {}
    producers = [w.producer for w in module.weights.values() if w.producer]
    for op in [*producers, *(op for _, op in module.ops())]:
        for operand in op.operands:
            users = counts.setdefault(operand, {})
            users[op] = users.get(op, 0) + 1
    for weight in module.weights.values():
        if weight.users != counts.get(weight, {}):
            raise _error(f"weight @{weight.name}", "has users outside the module or stale ones")
    for graph in module.graphs.values():
        for value in graph.values():
            if value.users != counts.get(value, {}):
                raise _error(f"graph @{graph.name}", f"{value.reference} has users outside the graph or stale ones")
            if isinstance(value.type, CacheType) and _replacements(value) > 1:
                raise _error(f"graph @{graph.name}", f"{value.reference} is written twice: a cache has one next state")


def _replacements(cache: Value) -> int:
    """How many ops replace this cache state; any number may read it."""
    return sum(cache in _replaced(op) for op in cache.users)


def _replaced(op: Op) -> list[Value]:
    """The caches of which an op gives the next state; a call carries them, and may read others."""
    if not any(isinstance(r.type, CacheType) for r in op.results):
        return []
    carried = op.attributes["carried"] if op.opcode == "call" else None
    assert carried is None or isinstance(carried, int)
    return [v for v in op.operands[:carried] if isinstance(v.type, CacheType)]

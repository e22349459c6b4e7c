"""Which weight is which: model-level names from the structure of the captured graph, whatever the module calls them."""

from __future__ import annotations

from collections.abc import Iterator

from llamac.errors import LlamacError
from llamac.ir.graph import DataSource, FileSource, Graph, Module, Op, Value, Weight

from ..llama.config import LlamaConfig
from ..llama.weights import expected_shapes
from .parameters import FREQUENCIES

_MOVES = ("reshape", "cast", "broadcast", "transpose")
HINT = "a layer is norm, q/k/v, attention, o, add, norm, gate/up, silu, down, add, each projection a weight of its own"


def name_weights(module: Module, config: LlamaConfig) -> dict[str, str]:
    """Give every weight its model-level name and its place in model order; returns names before -> after.

    LLC0318 when the graph does not apply its weights as a Llama of the config does.
    """
    roles = _roles(module.step, config)
    strangers = [w.name for w in module.weights.values() if isinstance(w.source, FileSource) and w not in roles]
    if strangers:
        raise _unlike(f"the parameter {strangers[0]} has no place in a Llama")
    renamed = {weight.name: name for weight, name in roles.items()}
    order = {name: index for index, name in enumerate(expected_shapes(config))}
    for weight, name in roles.items():
        weight.name = name
        assert isinstance(weight.source, FileSource)
        weight.source = FileSource(name, weight.source.encoding)
    _name_frequencies(module, config)
    weights = sorted(module.weights.values(), key=lambda w: order.get(w.name, len(order)))
    module.weights = {w.name: w for w in weights}
    _locate(module.step)
    return renamed


def _unlike(reason: str) -> LlamacError:
    return LlamacError("LLC0318", "the module", reason, HINT)


def _roles(graph: Graph, config: LlamaConfig) -> dict[Weight, str]:
    """Weight -> name. Projections of one value form a group: q/k/v, o, gate/up, down, layer by layer, then the head."""
    roles: dict[Weight, str] = {}

    def give(weight: Weight, name: str) -> None:
        if roles.setdefault(weight, name) != name and (name, config.tied_head) != ("head", True):
            raise _unlike(f"{weight.name} is both {roles[weight]} and {name}")

    for op in graph.ops:
        if op.opcode == "embedding" and isinstance(op.operands[0], Weight):
            give(op.operands[0], "embed")
    groups = _groups(graph)
    sizes = [len(group) for group in groups.values()]
    if sizes != [3, 1, 2, 1] * config.layers + [1]:
        raise _unlike(
            f"projections come in groups of {sizes[:5]}..., expected [3, 1, 2, 1] in each of {config.layers} layers"
        )
    for index, (source, group) in enumerate(groups.items()):
        layer = f"layers.{index // 4}"
        kind = ("qkv", "o", "mlp", "down")[index % 4] if index < 4 * config.layers else "head"
        for role, op in _named(graph, kind, index // 4, group):
            give(_weight_of(op), "head" if kind == "head" else f"{layer}.{role}")
        norm = {"qkv": f"{layer}.attn_norm", "mlp": f"{layer}.mlp_norm", "head": "norm"}.get(kind)
        if norm is not None:
            give(_scale_of(_all_tokens(source) if kind == "head" else source, norm), norm)
    return roles


def _groups(graph: Graph) -> dict[Value, list[Op]]:
    found: dict[Value, list[Op]] = {}
    for op in graph.ops:
        if op.opcode == "matmul" and _is_weight(op.operands[1]):
            found.setdefault(_behind(op.operands[0]), []).append(op)
    return found


def _named(graph: Graph, kind: str, layer: int, group: list[Op]) -> Iterator[tuple[str, Op]]:
    if kind == "qkv":
        k, v = (_projection(graph.outputs[1 + 2 * layer + i], group) for i in (0, 1))
        rest = [op for op in group if op not in (k, v)]
        if len(rest) != 1 or k is None or v is None:
            raise _unlike(f"layers.{layer}: q, k and v are not three projections of one value")
        yield from (("attn.q", rest[0]), ("attn.k", k), ("attn.v", v))
    elif kind == "mlp":
        gates = [op for op in group if any(u.opcode == "sigmoid" for u in _users(op.result))]
        if len(gates) != 1:
            raise _unlike(f"layers.{layer}: one of gate and up must go through silu")
        yield from (("mlp.gate" if op is gates[0] else "mlp.up", op) for op in group)
    else:
        yield {"o": "attn.o", "down": "mlp.down", "head": "head"}[kind], group[0]


def _projection(value: Value, group: list[Op]) -> Op | None:
    """The one projection of `group` that `value` is made from."""
    seen, todo = set[Op](), [value.producer]
    while todo:
        op = todo.pop()
        if op in group:
            return op
        if op is not None and op not in seen and op.opcode != "matmul":
            seen.add(op)
            todo += [v.producer for v in op.operands]
    return None


def _users(value: Value) -> Iterator[Op]:
    for user in value.users:
        yield user
        if user.opcode in _MOVES:
            yield from _users(user.results[0])


def _behind(value: Value) -> Value:
    """The value before it was reshaped, cast or moved."""
    while value.producer is not None and value.producer.opcode in _MOVES and not isinstance(value, Weight):
        value = value.producer.operands[0]
    return value


def _is_weight(value: Value) -> bool:
    found = _behind(value)
    return isinstance(found, Weight) and isinstance(found.source, FileSource)


def _weight_of(op: Op) -> Weight:
    found = _behind(op.operands[1])
    assert isinstance(found, Weight)
    return found


def _all_tokens(value: Value) -> Value:
    """What the head reads, before all but the last token were left out."""
    while value.producer is not None and value.producer.opcode in ("slice", *_MOVES):
        value = value.producer.operands[0]
    return value


def _scale_of(source: Value, name: str) -> Weight:
    """The weight by which a norm ends."""
    scales = (
        [_behind(v) for v in source.producer.operands] if source.producer and source.producer.opcode == "mul" else []
    )
    for scale in scales:
        if isinstance(scale, Weight) and scale.tensor.rank == 1:
            return scale
    raise _unlike(f"{name}: the projections do not read a norm with a weight")


def _name_frequencies(module: Module, config: LlamaConfig) -> None:
    """A buffer of the rotary frequencies is called what fold-constants calls them."""
    for weight in module.weights.values():
        if isinstance(weight.source, DataSource) and weight.tensor.shape == (config.head_dim // 2,):
            weight.name = FREQUENCIES
            return


def _locate(graph: Graph) -> None:
    """Locations as the config front door has them: an op belongs where its weight does, else where its operands do."""
    order = {op: index for index, op in enumerate(graph.ops)}
    for op in graph.ops:
        names = [v.name for v in op.operands if isinstance(v, Weight) and isinstance(v.source, FileSource)]
        before = [v.producer for v in op.operands if v.producer is not None and v.producer.location]
        if names:
            op.location = "head" if names[0] == "embed" and op.opcode != "embedding" else _place(names[0])
        elif before:
            op.location = max(before, key=lambda o: order[o]).location
    for op in reversed(graph.ops):
        if not op.location:
            users = {user.location for user in op.results[0].users} if not op.operands else set()
            tables = "mask" if op.opcode in ("less", "less_equal", "select") else "rope"
            op.location = users.pop() if len(users) == 1 else tables


def _place(name: str) -> str:
    """`layers.3.attn.q` -> `layers.3.attn`; `layers.3.mlp_norm` -> `layers.3.mlp`; `norm` is its own place."""
    parts = name.split(".")
    return name if len(parts) < 3 else ".".join([*parts[:2], parts[2].removesuffix("_norm")])

"""Turns the graph of one sequence with explicit past into the ragged step over a paged cache.

Before: `step(ids[T], positions[T], past_k.0[K, P, h], ...) -> logits[T, V], k.0[K, P + T, h], ...`
After:  `step(token_ids[T], positions[T], sequence_of_token[T], page_tables[S, N], logit_rows[R], cache)
        -> logits[R, V], cache`

Each attention becomes `rope_append` (`append` where nothing is rotated) and `attend`; only the wanted rows reach the
final norm and the head. Layers that see only their own chunk of the context have a cache and page tables of their own,
`cache.chunkN` and `page_tables.chunkN`, whose pages can be given back behind the chunk; layers that attend to vision
tokens read `cache.cross` (`lower_cross_attention`). What else the graph takes stays an argument. A norm of q and k goes
in front of their rotation, which keeps lengths. Its law: for every partition of the rows into steps and sequences, the
result equals the captured graph run per sequence. Must not fire when q, k and v are not plain projections, or when the
past does not belong to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llamac.errors import LlamacError
from llamac.ir.builder import make_op
from llamac.ir.dims import symbol
from llamac.ir.dtypes import DTYPES, I32
from llamac.ir.graph import Attribute, Graph, Module, Op, Value, Weight
from llamac.ir.levels import LOWERING, MODEL
from llamac.ir.types import CacheType, Type, tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Node, match

from .fuse_qkv import PLUMBING, projection
from .lower_cross_attention import CACHE, PAST_PREFIXES, TABLES, CrossLayer, cross_cache, read_cross_layer

PAGE = 256
_HINT = "choose one, or `--kv int8` or `--kv fp8`, which quantize-kv makes of f16"
_SPLIT = Node("transpose", Node("reshape", Any("flat")))

_BETWEEN = (("temper", "unit_rms_norm", "rope"), ("concat", "unit_rms_norm", "rope"), ("concat",))
"""What may stand between attention and the heads of q, of k and of v, the last op first: what the kernels do."""


@dataclass(frozen=True)
class LowerKvCache(Pass):
    """One sequence with past -> ragged step with a paged cache of `dtype`."""

    name = "lower-kv-cache"
    requires = (MODEL,)
    produces = LOWERING
    dtype: str = "f16"
    page: int = PAGE

    def run(self, module: Module, context: PassContext) -> PassResult:
        if self.dtype not in ("f32", "f16", "bf16"):
            raise LlamacError("LLC0502", "dtype", f"the cache can be f32, f16 or bf16, not '{self.dtype}'", _HINT)
        lowering = _Lowering(module.step, self.dtype, self.page)
        module.graphs["step"] = lowering.run()
        return PassResult({"attention": lowering.layer, "cross_attention": len(lowering.cross)})


def group_names(chunk: int) -> tuple[str, str]:
    """The arguments that hold the cache and the page tables of layers with this chunk."""
    suffix = f".chunk{chunk}" if chunk else ""
    return f"cache{suffix}", f"page_tables{suffix}"


def _chunk(attention: Op) -> int:
    chunk = attention.attributes.get("chunk", 0)
    assert isinstance(chunk, int)
    return chunk


@dataclass(frozen=True)
class _Turned:
    """cos and sin (none where nothing is rotated), the eps of a norm of q and k, and the tempering of q."""

    tables: tuple[Value, ...]
    eps: float | None
    temper: Op | None


@dataclass
class _Lowering:
    old: Graph
    dtype: str
    page: int
    layer: int = 0
    cross: list[Op] = field(default_factory=list)
    groups: dict[int, list[Op]] = field(default_factory=dict)
    caches: dict[int, Value] = field(default_factory=dict)
    last: tuple[int, int] = (0, 0)
    mapped: dict[Value, Value] = field(default_factory=dict)
    skipped: set[Op] = field(default_factory=set)

    def run(self) -> Graph:
        attentions = [op for op in self.old.ops if op.opcode == "attention"]
        for op in sorted(attentions, key=_chunk):
            self.groups.setdefault(_chunk(op), []).append(op)
        self.cross = [op for op in self.old.ops if op.opcode == "cross_attention"]
        self.new = Graph("step", self._arguments(attentions))
        self.caches = {chunk: self.new.argument(group_names(chunk)[0]) for chunk in self.groups}
        for old, new in (("ids", "token_ids"), ("positions", "positions")):
            if old not in (a.name for a in self.old.arguments):
                raise LlamacError("LLC0505", "@step", f"has no argument %{old}", "this is not a captured step")
            self.mapped[self.old.argument(old)] = self.new.argument(new)
        self.mapped |= {a: self.new.argument(a.name) for a in self._others()}
        last_norm = self._last_norm()
        self._check_outputs(attentions)
        for op in attentions:
            self._mark_plumbing(op)
        layers = {op: read_cross_layer(op) for op in self.cross}
        self.skipped |= {op for layer in layers.values() for op in layer.inside}
        for op in self.old.ops:
            if op is last_norm:
                hidden = self._value(op.operands[0])
                self.mapped[op.operands[0]] = self._op("select_rows", hidden, self.new.argument("logit_rows"), at=op)
            if op.opcode == "attention":
                self._attention(op)
            elif op in layers:
                self._cross_attention(op, layers[op])
            elif op not in self.skipped:
                self._copy(op)
        read = [self.new.argument(CACHE)] if self.cross else []
        self.new.outputs = [self._value(self.old.outputs[0]), *self.caches.values(), *read]
        for op in self.old.ops:
            op.drop_operands()
        return self.new

    def _arguments(self, attentions: list[Op]) -> list[tuple[str, Type]]:
        tokens, rows = symbol("T"), symbol("R")
        if not attentions:
            raise LlamacError("LLC0505", "@step", "has no attention to lower", "run fuse-gqa first")
        names = {chunk: group_names(chunk) for chunk in self.groups}
        tables = tensor(symbol("S"), symbol("N"), I32)
        read: list[tuple[str, Type]] = []
        if self.cross:
            read = [(TABLES, tables), (CACHE, cross_cache(self.cross, self.dtype, self.page))]
        return [
            ("token_ids", tensor(tokens, I32)),
            ("positions", tensor(tokens, I32)),
            ("sequence_of_token", tensor(tokens, I32)),
            *((name, tables) for _, name in names.values()),
            *read[:1],
            ("logit_rows", tensor(rows, I32)),
            *((a.name, a.type) for a in self._others()),
            *((cache, self._cache_type(chunk)) for chunk, (cache, _) in names.items()),
            *read[1:],
        ]

    def _others(self) -> list[Value]:
        """The arguments that are neither tokens nor keys and values: what comes in with pictures."""
        known = ("ids", "positions")
        return [a for a in self.old.arguments if a.name not in known and not a.name.startswith(PAST_PREFIXES)]

    def _cache_type(self, chunk: int) -> CacheType:
        members = self.groups[chunk]
        heads = {(op.operands[1].tensor.shape[0], op.operands[1].tensor.shape[2]) for op in members}
        if len(heads) != 1:
            raise LlamacError("LLC0505", members[0].location, "the layers of one cache differ in their heads")
        ((kv_heads, head_dim),) = heads
        assert isinstance(kv_heads, int) and isinstance(head_dim, int)
        return CacheType(len(members), kv_heads, head_dim, self.page, DTYPES[self.dtype], chunk)

    def _last_norm(self) -> Op:
        value: Value | None = self.old.outputs[0]
        while value is not None and value.producer is not None:
            if value.producer.opcode == "rms_norm":
                return value.producer
            value = value.producer.operands[0] if value.producer.opcode in ("cast", "linear", "all_gather") else None
        raise LlamacError("LLC0505", "head", "the logits are not a projection of a final norm")

    def _check_outputs(self, attentions: list[Op]) -> None:
        """Beside the logits only keys and values may be returned: the cache holds them."""
        state = {v for op in attentions for v in op.operands[1:3]}
        for value in self.old.outputs[1:]:
            if value not in state:
                raise LlamacError("LLC0505", "@step", f"returns {value!r}, which is neither logits nor keys or values")

    def _mark_plumbing(self, attention: Op) -> None:
        """The reshapes and rotations between projections and attention, and those after it, are part of the kernels."""
        stack = list(attention.operands[:3])
        while stack:
            op = stack.pop().producer
            if op is not None and op.opcode in PLUMBING and op not in self.skipped:
                self.skipped.add(op)
                stack.append(op.operands[-1 if op.opcode == "concat" else 0])
        result = attention.result
        heads, tokens, h = attention.result.tensor.shape
        shapes = {"transpose": (tokens, heads, h), "reshape": (tokens, heads * h)}
        for opcode, shape in shapes.items():
            user = next(iter(result.users)) if len(result.users) == 1 else None
            if user is None or user.opcode != opcode or user.result.tensor.shape != shape:
                reason = f"expected one use of the attention, a {opcode} to {list(shape)}"
                raise LlamacError("LLC0505", attention.location, reason)
            self.skipped.add(user)
            result = user.result
        self.mapped[attention.result] = result

    def _attention(self, op: Op) -> None:
        self._check_past(op)
        if op.operands[3] is not self.old.argument("positions"):
            raise LlamacError("LLC0505", op.location, "the mask is not that of %positions")
        chunk = _chunk(op)
        tables_name = group_names(chunk)[1]
        heads, width = op.operands[0].tensor.shape[0], op.operands[0].tensor.shape[2]
        assert isinstance(heads, int) and isinstance(width, int)
        turned = self._turned(op)
        qkv = self._prepared(op, self._qkv(op), turned)
        rows = [self.new.argument(n) for n in ("positions", "sequence_of_token", tables_name)]
        inputs = (self.caches[chunk], qkv, *map(self._value, turned.tables), *rows)
        layer = self.groups[chunk].index(op)
        self.last = (chunk, layer)
        opcode = "rope_append" if turned.tables else "append"
        append = self._multi(opcode, *inputs, at=op, layer=layer, heads=heads)
        self.caches[chunk], q = append.results
        scale = op.attributes["scale"]
        mixed = self._op("attend", q, self.caches[chunk], *rows, at=op, layer=layer, heads=heads, scale=scale)
        self.mapped[self.mapped[op.result]] = mixed
        self.layer += 1

    def _cross_attention(self, op: Op, layer: CrossLayer) -> None:
        heads, width, scale = op.operands[0].tensor.shape[0], op.operands[0].tensor.shape[2], op.attributes["scale"]
        assert isinstance(heads, int) and isinstance(width, int)
        weight = self._value(layer.weight)
        q = self._op("norm_heads", self._value(layer.rows), weight, at=op, heads=heads, head_dim=width, eps=layer.eps)
        names = (CACHE, "vision_start", "vision_stop", "sequence_of_token", TABLES)
        rows = map(self.new.argument, names)
        place = self.cross.index(op)
        self.mapped[layer.mixed] = self._op("attend_range", q, *rows, at=op, layer=place, heads=heads, scale=scale)

    def _place_of_layer(self) -> dict[str, Attribute]:
        """Where the layer of the last attention stands: the choices of its router are counted there."""
        chunk, layer = self.last
        return {"cache": list(self.groups).index(chunk), "layer": layer}

    def _prepared(self, op: Op, qkv: Value, turned: _Turned) -> Value:
        """The joined rows with q and k normed and q tempered, as far as the layer does so."""
        q, k = op.operands[0].tensor, op.operands[1].tensor
        heads, kv_heads, width = q.shape[0], k.shape[0], q.shape[2]
        assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(width, int)
        if turned.eps is not None:
            both = heads + kv_heads
            qkv = self._op("norm_heads", qkv, at=op, heads=both, head_dim=width, eps=turned.eps)
        if turned.temper is not None:
            attributes, positions = turned.temper.attributes, self.new.argument("positions")
            qkv = self._op("temper_heads", qkv, positions, at=op, heads=heads, head_dim=width, **attributes)
        return qkv

    def _check_past(self, op: Op) -> None:
        for operand, name in ((op.operands[1], "past_k."), (op.operands[2], "past_v.")):
            joined = operand.producer
            names = [a.name for a in self.old.arguments if a.name.startswith(name)]
            wanted = names[self.layer] if self.layer < len(names) else f"{name}{self.layer}"
            is_joined = joined is not None and joined.opcode == "concat" and len(joined.operands) == 2
            if joined is None or not is_joined or joined.operands[0].reference != f"%{wanted}":
                raise LlamacError("LLC0505", op.location, f"the keys and values are not appended to %{wanted}")

    def _turned(self, op: Op) -> _Turned:
        """What happens to q and k between projection and attention (LLC0505 when it cannot be done on joined rows)."""
        q, k = op.operands[0].producer, _new_part(op.operands[1]).producer
        temper = q if q is not None and q.opcode == "temper" else None
        if temper is not None:
            q = temper.operands[0].producer
            if temper.operands[1] is not self.old.argument("positions"):
                raise LlamacError("LLC0505", temper.location, "the temperature is not that of %positions")
        is_normed = [x is not None and x.opcode == "unit_rms_norm" for x in (q, k)]
        eps = None
        if q is not None and k is not None and all(is_normed):
            eps = q.attributes["eps"]
            if k.attributes["eps"] != eps:
                raise LlamacError("LLC0505", op.location, "q and k are normed with different eps")
            q, k = q.operands[0].producer, k.operands[0].producer
        elif any(is_normed):
            raise LlamacError("LLC0505", op.location, "one of q and k is normed, the other is not")
        assert eps is None or isinstance(eps, float)
        return _Turned(self._tables(op, q, k), eps, temper)

    def _tables(self, op: Op, q: Op | None, k: Op | None) -> tuple[Value, ...]:
        """cos and sin of a rotated layer, nothing for one without rotation."""
        ropes = [rope for rope in (q, k) if rope is not None and rope.opcode == "rope"]
        if not ropes:
            return ()
        if len(ropes) != 2 or any(rope.attributes["style"] != "half_split" for rope in ropes):
            raise LlamacError("LLC0505", op.location, "q and k are not rotated half-split", "run fold-rope first")
        if ropes[0].operands[1:] != ropes[1].operands[1:]:
            raise LlamacError("LLC0505", op.location, "q and k are rotated by different angles")
        return tuple(ropes[0].operands[1:])

    def _qkv(self, op: Op) -> Value:
        flat = [self._flat(op, v, between) for v, between in zip(op.operands, _BETWEEN, strict=False)]
        if all(v.producer is not None and v.producer.opcode == "linear" for v in flat):
            return self._op("concat", *map(self._value, flat), at=op, axis=-1)
        linear, start = projection(flat[0]), 0
        for v in flat:
            stop = start + _width(v)
            if linear is None or not _is_slice(v, linear.result, start, stop):
                raise LlamacError("LLC0505", op.location, "q, k and v are not the parts of one projection")
            start = stop
        assert linear is not None
        if start != _width(linear.result):
            raise LlamacError("LLC0505", op.location, "the joined projection holds more than q, k and v")
        return self._value(linear.result)

    def _flat(self, op: Op, value: Value, between: Sequence[str]) -> Value:
        """The rows [T, heads * head_dim] that q, k or v is made of by `between` and a split into heads alone."""
        for opcode in between:
            if value.producer is not None and value.producer.opcode == opcode:
                value = value.producer.operands[-1 if opcode == "concat" else 0]
        found = match(_SPLIT, value.producer) if value.producer is not None else None
        if found is not None:
            heads, tokens, h = value.tensor.shape
            order, flat = found.root.attributes["permutation"], found["flat"]
            joined = (tokens, heads * h)
            if flat.producer is not None and order == (1, 0, 2) and flat.tensor.shape == joined:
                return flat
        raise LlamacError("LLC0505", op.location, "q, k and v are not plain projections split into heads")

    def _copy(self, op: Op) -> None:
        attributes = {**op.attributes, **self._place_of_layer()} if op.opcode == "route" else op.attributes
        made = self._multi(op.opcode, *(self._value(v) for v in op.operands), at=op, **attributes)
        self.mapped.update(zip(op.results, made.results, strict=True))

    def _value(self, value: Value) -> Value:
        if isinstance(value, Weight):
            return value
        if value not in self.mapped:
            where = value.producer.location if value.producer is not None else "@step"
            raise LlamacError("LLC0505", where, f"{value!r} has another use than its attention")
        return self.mapped[value]

    def _op(self, opcode: str, *operands: Value, at: Op, **attributes: Attribute) -> Value:
        return self._multi(opcode, *operands, at=at, **attributes).result

    def _multi(self, opcode: str, *operands: Value, at: Op, **attributes: Attribute) -> Op:
        made = make_op(opcode, operands, attributes, at.location)
        self.new.ops.append(made)
        return made


def _new_part(value: Value) -> Value:
    """What is joined to the past."""
    op = value.producer
    return op.operands[-1] if op is not None and op.opcode == "concat" else value


def _is_slice(value: Value, whole: Value, start: int, stop: int) -> bool:
    """Whether `value` is the columns [start, stop) of `whole`."""
    op = value.producer
    if op is None or op.opcode != "slice" or op.operands[0] is not whole:
        return False
    return (op.attributes["start"], op.attributes["stop"]) == (start, stop)


def _width(value: Value) -> int:
    width = value.tensor.shape[-1]
    assert isinstance(width, int)
    return width

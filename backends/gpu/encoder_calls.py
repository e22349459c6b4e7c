"""Calls of an image encoder: every op of its kernel-level graph, over the rows of one tile or of one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from llamac.analysis.weight_plan import PlacedWeight
from llamac.artifact.launch_plan import TABLE_WIDTH, VISION_TOKENS, Buffer, Expression, Pointer
from llamac.errors import LlamacError
from llamac.ir.graph import DataSource, Graph, Module, Op, Value, Weight
from llamac.ir.ops.row_kernels import given_names, layout_of
from llamac.ir.types import CacheType

from . import picture_requests
from .architectures import Architecture
from .arena import place_slots
from .calls import Call, Passed, Slot, StepCalls, StepShape, tiles
from .cost_model import padded_tokens
from .linear_calls import product_grid, type_of
from .picture_calls import gated_add, type_of_cache, width_of
from .picture_requests import BLOCK, WIDEST_HEAD
from .request import Constant

INPUT, OUTPUT = "image.", "image.embeddings"
"""Before the names of an encoder's arguments among the buffers of a plan; the buffer of what it gives, if it does."""

_MOST_DIMS = 6


@dataclass(frozen=True)
class EncoderCalls:
    """The calls of a run of the encoder and the places of its memory; most_rows, shapes: see `launch_plan.Encoder`."""

    body: list[Call]
    places: Mapping[Slot, int]
    arena_bytes: int
    buffers: tuple[Buffer, ...]
    most_rows: int
    shapes: tuple[int, ...]


class _Encoder(StepCalls):
    """The calls of an encoder while its module is walked."""

    results: Mapping[Value, Passed]

    def to(self, value: Value, name: str) -> Passed:
        """Memory for a result: that of a run, a part of another result, or a slot."""
        if value in self.results:
            self.memory[value] = self.results[value]
            return self.results[value]
        return self.slot(value, name)

    def picture(
        self, kernel: str, grid: tuple[Expression, ...], where: str, values: Mapping[str, tuple[Value, Passed]],
        warps: int = 4, **constants: Constant,
    ) -> None:  # fmt: skip
        """A call of `kernels/pictures.py`; values: pointer -> the value whose type it has, and the place."""
        signature = {name: f"*{_type(value)}" for name, (value, _) in values.items()}
        request = picture_requests.picture(self.machine, kernel, signature, warps, **constants)
        self.call(request, grid, where, **{name: place for name, (_, place) in values.items()})

    def given(self, **values: Value) -> dict[str, tuple[Value, Passed]]:
        """Operands by the names of their pointers."""
        return {f"{name}_ptr": (value, self.at(value)) for name, value in values.items()}

    def made(self, op: Op, name: str) -> dict[str, tuple[Value, Passed]]:
        """The result's pointer."""
        return {"y_ptr": (op.result, self.to(op.result, name))}


def _type(value: Value) -> str:
    return type_of_cache(value.cache.dtype.name) if isinstance(value.type, CacheType) else type_of(value)


def encoder_calls(module: Module, placed: list[PlacedWeight], machine: Architecture, units: int) -> EncoderCalls:
    """Every call of one run (LLC0605 for an op that no kernel does)."""
    graph = module.main
    # Of an encoder of whole pictures as many rows are kept as tiles are filled.
    most_rows = next((_fixed(op.operands[0])[0] for op in graph.ops if op.opcode == "take_rows"), 1)
    offsets = {item.weight: item.offset for item in placed}
    used = {v for op in graph.ops for v in op.operands if isinstance(v, Weight)}
    step = _Encoder(machine, units, StepShape("encode", "prefill", most_rows, most_rows), {w: offsets[w] for w in used})
    for argument in graph.arguments:
        own = isinstance(argument.type, CacheType)
        step.memory[argument] = Pointer(argument.name if own else INPUT + argument.name, 0)
    outputs = [value for value in graph.outputs if not isinstance(value.type, CacheType)]
    step.results = {value: Pointer(OUTPUT, 0) for value in outputs}
    for op in graph.ops:
        emit = _EMIT.get(op.opcode)
        if emit is None:
            reason = f"no GPU kernel does {op.opcode}"
            raise LlamacError("LLC0605", op.location or "@encode_image", reason, "compile for a CPU target")
        emit(step, op)
    places, arena = place_slots(step.calls)
    return EncoderCalls(step.calls, places, arena, _buffers(module, outputs), most_rows, _shapes(graph))


def _shapes(graph: Graph) -> tuple[int, ...]:
    """Tiles of each shape of a picture, by the table of their slots."""
    table = next((op.operands[0] for op in graph.ops if op.opcode == "lookup_row"), None)
    if table is None:
        return ()
    if not isinstance(table, Weight) or not isinstance(table.source, DataSource):
        raise LlamacError("LLC0605", "vision.mask", "the slots of tiles are no table of the model")
    slots = np.frombuffer(table.source.data, "<i4").reshape(_fixed(table))
    return tuple(int(count) for count in (slots >= 0).sum(axis=1))


def _buffers(module: Module, outputs: list[Value]) -> tuple[Buffer, ...]:
    """What a run takes and gives, beside the buffers of a step."""
    found = []
    for argument in module.main.arguments:
        if isinstance(argument.type, CacheType):
            continue
        sizes: list[Expression] = [_dim(d) for d in argument.tensor.shape]
        size: Expression = 4
        for dim in sizes[-1:] if argument.name.startswith("page_tables") else sizes:
            size = ("mul", dim, size) if not (isinstance(dim, int) and isinstance(size, int)) else dim * size
        found.append(Buffer(INPUT + argument.name, "image_input", size, type_of(argument)))
    for value in outputs:
        found.append(Buffer(OUTPUT, "image_output", 4 * prod(_fixed(value)), type_of(value)))
    return tuple(found)


def _dim(dim: object) -> Expression:
    """A size of an argument: a number, the vision tokens of a picture, or pages of a row of the tables."""
    if isinstance(dim, int):
        return dim
    return {"M": VISION_TOKENS, "N": TABLE_WIDTH}.get(str(dim), 1)


def _fixed(value: Value) -> list[int]:
    return [d for d in value.tensor.shape if isinstance(d, int)]


def _rows(value: Value) -> Expression:
    """How many rows a value has."""
    return _dim(value.tensor.shape[0])


def _bound(step: StepCalls, value: Value) -> int:
    rows = value.tensor.shape[0]
    return rows if isinstance(rows, int) else step.shape.tokens


def _product(step: _Encoder, op: Op) -> None:
    names = given_names(op.opcode, op.attributes, len(op.operands))
    named, layout = dict(zip(names, op.operands, strict=True)), layout_of(op.attributes)
    request = picture_requests.image_linear(
        step.machine, layout, _bound(step, op.result), step.units, x=type_of(named["x"]), y=type_of(op.result),
        bias=type_of(named["bias"]) if "bias" in named else "", residual="residual" in named,
        gelu=bool(op.attributes["gelu"]),
    )  # fmt: skip
    others = {f"{name}_ptr": step.at(named[name]) for name in ("bias", "residual") if name in named}
    rows = _rows(op.result)
    step.call(
        request, product_grid(request, layout.rows, rows), op.location, x_ptr=step.at(named["x"]),
        y_ptr=step.to(op.result, "product"), tokens=rows, **others, **step.matrix(named["weight"], layout),
    )  # fmt: skip


def _norm(step: _Encoder, op: Op) -> None:
    x, norm, bias = op.operands
    eps, width = op.attributes["eps"], width_of(op)
    assert isinstance(eps, float)
    values = step.given(x=x, norm=norm, bias=bias) | step.made(op, "normed rows")
    step.picture("layer_norm", (_rows(x),), op.location, values, K=width, EPS=eps, BLOCK=padded_tokens(width))


def _rearrange(step: _Encoder, op: Op) -> None:
    sizes, strides, offset = op.attributes["shape"], op.attributes["strides"], op.attributes["offset"]
    assert isinstance(sizes, tuple) and isinstance(strides, tuple) and isinstance(offset, int)
    if len(sizes) > _MOST_DIMS:
        reason = f"a copy by {len(sizes)} strides, and the kernel has {_MOST_DIMS}"
        raise LlamacError("LLC0605", op.location, reason, "compile for a CPU target")
    missing, width = _MOST_DIMS - len(sizes), width_of(op)
    view = [1] * missing + [int(str(n)) for n in sizes], [0] * missing + [int(str(n)) for n in strides]
    values = step.given(x=op.operands[0]) | step.made(op, "gathered rows")
    _copy(step, op, values, view, OFFSET=offset, COLUMNS=width, Y_STRIDE=width, Y_FIRST=0)


def _concat(step: _Encoder, op: Op) -> None:
    """Rows side by side, one copy a part."""
    first, made = 0, step.made(op, "joined rows")
    for part in op.operands:
        rows, columns = _fixed(part)
        view = [1, 1, 1, 1, rows, columns], [0, 0, 0, 0, columns, 1]
        values = step.given(x=part) | made
        _copy(step, op, values, view, OFFSET=0, COLUMNS=columns, Y_STRIDE=width_of(op), Y_FIRST=first)
        first += columns


def _copy(
    step: _Encoder, op: Op, values: Mapping[str, tuple[Value, Passed]], view: tuple[list[int], list[int]],
    **constants: int,
) -> None:  # fmt: skip
    count, sizes = prod(view[0]), {f"S{i}": n for i, n in enumerate(view[0]) if i}
    strides = {f"D{i}": n for i, n in enumerate(view[1])}
    grid = (tiles(count, BLOCK),)
    step.picture("copy_strided", grid, op.location, values, COUNT=count, BLOCK=BLOCK, **constants, **sizes, **strides)


def _class_token(step: _Encoder, op: Op) -> None:
    x, token = op.operands
    rows, count = _fixed(x)[0], op.attributes["tiles"]
    assert isinstance(count, int)
    values, width = step.given(x=x, token=token) | step.made(op, "rows with class tokens"), width_of(op)
    grid, first = (rows + count, tiles(width, BLOCK)), op.attributes["place"] == "first"
    constants: dict[str, Constant] = {"EACH": rows // count, "WIDTH": width, "FIRST": first, "BLOCK": BLOCK}
    step.picture("class_token_rows", grid, op.location, values, 4, **constants)


def _add_table(step: _Encoder, op: Op) -> None:
    x, table = op.operands
    if not isinstance(table, Weight) or table.tensor.shape != x.tensor.shape:
        raise LlamacError("LLC0605", op.location, "no GPU kernel adds these", "compile for a CPU target")
    count, values = prod(_fixed(x)), step.given(x=x, table=table) | step.made(op, "sum")
    step.picture("add_table", (tiles(count, BLOCK),), op.location, values, COUNT=count, BLOCK=BLOCK)


def _places(step: _Encoder, op: Op) -> None:
    x, table, gate, *index = op.operands
    count, each, width = op.attributes["tiles"], op.attributes["each"], width_of(op)
    assert isinstance(count, int) and isinstance(each, int)
    values = step.given(x=x, table=table, gate=gate) | (step.given(index=index[0]) if index else {})
    rows = _fixed(x)[0]
    constants: dict[str, Constant] = {} if index else {"index_ptr": None}
    constants |= {"EACH": each, "TOKENS": rows // count, "WIDTH": width, "BLOCK": BLOCK}
    constants |= {"COMPLEMENT": bool(op.attributes["complement"])}
    grid = (rows, tiles(width, BLOCK))
    step.picture("add_places", grid, op.location, values | step.made(op, "rows in place"), 4, **constants)


def _pad(step: _Encoder, op: Op) -> None:
    (x,), count, padded = op.operands, op.attributes["tiles"], op.attributes["padded"]
    assert isinstance(count, int) and isinstance(padded, int)
    values, width = step.given(x=x) | step.made(op, "padded rows"), width_of(op)
    grid, each = (count * padded, tiles(width, BLOCK)), _fixed(x)[0] // count
    step.picture("pad_tiles", grid, op.location, values, EACH=each, PADDED=padded, WIDTH=width, BLOCK=BLOCK)


def _cos_sin(step: _Encoder, op: Op) -> None:
    count = prod(_fixed(op.operands[0]))
    cos, sin = (step.to(value, name) for value, name in zip(op.results, ("cos", "sin"), strict=True))
    request, angles = picture_requests.cos_sin(count), step.at(op.operands[0])
    step.call(request, (tiles(count, BLOCK),), op.location, angles_ptr=angles, cos_ptr=cos, sin_ptr=sin)


def _rope(step: _Encoder, op: Op) -> None:
    qkv, cos, sin = op.operands
    heads, width = op.attributes["heads"], op.attributes["head_dim"]
    assert isinstance(heads, int) and isinstance(width, int)
    values, half = step.given(qkv=qkv, cos=cos, sin=sin) | step.made(op, "turned q and k"), BLOCK // 2
    grid = (_rows(qkv), tiles(3 * heads * width // 2, half))
    step.picture("rope_pairs", grid, op.location, values, HEADS=heads, HEAD=width, BLOCK=half)


def _attend(step: _Encoder, op: Op) -> None:
    qkv, *slots = op.operands
    a, count = op.attributes, _fixed(qkv)[0]
    heads, width, scale = a["heads"], a["head_dim"], a["scale"]
    assert isinstance(heads, int) and isinstance(width, int) and isinstance(scale, float)
    if width > WIDEST_HEAD:
        reason = f"heads of {width} are wider than {WIDEST_HEAD}, the most that a tile holds"
        raise LlamacError("LLC0605", op.location, reason, "compile for a CPU target, which takes any")
    tokens, padded = (int(str(a[name])) for name in ("tokens", "padded")) if slots else (count, count)
    request = picture_requests.attend_all(
        step.machine, type_of(qkv), type_of(op.result), count, heads, width, scale, tokens, padded, bool(slots)
    )
    grid = (tiles(count, int(str(request.constants["ROWS"]))), heads)
    others = {"slots_ptr": step.at(slots[0])} if slots else {}
    out = step.to(op.result, "attended rows")
    step.call(request, grid, op.location, qkv_ptr=step.at(qkv), out_ptr=out, **others)


def _lookup(step: _Encoder, op: Op) -> None:
    table, index = op.operands
    columns = _fixed(op.result)[0]
    values = step.given(table=table, index=index) | step.made(op, "row of a table")
    step.picture("lookup_row", (1,), op.location, values, 1, COLUMNS=columns, BLOCK=padded_tokens(columns))


def _tile_rows(step: _Encoder, op: Op) -> None:
    count = _fixed(op.result)[0]
    values = step.given(shape=op.operands[0]) | step.made(op, "rows of tables")
    step.picture("tile_rows", (1,), op.location, values, 1, TILES=count, BLOCK=padded_tokens(count))


def _take(step: _Encoder, op: Op) -> None:
    """The first rows lie where all do."""
    step.memory[op.result] = step.at(op.operands[0])


def _norm_heads(step: _Encoder, op: Op) -> None:
    """Done where the rows go to the cache."""
    if any(user.opcode != "append_tokens" for user in op.result.users):
        reason = "no GPU kernel norms heads that do not go to the cache"
        raise LlamacError("LLC0605", op.location, reason, "compile for a CPU target")
    step.memory[op.result] = step.at(op.operands[0])


def _append(step: _Encoder, op: Op) -> None:
    cache, kv, positions, tables = op.operands
    norm, kind, layer = kv.producer, cache.cache, op.attributes["layer"]
    if norm is None or norm.opcode != "norm_heads" or norm.attributes["heads"] != kind.kv_heads:
        reason = "the keys of vision tokens are not normed head by head"
        raise LlamacError("LLC0605", op.location, reason, "compile for a CPU target")
    eps = norm.attributes["eps"]
    assert isinstance(eps, float) and isinstance(layer, int)
    step.memory[op.result] = step.memory[cache]
    values = step.given(kv=norm.operands[0], norm=norm.operands[1], cache=cache, positions=positions, table=tables)
    signature = {name: f"*{_type(value)}" for name, (value, _) in values.items()} | {"layer": "i32"}
    request = picture_requests.picture(
        step.machine, "append_tokens", signature, 1, EPS=eps, KV_HEADS=kind.kv_heads, HEAD=kind.head_dim,
        LAYERS=kind.layers, PAGE=kind.page,
    )  # fmt: skip
    places = {name: place for name, (_, place) in values.items()}
    step.call(request, (_rows(kv), 2 * kind.kv_heads), op.location, layer=layer, **places)


_EMIT: Mapping[str, Callable[[_Encoder, Op], None]] = {
    "linear_image_rows16": _product,
    "layer_norm_rows": _norm,
    "rearrange": _rearrange,
    "concat": _concat,
    "add_class_token": _class_token,
    "add": _add_table,
    "add_places": _places,
    "pad_tiles": _pad,
    "cos_sin": _cos_sin,
    "rope_image_rows": _rope,
    "attend_image_rows": _attend,
    "gated_add": lambda step, op: gated_add(step, op, _rows(op.result)),
    "lookup_row": _lookup,
    "tile_rows": _tile_rows,
    "take_rows": _take,
    "norm_heads": _norm_heads,
    "append_tokens": _append,
}

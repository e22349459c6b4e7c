"""Kernels over weights of the layout `gpu-rows16`: products with what stands before and after them in one op each.

What may be left out of a kernel is said by its attribute `operands`, the names of those that are there, in order:
`"x norm weight residual"`. Activations are floats; `dtype` is what goes to the next kernel of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..dtypes import E4M3FN, F32, I32, U8, DType, round_to
from ..graph import Attribute
from ..layouts import format_of
from ..levels import KERNEL
from ..row_layouts import RowLayout, pack_records, unpack_records
from ..types import TensorType, Type
from .arithmetic import silu
from .cache_ops import LARGEST_E4M3, check_kv_scales, check_rows, query_heads, written
from .normalization import normalized
from .qkv_kernels import heads_of
from .routing import by_expert, indices
from .temperature import check_floor
from .weights import fixed, group_slices, same_rows

FORMS: dict[str, tuple[str, ...]] = {
    "embed_rows16": ("ids", "weight"),
    "linear_rows16": ("x", "rows?", "norm?", "weight", "residual?"),
    "linear_image_rows16": ("x", "weight", "bias?", "residual?"),
    "gate_up_rows16": ("x", "norm?", "weight"),
    "qkv_rows16": (
        "cache", "x", "norm?", "weight", "cos?", "sin?", "positions", "sequence_of_token", "page_tables", "kv_scales?",
    ),
    "expert_gate_up_rows16": ("x", "norm?", "weight", "order", "scores", "offsets"),
    "expert_down_rows16": ("x", "weight", "order", "offsets", "base?"),
}  # fmt: skip
"""Opcode -> its operands in order; those with `?` may be left out."""


E4M3_ABOVE = "e4m3_above"
"""Attribute of a product: activations of steps of more tokens than it says are e4m3fn with a scale a row."""


def rounded_rows(x: Array) -> Array:
    """Each row as e4m3fn times its scale, which is max |row| / 448."""
    scale = np.abs(x).max(axis=1, keepdims=True) / x.dtype.type(LARGEST_E4M3)
    return np.asarray(round_to(x / np.where(scale > 0, scale, 1).astype(x.dtype), E4M3FN) * scale)


def given_names(opcode: str, attributes: Mapping[str, Attribute], count: int) -> list[str]:
    """The names of the operands of an op, in order (OpError when the attribute does not fit the op)."""
    names, form = str(attributes["operands"]).split(), FORMS[opcode]
    known = [name.rstrip("?") for name in form]
    missing = [name for name in form if not name.endswith("?") and name not in names]
    if missing or names != [name for name in known if name in names] or len(names) != count:
        raise OpError(f"attribute 'operands' must name the {count} operands, in order, out of {', '.join(form)}")
    return names


def layout_of(attributes: Mapping[str, Attribute], experts: int = 1, joined: int = 1) -> RowLayout:
    """The layout of an op's weight; `rows` are those of one expert, `joined` when two matrices of them are stacked."""
    rows, columns = attributes["rows"], attributes["columns"]
    assert isinstance(rows, int) and isinstance(columns, int)
    return RowLayout(format_of(str(attributes["format"])), rows * experts * joined, columns)


class _Form:
    """The operands of a signature by name."""

    def __init__(self, opcode: str, s: Signature) -> None:
        self.s = s
        self.names = given_names(opcode, s.attributes, len(s.types))
        s.positive("rows")
        s.positive("columns")

    def has(self, name: str) -> bool:
        return name in self.names

    def at(self, name: str) -> int:
        return self.names.index(name)

    def tensor(self, name: str) -> TensorType:
        return self.s.tensor(self.at(name))

    def weight(self, layout: RowLayout) -> None:
        expected = TensorType((layout.rows, layout.record_bytes), U8)
        if self.tensor("weight") != expected:
            fmt = layout.format.name
            raise OpError(f"{layout.rows} x {layout.columns} in {fmt} are {expected}, got {self.tensor('weight')}")

    def rows(self, columns: int) -> DimLike:
        """The number of activation rows, which have `columns` columns and, with a norm, its weight."""
        x = self.s.ranked(self.at("x"), 2)
        if x.shape[1] != columns or not x.dtype.is_float:
            raise OpError(f"x {x} does not have {columns} float columns")
        if self.has("norm"):
            if self.tensor("norm") != TensorType((columns,), F32) or x.dtype is not F32:
                raise OpError(f"x {x} and norm {self.tensor('norm')} must be f32 over {columns} columns")
            if not isinstance(self.s.attributes.get("eps"), float):
                raise OpError("attribute 'eps' of the norm is missing")
        return x.shape[0]

    def same(self, name: str, type: TensorType) -> None:
        if self.has(name) and self.tensor(name) != type:
            raise OpError(f"{name} must be {type}, got {self.tensor(name)}")


def _between(s: Signature) -> DType:
    dtype = s.attributes["dtype"]
    if not isinstance(dtype, DType) or not dtype.is_float or dtype is E4M3FN:
        raise OpError(f"attribute 'dtype' must be a float that activations can have, not {dtype}")
    return dtype


def _infer_pack_rows(s: Signature) -> Sequence[Type]:
    fmt = format_of(s.text("format"))
    rows, columns = fixed(s.tensor(0))
    if s.tensor(0).dtype is not fmt.quants or not columns:
        raise OpError(f"format {fmt.name} stores {fmt.quants}, got {s.tensor(0)}")
    layout = RowLayout(fmt, rows, columns)
    wanted = [layout.scale] if layout.scale else []
    wanted += [fmt.minimum] if fmt.minimum else []
    groups = 1 if fmt.is_dense else group_slices(columns, fmt.group)
    expected = [TensorType((rows, groups), d) for d in wanted]
    found = [s.tensor(i) for i in range(1, len(s.types))]
    if found != expected:
        raise OpError(f"format {fmt.name} also needs {list(map(str, expected))}, got {list(map(str, found))}")
    return [TensorType((rows, layout.record_bytes), U8)]


def _evaluate_pack_rows(e: Evaluation) -> Sequence[Any]:
    values, *rest = e.inputs
    layout = RowLayout(format_of(e.text("format")), *values.shape)
    return [pack_records(layout, values, *rest)]


class _Values:
    """The inputs of an evaluation by name."""

    def __init__(self, opcode: str, e: Evaluation) -> None:
        self.e = e
        names = given_names(opcode, e.attributes, len(e.inputs))
        self.named = dict(zip(names, e.inputs, strict=True))

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.named[name])

    def x(self) -> Array:
        """The activations: the rows asked for, with their norm."""
        x = np.asarray(self.named["x"], self.e.float_type)
        if "rows" in self.named:
            x = x[indices(self.named["rows"])]
        if "norm" in self.named:
            x = normalized(x, self.e.number("eps")) * self.named["norm"]
        return x if self.e.exact or not self.is_rounded(len(x)) else rounded_rows(x)

    def is_rounded(self, rows: int) -> bool:
        """Whether the step has so many tokens that activations are 8-bit floats; x of an expert is routed rows."""
        above, slots = self.e.attributes.get(E4M3_ABOVE), self.e.attributes.get("top_k", 1)
        assert isinstance(slots, int)
        return isinstance(above, int) and rows // (1 if "scores" in self.named else slots) > above

    def weight(self, experts: int = 1, joined: int = 1) -> Array:
        layout = layout_of(self.e.attributes, experts, joined)
        return np.asarray(unpack_records(layout, self.named["weight"]), self.e.float_type)


def _infer_embed(s: Signature) -> Sequence[Type]:
    form = _Form("embed_rows16", s)
    layout = layout_of(s.attributes)
    form.weight(layout)
    ids = s.ranked(form.at("ids"), 1)
    if ids.dtype is not I32:
        raise OpError(f"ids {ids} must be i32")
    return [TensorType((ids.shape[0], layout.columns), F32)]


def _evaluate_embed(e: Evaluation) -> Sequence[Any]:
    given = _Values("embed_rows16", e)
    return [given.weight()[indices(given["ids"])]]


def _infer_linear(s: Signature) -> Sequence[Type]:
    form, layout = _Form("linear_rows16", s), layout_of(s.attributes)
    form.weight(layout)
    tokens = form.rows(layout.columns)
    if form.has("rows"):
        tokens = s.ranked(form.at("rows"), 1).shape[0]
        form.same("rows", TensorType((tokens,), I32))
    result = TensorType((tokens, layout.rows), F32)
    form.same("residual", result)
    return [result]


def _evaluate_linear(e: Evaluation) -> Sequence[Any]:
    given = _Values("linear_rows16", e)
    y = given.x() @ given.weight().T
    return [e.rounded(y + given["residual"] if "residual" in given.named else y)]


def _infer_gate_up(s: Signature) -> Sequence[Type]:
    form, layout = _Form("gate_up_rows16", s), layout_of(s.attributes, joined=2)
    form.weight(layout)
    return [TensorType((form.rows(layout.columns), layout.rows // 2), _between(s))]


def _swiglu(gate: Array, up: Array) -> Array:
    return np.asarray(silu(gate) * up)


def _evaluate_gate_up(e: Evaluation) -> Sequence[Any]:
    given = _Values("gate_up_rows16", e)
    gate, up = np.split(given.x() @ given.weight(joined=2).T, 2, axis=1)
    return [e.rounded(_swiglu(gate, up))]


def _infer_qkv(s: Signature) -> Sequence[Type]:
    form, layout = _Form("qkv_rows16", s), layout_of(s.attributes)
    form.weight(layout)
    cache, tokens = s.cache(0), form.rows(layout.columns)
    heads = query_heads(s, cache)
    if layout.rows != (heads + 2 * cache.kv_heads) * cache.head_dim:
        raise OpError(f"{layout.rows} rows do not hold {heads} q, {cache.kv_heads} k and v heads of {cache.head_dim}")
    if form.has("cos") != form.has("sin"):
        raise OpError("cos and sin come together")
    angles = TensorType((tokens, cache.head_dim // 2), F32)
    form.same("cos", angles)
    form.same("sin", angles)
    check_rows(s, form.at("positions"), tokens)
    check_kv_scales(s, form.at("page_tables") + 1, cache)
    if "floor" in s.attributes:
        check_floor(s)
    return [cache, TensorType((tokens, heads * cache.head_dim), _between(s))]


def _evaluate_qkv(e: Evaluation) -> Sequence[Any]:
    given = _Values("qkv_rows16", e)
    state = e.inputs[0]
    angles = [given[name] for name in ("cos", "sin") if name in given.named]
    q, k, v = heads_of(e, given.x() @ given.weight().T, state, given["positions"], angles)
    names = ("positions", "sequence_of_token", "page_tables", "kv_scales")
    rows = [given[name] for name in names if name in given.named]
    return [written(e, state, k, v, rows), e.rounded(q.reshape(len(q), -1), 1)]


def _infer_expert_gate_up(s: Signature) -> Sequence[Type]:
    form, experts, k = _Form("expert_gate_up_rows16", s), s.positive("experts"), s.positive("top_k")
    layout = layout_of(s.attributes, experts, 2)
    form.weight(layout)
    slots = form.rows(layout.columns) * k
    form.same("order", TensorType((slots,), I32))
    form.same("scores", TensorType((slots,), F32))
    form.same("offsets", TensorType((experts + 1,), I32))
    return [TensorType((slots, layout.rows // (2 * experts)), _between(s))]


def _evaluate_expert_gate_up(e: Evaluation) -> Sequence[Any]:
    given, experts = _Values("expert_gate_up_rows16", e), e.integer("experts")
    slots = indices(given["order"]) // e.integer("top_k")
    x = given.x()[slots] * given["scores"][:, None].astype(e.float_type)
    gate, up = np.split(given.weight(experts, 2), 2)
    offsets = given["offsets"]
    return [e.rounded(_swiglu(by_expert(x, gate, offsets), by_expert(x, up, offsets)))]


def _infer_expert_down(s: Signature) -> Sequence[Type]:
    form, experts, k = _Form("expert_down_rows16", s), s.positive("experts"), s.positive("top_k")
    layout = layout_of(s.attributes, experts)
    form.weight(layout)
    slots = form.rows(layout.columns)
    form.same("order", TensorType((slots,), I32))
    form.same("offsets", TensorType((experts + 1,), I32))
    result = TensorType((slots, layout.rows // experts), F32)
    if form.has("base") and k != 1:
        raise OpError("only the answers of one expert a token can be added to its row")
    form.same("base", result)
    return [result]


def _evaluate_expert_down(e: Evaluation) -> Sequence[Any]:
    given, experts = _Values("expert_down_rows16", e), e.integer("experts")
    y = by_expert(given.x(), given.weight(experts), given["offsets"])
    if "base" not in given.named:
        return [e.rounded(y)]
    total = given["base"].astype(e.float_type)
    total[indices(given["order"])] += y
    return [e.rounded(total)]


_ROUNDED = {E4M3_ABOVE: "int?"}
_SHAPE = {"operands": "str", "format": "str", "rows": "int", "columns": "int"}
_EXPERTS = _SHAPE | _ROUNDED | {"experts": "int", "top_k": "int"}


def _kernel(opcode: str, attributes: dict[str, str], infer: Any, evaluate: Any, summary: str) -> OpDefinition:
    return OpDefinition(opcode, frozenset({KERNEL}), ("operands*",), attributes, infer, evaluate, summary)


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "pack_rows",
        frozenset({KERNEL}),
        ("values", "scale?", "minimum?"),
        {"format": "str"},
        _infer_pack_rows,
        _evaluate_pack_rows,
        "A matrix as records of the layout `gpu-rows16`: for each row its quants, scales and minima.",
        rows=same_rows,
    ),
    _kernel("embed_rows16", _SHAPE, _infer_embed, _evaluate_embed, "Rows of a packed table, in f32."),
    _kernel(
        "linear_rows16",
        _SHAPE | _ROUNDED | {"eps": "float?"},
        _infer_linear,
        _evaluate_linear,
        "[residual +] [rms_norm](x or the listed rows of it) times the transpose of a packed matrix.",
    ),
    _kernel(
        "gate_up_rows16",
        _SHAPE | _ROUNDED | {"eps": "float?", "dtype": "dtype"},
        _infer_gate_up,
        _evaluate_gate_up,
        "swiglu of [rms_norm](x) times gate and up, stacked in one packed matrix of 2 `rows`.",
    ),
    _kernel(
        "qkv_rows16",
        _SHAPE
        | {"eps": "float?", "dtype": "dtype", "layer": "dim", "heads": "int", "qk_eps": "float?", "floor": "float?"}
        | {"scale": "float?"}
        | _ROUNDED,
        _infer_qkv,
        _evaluate_qkv,
        "[rms_norm](x) times q, k and v; norm of q and k, tempering of q, rotation; k and v cached; results: cache, q.",
    ),
    _kernel(
        "expert_gate_up_rows16",
        _EXPERTS | {"eps": "float?", "dtype": "dtype"},
        _infer_expert_gate_up,
        _evaluate_expert_gate_up,
        "swiglu of the scored [rms_norm](x) of each routed row times its expert's `rows` of gate, then of up.",
    ),
    _kernel(
        "expert_down_rows16",
        _EXPERTS,
        _infer_expert_down,
        _evaluate_expert_down,
        "Each routed row times its expert's matrix, or that added to the row of base that it belongs to.",
    ),
)

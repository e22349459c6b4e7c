"""Ops that define weights from other weights: GGUF blocks, quantization, packing. Each works row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import E4M3FN, F16, F32, I4, I8, U4, U8, DType
from ..gguf_blocks import BLOCKS, block_mins, block_quants, block_scales
from ..graph import Attribute
from ..layouts import PANEL, format_of, pack
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .fitted_scale import fitted_scale

_WEIGHTS = frozenset({CAPTURED, MODEL, KERNEL})
_RANGES: dict[object, tuple[int, int]] = {I4: (-8, 7), U4: (0, 15), I8: (-127, 127), U8: (0, 255)}
"""Smallest and largest quant; i8 leaves out -128 so that its range is symmetric."""


def same_rows(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    """The row rule of ops whose result row r needs row r of every operand."""
    return [(lo, hi)] * len(types)


def fixed(t: TensorType) -> tuple[int, int]:
    """Rows and columns of a weight matrix (OpError when it is not one)."""
    if t.rank != 2 or not all(isinstance(d, int) for d in t.shape):
        raise OpError(f"needs a fixed matrix, got {t}")
    rows, columns = t.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows, columns


def _infer_blocks(part: str) -> Any:
    def infer(s: Signature) -> Sequence[Type]:
        rows, row_bytes = fixed(s.tensor(0))
        if s.text("format") not in BLOCKS:
            raise OpError(f"unknown block format '{s.text('format')}'")
        block = BLOCKS[s.text("format")]
        if s.tensor(0).dtype is not U8 or row_bytes % block.bytes:
            raise OpError(f"{s.tensor(0)} does not hold whole {block.bytes}-byte {s.text('format')} blocks")
        columns = row_bytes // block.bytes * block.values
        dtype = {"quants": block.quants, "scales": block.scale, "mins": block.minimum}[part]
        if dtype is None:
            raise OpError(f"{s.text('format')} blocks have no minimum")
        return [TensorType((rows, columns if part == "quants" else columns // block.group), dtype)]

    return infer


def group_slices(columns: int, group: int) -> int:
    """Groups in a row, the last possibly short."""
    return -(-columns // group)


def _infer_group_values(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    if not s.tensor(0).dtype.is_float or not columns:
        raise OpError(f"cannot quantize {s.tensor(0)}")
    if s.attributes.get("dtype", I4) not in _RANGES:
        raise OpError(f"cannot quantize to {s.attributes['dtype']}")
    return [TensorType((rows, group_slices(columns, s.positive("group"))), F16)]


def grouped(x: Array, group: int) -> Array:
    """[rows, columns] as [rows, groups, group], the last group padded with its own last value."""
    rows, columns = x.shape
    short = -columns % group
    if short:
        x = np.concatenate([x, np.repeat(x[:, -1:], short, axis=1)], axis=1)
    return x.reshape(rows, -1, group)


def _evaluate_group_scale(e: Evaluation) -> Sequence[Any]:
    x = _in_groups(e)
    low, high = _RANGES[e.attributes["dtype"]]
    smallest, largest = _bounds(x)
    if low == 0:
        return [_as_half((largest - np.minimum(smallest, 0)) / np.float32(high))]
    if e.attributes["dtype"] is I4:
        # The range has one step more below zero: the sign of the largest element decides the sign of the scale.
        return [fitted_scale(x, _extreme(x, smallest, largest), e.inputs[0].shape[1])]
    return [_as_half(np.maximum(np.abs(smallest), np.abs(largest)) / np.float32(high))]


def _in_groups(e: Evaluation) -> Array:
    return grouped(e.inputs[0].astype(np.float32, copy=False), e.integer("group"))


def _bounds(x: Array) -> tuple[Array, Array]:
    """The smallest and largest element of each group."""
    rows, groups, group = x.shape
    # Two passes over a transposed copy take half the time of two reductions over a short innermost axis.
    columns = np.ascontiguousarray(x.reshape(-1, group).T)
    return columns.min(axis=0).reshape(rows, groups), columns.max(axis=0).reshape(rows, groups)


def _extreme(x: Array, smallest: Array, largest: Array) -> Array:
    """The element of largest magnitude of each group, with its sign; the first of those that tie."""
    extreme = np.where(largest > -smallest, largest, smallest)
    tied = largest == -smallest
    rows = x[tied]
    extreme[tied] = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(extreme)


def _as_half(x: Array) -> Array:
    # A scale below f16's range becomes 0 and its group zeros: report nothing, lose values under 1e-7.
    return np.asarray(np.clip(x, -65504, 65504).astype(np.float16))


def _evaluate_group_min(e: Evaluation) -> Sequence[Any]:
    return [_as_half(np.minimum(_bounds(_in_groups(e))[0], 0))]


def _infer_group_quants(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    groups = group_slices(columns, s.positive("group"))
    for index in range(1, len(s.types)):
        if s.tensor(index) != TensorType((rows, groups), F16):
            raise OpError(f"{s.tensor(index)} must hold {groups} f16 groups for each of {rows} rows")
    dtype = s.attributes["dtype"]
    if not s.tensor(0).dtype.is_float or dtype not in _RANGES:
        raise OpError(f"cannot quantize {s.tensor(0)} to {dtype}")
    assert isinstance(dtype, DType)
    return [TensorType((rows, columns), dtype)]


def _evaluate_group_quants(e: Evaluation) -> Sequence[Any]:
    columns = e.inputs[0].shape[1]
    x = _in_groups(e)
    scale = e.inputs[1].astype(np.float32)[:, :, None]
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    if len(e.inputs) == 3:
        quants = x - e.inputs[2].astype(np.float32)[:, :, None]
        quants *= inverse
    else:
        quants = x * inverse
    low, high = _RANGES[e.attributes["dtype"]]
    np.rint(quants, out=quants)
    np.clip(quants, low, high, out=quants)
    return [quants.reshape(x.shape[0], -1)[:, :columns].astype(e.result_dtype().storage)]


def _infer_row_scale(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    if not s.tensor(0).dtype.is_float or not columns:
        raise OpError(f"cannot scale the rows of {s.tensor(0)}")
    return [TensorType((rows, 1), F32)]


def _evaluate_row_scale(e: Evaluation) -> Sequence[Any]:
    amax = np.abs(e.inputs[0].astype(np.float32)).max(axis=1, keepdims=True)
    return [amax / np.float32(448)]


def _infer_row_quants(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    if s.tensor(1) != TensorType((rows, 1), F32):
        raise OpError(f"the scale must be {TensorType((rows, 1), F32)}, got {s.tensor(1)}")
    if not s.tensor(0).dtype.is_float:
        raise OpError(f"cannot quantize {s.tensor(0)}")
    return [TensorType((rows, columns), E4M3FN)]


def _evaluate_row_quants(e: Evaluation) -> Sequence[Any]:
    scale = e.inputs[1].astype(np.float32)
    x = e.inputs[0].astype(np.float32)
    # A division, not a product with 1 / scale: that is infinite for the scales of rows below 1e-36.
    scaled = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return [np.clip(scaled, -448, 448).astype(E4M3FN.storage)]


def _infer_pack(s: Signature) -> Sequence[Type]:
    fmt = format_of(s.text("format"))
    rows, columns = fixed(s.tensor(0))
    if s.tensor(0).dtype is not fmt.quants:
        raise OpError(f"format {fmt.name} stores {fmt.quants}, got {s.tensor(0)}")
    if not columns:
        raise OpError(f"cannot pack {s.tensor(0)}")
    wanted = [] if fmt.is_dense and fmt.quants is not E4M3FN else [F32 if fmt.is_dense else fmt.scale]
    wanted += [fmt.minimum] if fmt.minimum else []
    groups = 1 if fmt.is_dense else group_slices(columns, fmt.group)
    found = [s.tensor(i) for i in range(1, len(s.types))]
    expected = [TensorType((rows, groups), d) for d in wanted if d]
    if found != expected:
        raise OpError(f"format {fmt.name} also needs {list(map(str, expected))}, got {list(map(str, found))}")
    return [TensorType((fmt.panels(rows), fmt.panel_bytes(columns)), U8)]


def _evaluate_pack(e: Evaluation) -> Sequence[Any]:
    values, *rest = e.inputs
    scale = rest[0] if rest else None
    minimum = rest[1] if len(rest) > 1 else None
    return [pack(format_of(e.text("format")), values, scale, minimum)]


def _panel_rows(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    rows, _ = fixed(types[0])
    return [(lo * PANEL, min(hi * PANEL, rows))] * len(types)


def _infer_scaled(s: Signature) -> Sequence[Type]:
    weight = s.tensor(0)
    if not weight.dtype.is_float:
        raise OpError(f"{weight} holds no floats")
    return [weight]


def _infer_scaled_columns(s: Signature) -> Sequence[Type]:
    weight, factors = s.tensors()
    _, columns = fixed(weight)
    if not weight.dtype.is_float:
        raise OpError(f"{weight} holds no floats")
    if factors.shape != (columns,) or not factors.dtype.is_float:
        raise OpError(f"{factors} does not hold one float for each of {columns} columns")
    return [weight]


def _evaluate_scaled_columns(e: Evaluation) -> Sequence[Any]:
    weight, factors = (np.asarray(x, e.float_type) for x in e.inputs)
    with np.errstate(over="ignore"):  # the evaluator refuses what is too large, by name
        return [e.rounded(weight * factors)]


def _rows_and_factors(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    return [(lo, hi), (0, 1)]  # factors of rank 1 are one row


def _block_op(part: str, function: Any, summary: str) -> OpDefinition:
    return OpDefinition(
        f"block_{part}",
        _WEIGHTS,
        ("blocks",),
        {"format": "str"},
        _infer_blocks(part),
        lambda e: [function(BLOCKS[e.text("format")], e.inputs[0])],
        summary,
        rows=same_rows,
    )


_GROUP = {"group": "int", "dtype": "dtype"}

OPS: tuple[OpDefinition, ...] = (
    _block_op("quants", block_quants, "The integers inside GGUF blocks."),
    _block_op("scales", block_scales, "The scale of every group inside GGUF blocks."),
    _block_op("mins", block_mins, "The minimum of every group inside GGUF blocks."),
    OpDefinition(
        "group_scale",
        _WEIGHTS,
        ("weight",),
        _GROUP,
        _infer_group_values,
        _evaluate_group_scale,
        "The f16 scale of each group of columns for integers of `dtype`.",
        rows=same_rows,
    ),
    OpDefinition(
        "group_min",
        _WEIGHTS,
        ("weight",),
        {"group": "int"},
        _infer_group_values,
        _evaluate_group_min,
        "The f16 minimum (at most 0) of each group of columns.",
        rows=same_rows,
    ),
    OpDefinition(
        "group_quants",
        _WEIGHTS,
        ("weight", "scale", "minimum?"),
        _GROUP,
        _infer_group_quants,
        _evaluate_group_quants,
        "round((weight - minimum) / scale), ties to even, clamped to the range of `dtype`.",
        rows=same_rows,
    ),
    OpDefinition(
        "row_scale",
        _WEIGHTS,
        ("weight",),
        {},
        _infer_row_scale,
        _evaluate_row_scale,
        "max |row| / 448, the e4m3fn scale of each row.",
        rows=same_rows,
    ),
    OpDefinition(
        "row_quants",
        _WEIGHTS,
        ("weight", "scale"),
        {},
        _infer_row_quants,
        _evaluate_row_quants,
        "weight / scale rounded to e4m3fn.",
        rows=same_rows,
    ),
    OpDefinition(
        "scale_weight",
        _WEIGHTS,
        ("weight",),
        {"factor": "float"},
        _infer_scaled,
        lambda e: [e.rounded(np.asarray(e.inputs[0], e.float_type) * e.float_type.type(e.number("factor")))],
        "weight * factor.",
        rows=same_rows,
    ),
    OpDefinition(
        "scale_columns",
        _WEIGHTS,
        ("weight", "factors"),
        {},
        _infer_scaled_columns,
        _evaluate_scaled_columns,
        "Column c of weight times factors[c].",
        rows=_rows_and_factors,
    ),
    OpDefinition(
        "pack",
        frozenset({KERNEL}),
        ("values", "scale?", "minimum?"),
        {"format": "str"},
        _infer_pack,
        _evaluate_pack,
        "A matrix in the panels of `llamac.ir.layouts`.",
        rows=_panel_rows,
    ),
)

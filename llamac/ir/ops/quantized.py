"""Quantized values: what integers with scales stand for, and the kernels that multiply with packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..dtypes import BF16, E4M3FN, F32, I4, I8, I32, U4, U8, round_to, widen
from ..layouts import WeightFormat, format_of, unpack
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .arithmetic import silu
from .normalization import normalized
from .weights import fixed, group_slices, same_rows


def _infer_dequantize(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    group = s.positive("group")
    if s.tensor(0).dtype not in (I4, U4, I8, U8, E4M3FN):
        raise OpError(f"{s.tensor(0)} does not hold quants")
    for index in range(1, len(s.types)):
        t = s.tensor(index)
        if t.shape != (rows, group_slices(columns, group)) or not t.dtype.is_float:
            raise OpError(f"{t} must hold one float per group of {group} of {s.tensor(0)}")
    return [TensorType((rows, columns), F32)]


def _evaluate_dequantize(e: Evaluation) -> Sequence[Any]:
    quants, scale, *minimum = e.inputs
    group, columns = e.integer("group"), quants.shape[1]
    values = (widen(quants) if quants.dtype == E4M3FN.storage else quants.astype(np.float32)) * _spread(
        scale, group, columns
    )
    if minimum:
        values = values + _spread(minimum[0], group, columns)
    return [values.astype(e.float_type)]


def _spread(per_group: Array, group: int, columns: int) -> Array:
    return np.repeat(widen(per_group), group, axis=1)[:, :columns]


def _infer_quantize_rows(s: Signature) -> Sequence[Type]:
    x, block, padded = s.ranked(0, 2), s.positive("block"), s.positive("padded")
    columns = x.shape[-1]
    if x.dtype is not F32 or not isinstance(columns, int) or padded < columns or padded % block:
        raise OpError(f"cannot quantize {x} in blocks of {block} padded to {padded}")
    rows = x.shape[0]
    return [
        TensorType((rows, padded), I8),
        TensorType((rows, padded // block), F32),
        TensorType((rows, padded // block), I32),
    ]


def _evaluate_quantize_rows(e: Evaluation) -> Sequence[Any]:
    return quantized(e, e.inputs[0])


def quantized(e: Evaluation, values: Array) -> Sequence[Any]:
    """`values` [rows, columns] as quantize_rows gives them: quants, scales, sums."""
    block, padded = e.integer("block"), e.integer("padded")
    x = np.pad(values, ((0, 0), (0, padded - values.shape[1]))).reshape(values.shape[0], -1, block)
    amax = np.abs(x).max(axis=2)
    # Below 2^-120 the inverse would overflow: such a block is zero, as it is in the kernels.
    amax = np.where(amax < 2.0**-120, x.dtype.type(0), amax)
    top = x.dtype.type(127)
    inverse = np.divide(top, amax, out=np.zeros_like(amax), where=amax > 0)
    quants = x * inverse[:, :, None]
    if not e.exact:
        # Exact mode rounds nowhere, here neither: quants times scale is then x itself.
        quants = np.rint(quants).astype(np.int8)
    return [quants.reshape(x.shape[0], -1), amax / top, quants.sum(axis=2, dtype=None if e.exact else np.int32)]


def quantized_types(s: Signature, rows: DimLike, columns: int) -> Sequence[Type]:
    """The three results of quantizing [rows, columns] activations: what `quantize_rows` of them would give."""
    x = TensorType((rows, columns), F32)
    return _infer_quantize_rows(Signature([x], s.attributes))


def _infer_norm_quantized(s: Signature) -> Sequence[Type]:
    x, weight = s.ranked(0, 2), s.tensor(1)
    columns = x.shape[-1]
    if not isinstance(columns, int) or weight != TensorType((columns,), F32):
        raise OpError(f"x {x} does not fit an f32 norm weight {weight}")
    return quantized_types(s, x.shape[0], columns)


def _evaluate_norm_quantized(e: Evaluation) -> Sequence[Any]:
    x, weight = e.inputs
    return quantized(e, normalized(x, e.number("eps")) * weight)


def _infer_swiglu_quantized(s: Signature) -> Sequence[Type]:
    x = s.ranked(0, 2)
    columns = x.shape[-1]
    if not isinstance(columns, int) or columns % 2 or x.dtype is not F32:
        raise OpError(f"the last axis of {x} must hold f32 gate then up")
    return quantized_types(s, x.shape[0], columns // 2)


def _evaluate_swiglu_quantized(e: Evaluation) -> Sequence[Any]:
    gate, up = np.split(e.inputs[0], 2, axis=-1)
    return quantized(e, silu(gate) * up)


def packed_shape(s: Signature, index: int) -> tuple[WeightFormat, int, int]:
    """The format, rows and columns that operand `index` must be packed for."""
    fmt, rows, columns = format_of(s.text("format")), s.positive("rows"), s.positive("columns")
    expected = TensorType((fmt.panels(rows), fmt.panel_bytes(columns)), U8)
    if s.tensor(index) != expected:
        raise OpError(f"a {rows} x {columns} matrix in {fmt.name} is {expected}, got {s.tensor(index)}")
    return fmt, rows, columns


def _with_residual(s: Signature, index: int, result: TensorType) -> Sequence[Type]:
    if len(s.types) > index and s.tensor(index) != result:
        raise OpError(f"the residual must be {result}, got {s.tensor(index)}")
    return [result]


def _infer_dense(s: Signature) -> Sequence[Type]:
    fmt, rows, columns = packed_shape(s, 1)
    x = s.ranked(0, 2)
    if not fmt.is_dense or x.shape[1] != columns or x.dtype is not F32:
        raise OpError(f"x {x} does not fit a dense {rows} x {columns} weight in {fmt.name}")
    return _with_residual(s, 2, x.with_shape(x.shape[0], rows))


def _infer_grouped(s: Signature) -> Sequence[Type]:
    fmt, rows, columns = packed_shape(s, 3)
    return _with_residual(s, 4, TensorType((check_inputs(s, 0, fmt, columns), rows), F32))


def check_inputs(s: Signature, first: int, fmt: WeightFormat, columns: int) -> DimLike:
    """The rows of operands `first` to `first` + 2, which must be quantized activations for a weight of `columns`."""
    quants, scale, total = s.ranked(first, 2), s.tensor(first + 1), s.tensor(first + 2)
    tokens = quants.shape[0]
    if fmt.is_dense or quants != TensorType((tokens, fmt.padded_columns(columns)), I8):
        raise OpError(f"activations {quants} do not fit {fmt.name} with {columns} columns")
    blocks = (tokens, fmt.padded_columns(columns) // fmt.block)
    if scale != TensorType(blocks, F32) or total != TensorType(blocks, I32):
        raise OpError(f"scales {scale} and sums {total} must have shape {list(blocks)}")
    return tokens


def unpacked(e: Evaluation, index: int) -> Array:
    """The matrix that operand `index` packs, as floats."""
    fmt = format_of(e.text("format"))
    return unpack(fmt, e.inputs[index], e.integer("rows"), e.integer("columns")).astype(e.float_type)


def inputs_of(e: Evaluation, x: Array) -> Array:
    """What a dense weight is multiplied with: `x`, rounded to bf16 for formats in pairs (in dtype mode)."""
    return round_to(x, BF16) if format_of(e.text("format")).in_pairs and not e.exact else x


def widened_inputs(e: Evaluation, quants: Array, scale: Array) -> Array:
    """What quantized activations stand for, without their padding."""
    step = np.repeat(scale, quants.shape[1] // scale.shape[1], axis=1)
    return np.asarray((quants.astype(e.float_type) * step.astype(e.float_type))[:, : e.integer("columns")])


def _evaluate_dense(e: Evaluation) -> Sequence[Any]:
    x, _, *residual = e.inputs
    product = inputs_of(e, x) @ unpacked(e, 1).T
    return [e.rounded(residual[0] + product if residual else product)]


def _evaluate_grouped(e: Evaluation) -> Sequence[Any]:
    quants, scale, _, _, *residual = e.inputs
    product = widened_inputs(e, quants, scale) @ unpacked(e, 3).T
    return [e.rounded(residual[0] + product if residual else product)]


def _infer_embed(s: Signature) -> Sequence[Type]:
    _, _, columns = packed_shape(s, 1)
    ids = s.ranked(0, 1)
    if ids.dtype is not I32:
        raise OpError(f"ids {ids} must be i32 [T]")
    return [TensorType((ids.shape[0], columns), F32)]


_PACKED = {"format": "str", "rows": "int", "columns": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "dequantize",
        frozenset({CAPTURED, MODEL, KERNEL}),
        ("quants", "scale", "minimum?"),
        {"group": "int"},
        _infer_dequantize,
        _evaluate_dequantize,
        "quants * scale + minimum, each scale and minimum covering `group` columns.",
        rows=same_rows,
    ),
    OpDefinition(
        "quantize_rows",
        frozenset({KERNEL}),
        ("x",),
        {"block": "int", "padded": "int"},
        _infer_quantize_rows,
        _evaluate_quantize_rows,
        "Activations as int8 with one scale max|x|/127 per block; results: quants, scales, sums of quants.",
    ),
    OpDefinition(
        "rms_norm_quantized",
        frozenset({KERNEL}),
        ("x", "weight"),
        {"eps": "float", "block": "int", "padded": "int"},
        _infer_norm_quantized,
        _evaluate_norm_quantized,
        "quantize_rows of rms_norm, without the values in between.",
    ),
    OpDefinition(
        "swiglu_quantized",
        frozenset({KERNEL}),
        ("gate_up",),
        {"block": "int", "padded": "int"},
        _infer_swiglu_quantized,
        _evaluate_swiglu_quantized,
        "quantize_rows of swiglu, without the values in between.",
    ),
    OpDefinition(
        "linear_dense",
        frozenset({KERNEL}),
        ("x", "weight", "residual?"),
        _PACKED,
        _infer_dense,
        _evaluate_dense,
        "x times a packed float weight, plus the residual.",
    ),
    OpDefinition(
        "linear_grouped",
        frozenset({KERNEL}),
        ("quants", "scales", "sums", "weight", "residual?"),
        _PACKED,
        _infer_grouped,
        _evaluate_grouped,
        "int8 activations times a packed integer weight in integer dot products, plus the residual.",
    ),
    OpDefinition(
        "embed_rows",
        frozenset({KERNEL}),
        ("ids", "weight"),
        _PACKED,
        _infer_embed,
        lambda e: [e.rounded(unpacked(e, 1)[e.inputs[0]])],
        "Row ids[t] of a packed weight, as f32.",
    ),
)

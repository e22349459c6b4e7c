"""Types of every op: what is accepted, what is refused and why, and that nothing else than `OpError` ever comes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.ir.builder import Builder, define_weight, make_op, new_graph
from llamac.ir.definition import OpError
from llamac.ir.dims import symbol
from llamac.ir.dtypes import BF16, DTYPES, E4M3FN, F16, F32, I1, I4, I8, I32, U4, U8
from llamac.ir.graph import Attribute, FileSource, Module
from llamac.ir.levels import LEVELS, is_legal
from llamac.ir.ops.row_kernels import FORMS
from llamac.ir.registry import all_ops, find_op, infer_types
from llamac.ir.types import CacheType, TensorType, Type, tensor

T = symbol("T")
X = tensor(T, 8, F32)
CACHE = CacheType(2, 2, 4, 16, F16)
VISION = CacheType(2, 2, 4, 16, F16, cross=True)
ROWS = [tensor(T, I32), tensor(T, I32), tensor(symbol("S"), symbol("N"), I32)]
TABLE = tensor(T, 2, F32)
LOGITS = tensor(T, 3, F32)
STACK, BACK = tensor(3 * 16, 8, F32), tensor(3 * 8, 16, F32)
"""Three experts that lead from 8 columns to 16 and back."""
SLOTS, SCORES, OFFSETS = tensor(2 * T, I32), tensor(2 * T, F32), tensor(4, I32)
ROUTED = tensor(2 * T, 8, F32)
EXPERTS: dict[str, Attribute] = {"rows": 16, "columns": 8, "experts": 3}

QKV, PAGES = tensor(3, 24, F32), tensor(2, 2048, F32)
HEADS: dict[str, Attribute] = {"heads": 2, "head_dim": 4}
VIEW: dict[str, Attribute] = {"offset": 0, "shape": (2, 4), "strides": (4, 1)}
PLACES: dict[str, Attribute] = {"tiles": 2, "complement": False}
ANGLES = [tensor(3, 2, F32)] * 2
NORM_ROWS: dict[str, Attribute] = {"eps": 1e-5, "dtype": F16}
IMAGE_HEADS: dict[str, Attribute] = {**HEADS, "dtype": F16}
IMAGE_ATTENTION: dict[str, Attribute] = {**IMAGE_HEADS, "scale": 0.5, "tokens": 2, "padded": 3}
VISION_ROWS: dict[str, Attribute] = {"layer": 1, "heads": 4, "scale": 0.5, "eps": 1e-5, "dtype": F16}


def _seen(**changed: Type) -> list[Type]:
    """The operands of attend_vision_rows, which fit VISION_ROWS but for those that are given."""
    fitting: dict[str, Type] = {
        "q": tensor(T, 16, F32), "norm": tensor(4, F32), "cache": VISION, "start": ROWS[0], "stop": ROWS[0],
        "sequences": ROWS[0], "tables": ROWS[2], "gate": tensor(1, F32),
    }  # fmt: skip
    return list({**fitting, **changed}.values())


REFUSED: list[tuple[str, list[Type], dict[str, Attribute], str]] = [
    ("add", [X], {}, "takes operands (a, b), got 1"),
    ("add", [X, tensor(T, 7, F32)], {}, "shapes do not broadcast: [T, 8], [T, 7]"),
    ("add", [X, tensor(T, 8, F16)], {}, "operands must share one dtype, got f32, f16"),
    ("add", [X, CACHE], {}, "operand 1 must be a tensor, not kv_cache"),
    ("div", [tensor(2, I32), tensor(2, I32)], {}, "needs a float operand, got tensor<2 x i32>"),
    ("rsqrt", [tensor(2, I8)], {}, "needs a float operand"),
    ("erf", [tensor(2, I8)], {}, "needs a float operand"),
    ("tanh", [tensor(2, I32)], {}, "needs a float operand"),
    ("less", [X, tensor(8, F16)], {}, "operands must share one dtype"),
    ("all_reduce", [X], {"ranks": 1}, "attribute 'ranks' must be at least 2, not 1"),
    ("all_reduce", [X, tensor(T, 4, F32)], {"ranks": 2}, "the residual tensor<T x 4 x f32> is not of the type"),
    ("all_gather", [tensor(T, 8, I32)], {"ranks": 2}, "holds no rows of floats"),
    ("part", [tensor(6, 5, F32)], {"axis": 1, "start": 3, "stop": 6}, "is no part of axis 1"),
    ("part", [tensor(6, 5, F32)], {"axis": 0, "start": 2, "stop": 2}, "is no part of axis 0"),
    ("constant", [], {"value": 1, "dtype": F32}, "attribute 'value' must be of kind float, got 1"),
    ("constant", [], {"value": 1.0, "dtype": "f32"}, "attribute 'dtype' must be of kind dtype"),
    ("cast", [X], {"dtypes": F16, "dtype": F16}, "has no attribute 'dtypes' (did you mean 'dtype'?)"),
    ("reduce_mean", [X], {"axis": 2}, "attribute 'axis' = 2 is outside rank 2"),
    ("reduce_mean", [X], {"axis": True}, "attribute 'axis' must be of kind int"),
    ("reduce_mean", [tensor(2, I32)], {"axis": 0}, "needs a float operand"),
    ("softmax", [tensor(F32)], {"axis": -1}, "outside rank 0"),
    ("softmax", [tensor(2, I32)], {"axis": 0}, "needs a float operand"),
    ("select", [X, X, X], {}, "the condition must be i1, got tensor<T x 8 x f32>"),
    ("select", [tensor(T, 1, I1), X, tensor(T, 8, F16)], {}, "operands must share one dtype"),
    ("reshape", [X], {"shape": (T, 9)}, "cannot reshape tensor<T x 8 x f32> to [T, 9]: 8*T against 9*T"),
    ("reshape", [tensor(6, F32)], {"shape": (-2, -3)}, "a dimension is negative"),
    ("reshape", [X], {"shape": (T, "8")}, "attribute 'shape' must be of kind dims"),
    ("transpose", [X], {"permutation": (0, 0)}, "permutation [0, 0] does not fit"),
    ("transpose", [X], {"permutation": (1, 0, 2)}, "permutation [1, 0, 2] does not fit"),
    ("transpose", [X], {"permutation": (True, False)}, "attribute 'permutation' must be of kind ints"),
    ("broadcast", [X], {"shape": (T, 16)}, "cannot broadcast tensor<T x 8 x f32> to [T, 16]"),
    ("broadcast", [X], {"shape": (T,)}, "cannot broadcast"),
    ("broadcast", [tensor(1, F32)], {"shape": (-1,)}, "has a negative dimension"),
    ("slice", [X], {"axis": 1, "start": 4, "stop": 9}, "slice [4, 9) is outside axis 1"),
    ("slice", [X], {"axis": 1, "start": -1, "stop": 3}, "slice [-1, 3) is outside"),
    ("slice", [X], {"axis": 1, "start": 3, "stop": 3}, "slice [3, 3) is outside"),
    ("slice", [X], {"axis": 0, "start": 0, "stop": 1}, "axis 0 of tensor<T x 8 x f32> is symbolic"),
    ("concat", [], {"axis": 0}, "needs at least one operand"),
    ("concat", [X, tensor(T, 8, F16)], {"axis": 0}, "cannot concatenate"),
    ("concat", [X, tensor(T, 7, F32)], {"axis": 0}, "cannot concatenate"),
    ("iota", [], {"length": -1, "dtype": I32}, "has a negative dimension"),
    ("iota", [], {"length": 1.5, "dtype": I32}, "attribute 'length' must be of kind dim"),
    ("embedding", [X, tensor(T, F32)], {}, "needs a rank-2 table and i32 row numbers"),
    ("select_rows", [X, tensor(T, T, I32)], {}, "needs a rank-2 table and i32 row numbers"),
    ("matmul", [X, X], {}, "cannot multiply"),
    ("matmul", [tensor(2, 3, 4, F32), tensor(3, 4, 5, F32)], {}, "shapes do not broadcast"),
    ("linear", [X, tensor(3, 7, F32)], {}, "expected [rows, in] and [out, in], both float"),
    ("linear", [X, tensor(3, 8, I8)], {}, "both float"),
    ("linear", [X, tensor(3, 8, F32)], {"format": "i5g32s16"}, "'i5g32s16' is not a weight format"),
    ("embedding", [X, tensor(T, I32)], {"format": ""}, "'' is not a weight format"),
    ("expert_linear", [ROUTED, STACK, OFFSETS], {"format": "f33"}, "'f33' is not a weight format"),
    ("swiglu", [X, tensor(T, 4, F32)], {}, "must have one type"),
    ("swiglu", [tensor(T, 7, F32)], {}, "must hold gate then up"),
    ("swiglu", [tensor(F32)], {}, "must be a float tensor with an axis"),
    ("rms_norm", [X, tensor(7, F32)], {"eps": 1e-5}, "does not fit weight"),
    ("rms_norm", [X, tensor(8, I8)], {"eps": 1e-5}, "does not fit weight"),
    ("rms_norm", [tensor(F32), tensor(8, F32)], {"eps": 1e-5}, "does not fit weight"),
    ("concat", [tensor(2, T, 6, 1, F32), tensor(2, T, 6, F32)], {"axis": 3}, "cannot concatenate"),
    ("add_rms_norm", [X, tensor(T, 8, F16), tensor(8, F32)], {"eps": 1e-5}, "must have one type"),
    ("add_rms_norm", [X, X, tensor(7, F32)], {"eps": 1e-5}, "does not fit weight"),
    ("rope_angles", [tensor(T, F32), tensor(2, F32)], {}, "needs i32 positions [T] and f32 frequencies"),
    ("rope", [tensor(2, T, 4, F32), TABLE, TABLE], {"style": "halves"}, "style must be one of half_split, interleaved"),
    ("rope", [tensor(2, T, 4, F32), TABLE, tensor(T, 2, F16)], {"style": "half_split"}, "does not fit cos"),
    ("rope", [tensor(2, T, 5, F32), TABLE, TABLE], {"style": "half_split"}, "does not fit cos"),
    ("rope", [X, TABLE, TABLE], {"style": "half_split"}, "operand 0 must have rank 3"),
    ("rows_to_half_split", [tensor(12, 4, F32)], {"head_dim": 8}, "does not hold whole heads of 8 rows"),
    ("rows_to_half_split", [tensor(12, 4, F32)], {"head_dim": 3}, "does not hold whole heads"),
    ("rows_to_half_split", [tensor(12, 4, F32)], {"head_dim": 0}, "attribute 'head_dim' must be positive, not 0"),
    ("attention", [tensor(3, T, 4, F32), *[tensor(2, 5, 4, F32)] * 2, ROWS[0]], {"scale": 1.0}, "H a multiple of K"),
    ("attention", [tensor(2, T, 4, F32), *[tensor(0, 5, 4, F32)] * 2, ROWS[0]], {"scale": 1.0}, "H a multiple of K"),
    (
        "attention",
        [tensor(2, T, 4, F32), *[tensor(2, 5, 4, F32)] * 2, tensor(5, I32)],
        {"scale": 1.0},
        "must be i32 [T]",
    ),
    ("dequantize", [tensor(4, 64, I8), tensor(4, 3, F16)], {"group": 32}, "must hold one float per group of 32"),
    ("dequantize", [tensor(4, 64, I8), tensor(4, 2, I8)], {"group": 32}, "must hold one float per group of 32"),
    ("dequantize", [tensor(4, 64, I8), tensor(4, 2, F16)], {"group": 0}, "attribute 'group' must be positive"),
    ("dequantize", [tensor(4, 64, F32), tensor(4, 2, F16)], {"group": 32}, "does not hold quants"),
    ("dequantize", [tensor(T, 64, I8), tensor(4, 2, F16)], {"group": 32}, "needs a fixed matrix"),
    ("group_scale", [tensor(4, 64, I8)], {"group": 32, "dtype": I4}, "cannot quantize tensor<4 x 64 x i8>"),
    ("group_scale", [tensor(4, 64, F32)], {"group": 32, "dtype": F32}, "cannot quantize to f32"),
    ("group_min", [tensor(4, 64, F32)], {"group": 0}, "attribute 'group' must be positive"),
    ("group_quants", [tensor(4, 64, F32), tensor(4, 1, F16)], {"group": 32, "dtype": I4}, "must hold 2 f16 groups"),
    ("group_quants", [tensor(4, 64, F32), tensor(4, 2, F16)], {"group": 32, "dtype": I32}, "to i32"),
    ("row_scale", [tensor(4, I8)], {}, "needs a fixed matrix"),
    ("row_scale", [tensor(4, 4, I8)], {}, "cannot scale the rows"),
    ("row_quants", [tensor(4, 64, F32), tensor(4, F32)], {}, "the scale must be tensor<4 x 1 x f32>"),
    ("scale_weight", [tensor(4, 4, I8)], {"factor": 0.5}, "holds no floats"),
    ("scale_columns", [tensor(4, 6, I8), tensor(6, F32)], {}, "holds no floats"),
    ("scale_columns", [tensor(4, 6, F32), tensor(4, F32)], {}, "one float for each of 6 columns"),
    ("scale_columns", [tensor(4, 6, F32), tensor(6, I8)], {}, "one float for each of 6 columns"),
    ("scale_columns", [tensor(6, F32), tensor(6, F32)], {}, "needs a fixed matrix"),
    ("pack", [tensor(4, 64, F32)], {"format": "f33"}, "'f33' is not a weight format such as bf16, e4m3fn or i4g32s16"),
    ("pack", [tensor(4, 64, F16)], {"format": "f32"}, "format f32 stores f32, got tensor<4 x 64 x f16>"),
    ("pack", [tensor(4, 64, I4), tensor(4, 1, F16)], {"format": "i4g32s16"}, "also needs ['tensor<4 x 2 x f16>']"),
    ("pack", [tensor(4, 64, E4M3FN)], {"format": "e4m3fn"}, "also needs ['tensor<4 x 1 x f32>']"),
    ("pack", [tensor(4, 0, F32)], {"format": "f32"}, "cannot pack"),
    ("quantize_rows", [X], {"block": 0, "padded": 32}, "attribute 'block' must be positive"),
    ("quantize_rows", [X], {"block": 32, "padded": 33}, "cannot quantize"),
    ("quantize_rows", [tensor(T, 40, F32)], {"block": 32, "padded": 32}, "cannot quantize"),
    ("quantize_rows", [tensor(T, 8, BF16)], {"block": 32, "padded": 32}, "cannot quantize"),
    ("rms_norm_quantized", [X, tensor(8, F16)], {"eps": 1.0, "block": 32, "padded": 32}, "f32 norm weight"),
    ("swiglu_quantized", [tensor(T, 7, F32)], {"block": 32, "padded": 32}, "must hold f32 gate then up"),
    (
        "head_dense",
        [X, tensor(1, 512, U8), tensor(X.shape[0], F32)],
        {"format": "f32", "rows": 9, "columns": 8, "count": 10},
        "10 logits cannot be the best of 9",
    ),
    (
        "head_dense",
        [X, tensor(1, 512, U8), tensor(X.shape[0], I32)],
        {"format": "f32", "rows": 9, "columns": 8, "count": 3},
        "the inverse temperature must be",
    ),
    (
        "head_grouped",
        [tensor(4, 32, I8), tensor(4, 1, F32), tensor(4, 1, I32), tensor(1, 576, U8), tensor(5, F32)],
        {"format": "i8g32s16", "rows": 9, "columns": 8, "count": 3},
        "the inverse temperature must be",
    ),
    ("linear_dense", [X, tensor(1, 512, U8)], {"format": "f32", "rows": 0, "columns": 8}, "'rows' must be positive"),
    ("linear_dense", [X, tensor(1, 500, U8)], {"format": "f32", "rows": 9, "columns": 8}, "a 9 x 8 matrix in f32 is"),
    ("linear_dense", [X, tensor(1, 320, U8)], {"format": "i4g32s16", "rows": 9, "columns": 8}, "does not fit a dense"),
    (
        "linear_dense",
        [X, tensor(1, 512, U8), tensor(T, 8, F32)],
        {"format": "f32", "rows": 9, "columns": 8},
        "the residual must be tensor<T x 9 x f32>",
    ),
    (
        "linear_grouped",
        [tensor(T, 8, I8), tensor(T, 1, F32), tensor(T, 1, I32), tensor(1, 320, U8)],
        {"format": "i4g32s16", "rows": 9, "columns": 8},
        "activations tensor<T x 8 x i8> do not fit i4g32s16 with 8 columns",
    ),
    (
        "linear_grouped",
        [tensor(T, 32, I8), tensor(T, 2, F32), tensor(T, 1, I32), tensor(1, 320, U8)],
        {"format": "i4g32s16", "rows": 9, "columns": 8},
        "must have shape [T, 1]",
    ),
    (
        "embed_rows",
        [tensor(T, F32), tensor(1, 512, U8)],
        {"format": "f32", "rows": 9, "columns": 8},
        "ids tensor<T x f32> must be i32 [T]",
    ),
    ("rope_append", [CACHE, tensor(T, 32, F32), TABLE, TABLE, *ROWS], {"layer": 2, "heads": 4}, "layer 2 is outside"),
    (
        "rope_append",
        [CACHE, tensor(T, 32, F32), TABLE, TABLE, *ROWS],
        {"layer": 0, "heads": 3},
        "do not share 2 kv heads",
    ),
    (
        "rope_append",
        [CACHE, tensor(T, 30, F32), TABLE, TABLE, *ROWS],
        {"layer": 0, "heads": 4},
        "does not hold 4 q, 2 k",
    ),
    ("rope_append", [CACHE, tensor(T, 32, F32), X, X, *ROWS], {"layer": 0, "heads": 4}, "must be f32 [T, 2]"),
    ("rope_append", [X, tensor(T, 32, F32), TABLE, TABLE, *ROWS], {"layer": 0, "heads": 4}, "must be a kv_cache"),
    ("rope_append", [CACHE, tensor(F32), TABLE, TABLE, *ROWS], {"layer": 0, "heads": 4}, "must have rank 2"),
    (
        "attend",
        [tensor(T, 16, F32), CACHE, ROWS[0], TABLE, ROWS[2]],
        {"layer": 0, "heads": 4, "scale": 1.0},
        "must be i32",
    ),
    ("attend", [tensor(T, 16, F32), CACHE, *ROWS[:2], TABLE], {"layer": 0, "heads": 4, "scale": 1.0}, "page tables"),
    ("attend", [X, CACHE, *ROWS], {"layer": 0, "heads": 4, "scale": 1.0}, "does not hold 4 heads of 4"),
    ("floor", [tensor(2, I32)], {}, "needs a float operand"),
    ("log1p", [tensor(2, I8)], {}, "needs a float operand"),
    ("reduce_sum", [X], {"axis": 2}, "attribute 'axis' = 2 is outside rank 2"),
    ("reduce_sum", [tensor(2, I32)], {"axis": 0}, "needs a float operand"),
    ("floor_divide", [X, X], {}, "needs integer operands, got tensor<T x 8 x f32>"),
    ("floor_divide", [tensor(2, I32), tensor(2, I1)], {}, "needs integer operands, got tensor<2 x i1>"),
    ("floor_divide", [tensor(2, I32), tensor(2, I8)], {}, "operands must share one dtype, got i32, i8"),
    ("floor_divide", [tensor(2, I32), tensor(3, I32)], {}, "shapes do not broadcast"),
    ("equal", [X, tensor(8, F16)], {}, "operands must share one dtype"),
    ("logical_and", [tensor(2, I1), tensor(2, I32)], {}, "needs i1 operands, got tensor<2 x i32>"),
    ("unit_rms_norm", [tensor(F32)], {"eps": 1e-5}, "must be a float tensor with an axis"),
    ("unit_rms_norm", [tensor(T, 8, I32)], {"eps": 1e-5}, "must be a float tensor with an axis"),
    ("unit_rms_norm", [X], {}, "attribute 'eps' is missing"),
    ("attention", [tensor(2, T, 4, F32), *[tensor(2, 5, 4, F32)] * 2, ROWS[0]], {"scale": 1.0, "chunk": 0}, "positive"),
    ("temper", [X, ROWS[0]], {"floor": 4.0, "scale": 0.1}, "operand 0 must have rank 3"),
    ("temper", [tensor(2, T, 4, I32), ROWS[0]], {"floor": 4.0, "scale": 0.1}, "must be float [heads, T, head_dim]"),
    (
        "temper",
        [tensor(2, T, 4, F32), tensor(2, I32)],
        {"floor": 4.0, "scale": 0.1},
        "positions tensor<2 x i32> i32 [T]",
    ),
    ("temper", [tensor(2, T, 4, F32), ROWS[0]], {"floor": 0.0, "scale": 0.1}, "'floor' must be positive, not 0.0"),
    ("temper", [tensor(2, T, 4, F32), ROWS[0]], {"floor": float("nan"), "scale": 0.1}, "must be positive, not nan"),
    ("top_k_mask", [LOGITS], {"top_k": 0}, "attribute 'top_k' must be positive, not 0"),
    ("top_k_mask", [LOGITS], {"top_k": 4}, "cannot choose 4 of the experts that tensor<T x 3 x f32> scores"),
    ("top_k_mask", [tensor(T, T, F32)], {"top_k": 1}, "cannot choose 1 of the experts"),
    ("top_k_mask", [tensor(T, 3, I32)], {"top_k": 1}, "cannot choose 1 of the experts"),
    ("top_k_mask", [tensor(3, F32)], {"top_k": 1}, "operand 0 must have rank 2"),
    ("moe", [X, tensor(5, 3, F32), STACK, STACK, BACK], {"top_k": 1}, "do not fit"),
    ("moe", [X, LOGITS, STACK, tensor(48, 9, F32), BACK], {"top_k": 1}, "do not fit"),
    ("moe", [X, LOGITS, tensor(47, 8, F32), STACK, BACK], {"top_k": 1}, "does not hold 3 experts over 8 inputs"),
    ("moe", [X, LOGITS, tensor(48, 9, F32), STACK, BACK], {"top_k": 1}, "does not hold 3 experts over 8 inputs"),
    ("moe", [X, LOGITS, tensor(48, 8, I8), tensor(48, 8, I8), BACK], {"top_k": 1}, "does not hold 3 experts"),
    (
        "moe",
        [X, LOGITS, STACK, STACK, tensor(3 * 9, 16, F32)],
        {"top_k": 1},
        "does not lead back to tensor<T x 8 x f32>",
    ),
    ("moe", [X, LOGITS, STACK, STACK, BACK], {"top_k": 4}, "cannot choose 4 of the experts"),
    ("route", [LOGITS], {"top_k": 4}, "cannot choose 4 of the experts"),
    ("route", [tensor(T, 3, I32)], {"top_k": 1}, "cannot choose 1 of the experts"),
    ("gather_routed", [X, SLOTS, SCORES], {"top_k": 1}, "does not have 1 slots a token"),
    ("gather_routed", [X, SCORES, SCORES], {"top_k": 2}, "operand 1 must be i32 [slots]"),
    ("gather_routed", [X, SLOTS, SLOTS], {"top_k": 2}, "operand 2 must be f32 [slots]"),
    ("gather_routed", [tensor(T, 8, I32), SLOTS, SCORES], {"top_k": 2}, "does not have 2 slots a token"),
    ("expert_linear", [ROUTED, STACK, tensor(symbol("E"), I32)], {}, "expected float rows and i32 [experts + 1]"),
    ("expert_linear", [ROUTED, STACK, tensor(4, F32)], {}, "expected float rows and i32 [experts + 1]"),
    ("expert_linear", [ROUTED, STACK, tensor(6, I32)], {}, "does not hold 5 experts over 8 inputs"),
    ("expert_linear", [ROUTED, STACK, tensor(1, I32)], {}, "does not hold 0 experts over 8 inputs"),
    ("scatter_routed", [ROUTED, SLOTS, X], {"top_k": 1}, "does not hold 1 rows for each row"),
    ("scatter_routed", [ROUTED, tensor(T, I32), X], {"top_k": 2}, "does not hold 2 rows for each row"),
    ("scatter_routed", [ROUTED, SLOTS, tensor(T, 7, F32)], {"top_k": 2}, "cannot be added to"),
    ("scatter_routed", [ROUTED, SLOTS, tensor(T, 8, F16)], {"top_k": 2}, "cannot be added to"),
    (
        "expert_linear_dense",
        [ROUTED, tensor(3, 512, U8), OFFSETS],
        {"format": "f32", "rows": 20, "columns": 8, "experts": 3},
        "experts of 20 rows do not fill whole panels of 16",
    ),
    (
        "expert_linear_dense",
        [ROUTED, tensor(2, 512, U8), OFFSETS],
        {"format": "f32", **EXPERTS},
        "3 16 x 8 matrices in f32 are tensor<3 x 512 x u8>, got tensor<2 x 512 x u8>",
    ),
    (
        "expert_linear_dense",
        [ROUTED, tensor(3, 512, U8), tensor(3, I32)],
        {"format": "f32", **EXPERTS},
        "offsets tensor<3 x i32> must be i32 [4]",
    ),
    (
        "expert_linear_dense",
        [tensor(T, 7, F32), tensor(3, 512, U8), OFFSETS],
        {"format": "f32", **EXPERTS},
        "does not fit dense experts over 8 columns in f32",
    ),
    (
        "expert_linear_dense",
        [tensor(T, 8, BF16), tensor(3, 512, U8), OFFSETS],
        {"format": "f32", **EXPERTS},
        "does not fit dense experts",
    ),
    (
        "expert_linear_grouped",
        [tensor(T, 8, I8), tensor(T, 1, F32), tensor(T, 1, I32), tensor(3, 320, U8), OFFSETS],
        {"format": "i4g32s16", **EXPERTS},
        "activations tensor<T x 8 x i8> do not fit i4g32s16 with 8 columns",
    ),
    (
        "expert_linear_grouped",
        [tensor(T, 32, I8), tensor(T, 2, F32), tensor(T, 1, I32), tensor(3, 320, U8), OFFSETS],
        {"format": "i4g32s16", **EXPERTS},
        "must have shape [T, 1]",
    ),
    ("append", [CACHE, tensor(T, 32, F32), *ROWS], {"layer": 2, "heads": 4}, "layer 2 is outside"),
    ("append", [CACHE, tensor(T, 32, F32), *ROWS, tensor(2, F32)], {"layer": 0, "heads": 4}, "must hold f32 scales"),
    ("cache_scales", [], {"key": 0.0, "value": 1.0, "heads": 2}, "must be positive numbers, not 0.0"),
    ("cache_scales", [], {"key": 1.0, "value": 1e-60, "heads": 2}, "must be positive numbers, not 1.0 and 1e-60"),
    ("cache_scales", [], {"key": 1.0, "value": 1.0, "heads": 0}, "must be positive"),
    ("append", [CACHE, tensor(T, 30, F32), *ROWS], {"layer": 0, "heads": 4}, "does not hold 4 q, 2 k"),
    ("append", [CACHE, tensor(T, 32, F32), ROWS[0], TABLE, ROWS[2]], {"layer": 0, "heads": 4}, "must be i32"),
    ("append", [X, tensor(T, 32, F32), *ROWS], {"layer": 0, "heads": 4}, "must be a kv_cache"),
    (
        "norm_heads",
        [tensor(T, 8, F16)],
        {"heads": 2, "head_dim": 4, "eps": 1e-5},
        "does not begin with 2 f32 heads of 4",
    ),
    ("norm_heads", [X], {"heads": 3, "head_dim": 4, "eps": 1e-5}, "does not begin with 3 f32 heads of 4"),
    ("norm_heads", [X], {"heads": 0, "head_dim": 4, "eps": 1e-5}, "attribute 'heads' must be positive"),
    ("norm_heads", [tensor(8, F32)], {"heads": 2, "head_dim": 4, "eps": 1e-5}, "operand 0 must have rank 2"),
    (
        "temper_heads",
        [X, tensor(5, I32)],
        {"heads": 2, "head_dim": 4, "floor": 4.0, "scale": 0.1},
        "positions tensor<5 x i32> must be i32 [T]",
    ),
    (
        "temper_heads",
        [X, ROWS[0]],
        {"heads": 2, "head_dim": 5, "floor": 4.0, "scale": 0.1},
        "does not begin with 2 f32 heads of 5",
    ),
    (
        "temper_heads",
        [X, ROWS[0]],
        {"heads": 2, "head_dim": 4, "floor": -1.0, "scale": 0.1},
        "attribute 'floor' must be positive, not -1.0",
    ),
    ("call", [X], {"callee": "f", "carried": 2, "layer": 0}, "cannot carry 2 of 1 operands"),
    ("block_quants", [tensor(2, 18, I8)], {"format": "q4_0"}, "does not hold whole 18-byte q4_0 blocks"),
    ("block_scales", [tensor(2, 18, U8)], {"format": "q4_7"}, "unknown block format"),
    ("block_mins", [tensor(2, 18, U8)], {"format": "q4_0"}, "have no minimum"),
    ("unpack_columns", [tensor(2, 3, I32)], {"bits": 3, "columns": 24}, "must be 4 or 8"),
    ("unpack_columns", [tensor(2, 3, F32)], {"bits": 4, "columns": 24}, "does not hold 32-bit words"),
    ("unpack_columns", [tensor(2, 3, I32)], {"bits": 4, "columns": 25}, "does not hold 25 integers"),
    ("unpack_rows", [tensor(2, 3, I32)], {"bits": 4, "rows": 8}, "does not hold 8 integers"),
    ("unpack_rows", [tensor(2, 3, I32)], {"bits": 4, "rows": 4, "word": 8}, "does not hold pairs of 4-bit integers"),
    ("unpack_rows", [tensor(2, 3, U8)], {"bits": 4, "rows": 6, "word": 8}, "does not hold 6 integers of 4 bits"),
    ("unpack_rows", [tensor(2, 3, I32)], {"bits": 4, "rows": 16, "order": (0, 1)}, "permutation of 0..7"),
    ("unpack_rows", [tensor(4, 3, I32)], {"bits": 8, "rows": 16, "order": tuple(range(8))}, "permutation"),
    ("center_quants", [tensor(2, 3, I8)], {"offset": 0}, "unsigned"),
    ("center_quants", [tensor(2, 3, U4), tensor(1, 3, U4)], {"offset": 0}, "no zero points"),
    ("zero_minimum", [tensor(2, 3, F32), tensor(2, 4, U4)], {"offset": 0}, "no zero point for each"),
    ("spread_columns", [tensor(2, 3, F32)], {"times": 2, "columns": 7}, "does not give 7 columns"),
    ("spread_columns", [tensor(2, 3, F32)], {"times": 2, "columns": 4}, "does not give 4 columns"),
    ("spread_rows", [tensor(2, 3, F32)], {"rows": 4}, "not one row"),
    ("neg", [], {}, "takes operands (x), got 0"),
    ("cross_attention", [X, X, X, *ROWS[:2]], {"scale": 1.0}, "operand 0 must have rank 3"),
    (
        "cross_attention",
        [tensor(3, T, 4, F32), *[tensor(2, 5, 4, F32)] * 2, *ROWS[:2]],
        {"scale": 1.0},
        "with H a multiple of K",
    ),
    (
        "cross_attention",
        [tensor(2, T, 4, F32), *[tensor(2, 5, 4, F32)] * 2, ROWS[0], tensor(5, I32)],
        {"scale": 1.0},
        "start tensor<T x i32> and stop tensor<5 x i32> must be i32 [T]",
    ),
    (
        "attend_range",
        [tensor(T, 16, F32), CACHE, *ROWS[:2], *ROWS[1:]],
        {"layer": 0, "heads": 4, "scale": 1.0},
        "does not hold vision tokens",
    ),
    (
        "attend_range",
        [X, VISION, *ROWS[:2], *ROWS[1:]],
        {"layer": 0, "heads": 4, "scale": 1.0},
        "does not hold 4 heads",
    ),
    (
        "attend_range",
        [tensor(T, 16, F32), VISION, *ROWS[:2], *ROWS[1:]],
        {"layer": 2, "heads": 4, "scale": 1.0},
        "layer 2 is outside",
    ),
    (
        "attend",
        [tensor(T, 16, F32), VISION, *ROWS],
        {"layer": 0, "heads": 4, "scale": 1.0},
        "holds vision tokens, which rows see by ranges",
    ),
    ("gated_add", [X, tensor(T, 9, F32), tensor(1, F32)], {}, "must be floats of one type"),
    ("gated_add", [X, X, tensor(8, F32)], {}, "the gate tensor<8 x f32> is not one number"),
    ("gated_add", [X, X, tensor(1, F32), ROWS[0]], {}, "has a start and no stop"),
    ("gated_add", [X, X, tensor(1, F32), ROWS[0], X], {}, "must be i32 [T]"),
    ("merge_rows", [X, tensor(3, 9, F32), ROWS[0]], {}, "the rows of tensor<3 x 9 x f32> are not like those of"),
    ("merge_rows", [X, tensor(3, 8, F32), tensor(3, I32)], {}, "row numbers tensor<3 x i32> must be i32 [T]"),
    ("norm_heads", [X, tensor(3, F32)], {"heads": 2, "head_dim": 4, "eps": 1e-5}, "does not scale heads of 4"),
    ("layer_norm", [X, tensor(8, F32), tensor(7, F32)], {"eps": 1e-5}, "does not fit weight"),
    ("gelu", [tensor(2, I32)], {}, "needs a float operand"),
    ("cos_sin", [TABLE], {}, "must be a fixed f32 matrix"),
    ("full_attention", [tensor(2, 3, 4, F32), *[tensor(1, 3, 4, F32)] * 2], {"scale": 1.0}, "floats of one type"),
    ("full_attention", [*[tensor(2, 3, 4, F32)] * 3, tensor(4, I1)], {"scale": 1.0}, "must be i1 [3]"),
    ("rearrange", [X], {**VIEW, "columns": 2}, "its shape is not fixed"),
    ("rearrange", [tensor(4, 4, F32)], {**VIEW, "columns": 2, "offset": 9}, "reaches from element 9 to 16"),
    ("rearrange", [tensor(4, 4, F32)], {**VIEW, "columns": 3}, "8 elements do not fill rows of 3"),
    ("rearrange", [tensor(4, 4, F32)], {**VIEW, "columns": 2, "strides": (-4, 1)}, "is no view"),
    ("add_class_token", [tensor(6, 4, F32), tensor(5, F32)], {"tiles": 2, "place": "last"}, "does not fit a class"),
    ("add_class_token", [tensor(6, 4, F32), tensor(4, F32)], {"tiles": 4, "place": "last"}, "the tokens of 4 tiles"),
    ("add_class_token", [tensor(6, 4, F32), tensor(4, F32)], {"tiles": 2, "place": "middle"}, "place = first or last"),
    (
        "linear_biased",
        [X, tensor(1, 512, U8), tensor(8, F32)],
        {"format": "f32", "rows": 9, "columns": 8},
        "do not fit a dense 9 x 8 weight",
    ),
    ("rope_pairs", [QKV, tensor(3, 2, F32), tensor(3, 1, F32)], HEADS, "must be f32 [3, 2]"),
    ("rope_pairs", [tensor(3, 23, F32), *[tensor(3, 2, F32)] * 2], HEADS, "does not hold f32 q, k and v of 2 heads"),
    ("token_pages", [QKV, tensor(2, I32)], HEADS, "must be i32 [3]"),
    ("attend_tokens", [QKV, tensor(2, 2047, F32)], {**HEADS, "scale": 1.0}, "the pages must be tensor<2 x 2048"),
    ("attend_tokens", [QKV, PAGES, tensor(3, I32)], {**HEADS, "scale": 1.0}, "no number of those that are no padding"),
    ("lookup_row", [tensor(3, 2, F32), tensor(1, I32)], {}, "needs an i32 table"),
    ("tile_rows", [tensor(2, I32)], {"tiles": 4}, "must be i32 [1]"),
    ("add_places", [tensor(6, 4, F32), tensor(5, 4, F32), tensor(2, F32)], {**PLACES, "each": 4}, "not one number"),
    ("add_places", [tensor(6, 4, F32), tensor(5, 4, F32), tensor(1, F32)], {**PLACES, "each": 5}, "does not hold 5"),
    (
        "add_places",
        [tensor(6, 4, F32), tensor(5, 4, F32), tensor(1, F32), tensor(3, I32)],
        {**PLACES, "each": 4},
        "must be i32 [2]",
    ),
    ("pad_tiles", [tensor(6, 4, F32)], {"tiles": 2, "padded": 2}, "at most 2 each"),
    ("tile_padding", [tensor(2, I32)], {"tokens": 3, "padded": 2}, "of at most 2 tokens each"),
    ("order_tokens", [tensor(2, F32)], {"tokens": 2, "padded": 2}, "must be i32"),
    ("take_rows", [X, ROWS[0]], {}, "is not a fixed number of float rows"),
    ("append_tokens", [CACHE, tensor(T, 16, F32), ROWS[0], ROWS[2]], {"layer": 0}, "k and v heads of vision tokens"),
    ("append_tokens", [VISION, tensor(T, 16, F32), ROWS[0], ROWS[2]], {"layer": 2}, "layer 2 is outside"),
    ("append_tokens", [VISION, tensor(T, 16, F32), ROWS[2], ROWS[2]], {"layer": 0}, "positions"),
    ("columns_to_parts", [tensor(2, 7, F32)], {"first": 2, "parts": 3}, "are not those of 3 parts"),
    ("layer_norm_rows", [X, tensor(8, F32), tensor(7, F32)], NORM_ROWS, "fit weight tensor<8 x f32> and bias tensor<7"),
    (
        "layer_norm_rows",
        [tensor(T, 8, F16), *[tensor(8, F32)] * 2],
        NORM_ROWS,
        "x tensor<T x 8 x f16> must be f32 rows",
    ),
    ("layer_norm_rows", [X, tensor(8, I8), tensor(8, F32)], NORM_ROWS, "fit weight tensor<8 x i8>"),
    ("layer_norm_rows", [X, *[tensor(8, F32)] * 2], {**NORM_ROWS, "dtype": E4M3FN}, "can have, not e4m3fn"),
    ("layer_norm_rows", [X, *[tensor(8, F32)] * 2], {**NORM_ROWS, "dtype": I32}, "must be a float that activations"),
    ("rope_image_rows", [QKV, *ANGLES[1:], tensor(3, 1, F32)], IMAGE_HEADS, "must be tensor<3 x 2 x f32>"),
    ("rope_image_rows", [QKV, tensor(3, 2, F16), *ANGLES[1:]], IMAGE_HEADS, "cos tensor<3 x 2 x f16> and sin"),
    ("rope_image_rows", [tensor(3, 23, F32), *ANGLES], IMAGE_HEADS, "does not hold q, k and v of 2 heads of 4 each"),
    ("rope_image_rows", [tensor(T, 24, F32), *ANGLES], IMAGE_HEADS, "tensor<T x 24 x f32> does not hold q, k and v"),
    (
        "rope_image_rows",
        [tensor(3, 18, F32), *[tensor(3, 1, F32)] * 2],
        {**IMAGE_HEADS, "head_dim": 3},
        "must be tensor<3 x 1 x f32>",
    ),
    ("rope_image_rows", [QKV, *ANGLES], {**IMAGE_HEADS, "dtype": E4M3FN}, "can have, not e4m3fn"),
    ("attend_image_rows", [tensor(3, 24, I32)], IMAGE_ATTENTION, "tensor<3 x 24 x i32> does not hold q, k and v"),
    ("attend_image_rows", [QKV], {**IMAGE_ATTENTION, "heads": 0}, "attribute 'heads' must be positive"),
    ("attend_image_rows", [QKV, tensor(2, I32)], IMAGE_ATTENTION, "are not i32, one for each 3 of 3 rows"),
    ("attend_image_rows", [QKV, tensor(1, F32)], IMAGE_ATTENTION, "slots tensor<1 x f32> are not i32"),
    ("attend_image_rows", [QKV, tensor(1, I32)], {**IMAGE_ATTENTION, "padded": 2}, "one for each 2 of 3 rows"),
    ("attend_image_rows", [QKV, tensor(1, I32)], {**IMAGE_HEADS, "scale": 0.5}, "slots need the attributes 'tokens'"),
    ("attend_image_rows", [QKV, tensor(1, I32)], {**IMAGE_ATTENTION, "tokens": 4}, "3 rows do not hold 4 tokens each"),
    ("attend_image_rows", [QKV], {**IMAGE_ATTENTION, "dtype": I8}, "can have, not i8"),
    ("attend_vision_rows", _seen(cache=CACHE), VISION_ROWS, "which holds vision tokens"),
    ("attend_vision_rows", _seen(q=X), VISION_ROWS, "does not hold 4 heads for kv_cache"),
    ("attend_vision_rows", _seen(), {**VISION_ROWS, "heads": 3}, "3 query heads do not share 2 kv heads evenly"),
    ("attend_vision_rows", _seen(), {**VISION_ROWS, "layer": 2}, "layer 2 is outside"),
    ("attend_vision_rows", _seen(norm=tensor(5, F32)), VISION_ROWS, "norm tensor<5 x f32> and gate tensor<1 x f32>"),
    ("attend_vision_rows", _seen(gate=tensor(2, F32)), VISION_ROWS, "a head's width of them and one"),
    ("attend_vision_rows", _seen(start=tensor(5, I32)), VISION_ROWS, "start tensor<5 x i32> and stop tensor<T x i32>"),
    ("attend_vision_rows", _seen(stop=tensor(T, F32)), VISION_ROWS, "stop tensor<T x f32> must be i32 [T]"),
    (
        "attend_vision_rows",
        _seen(sequences=tensor(5, I32)),
        VISION_ROWS,
        "sequence numbers tensor<5 x i32> must be i32",
    ),
    ("attend_vision_rows", _seen(tables=ROWS[0]), VISION_ROWS, "must be i32 [sequences, pages]"),
    ("attend_vision_rows", _seen(), {**VISION_ROWS, "dtype": E4M3FN}, "can have, not e4m3fn"),
]


@pytest.mark.parametrize(("opcode", "types", "attributes", "reason"), REFUSED, ids=[f"{r[0]}: {r[3]}" for r in REFUSED])
def test_refusals(opcode: str, types: list[Type], attributes: dict[str, Attribute], reason: str) -> None:
    with pytest.raises(OpError) as caught:
        infer_types(opcode, types, attributes)
    assert reason in str(caught.value)


def test_every_op_with_operands_has_a_refusal_of_its_own() -> None:
    untested = set(all_ops()) - {row[0] for row in REFUSED}
    # In tests of their own: the head, the gated MLP, and the kernels over weights in rows.
    elsewhere = {"head_dense", "head_grouped", "gated_linear_dense", "gated_linear_grouped", "pack_rows"}
    elsewhere |= {"qkv_dense", "qkv_grouped"}
    elsewhere |= {"linear_rows16", "embed_rows16", "gate_up_rows16", "qkv_rows16"}
    elsewhere |= {"expert_gate_up_rows16", "expert_down_rows16"}
    elsewhere |= {"pack_rows", *FORMS}
    assert untested <= elsewhere | {"sub", "mul", "reciprocal", "pow", "sin", "cos", "sigmoid", "less_equal"}


ACCEPTED: list[tuple[str, list[Type], dict[str, Attribute], list[Type]]] = [
    ("add", [X, tensor(8, F32)], {}, [X]),
    ("add", [tensor(T, 1, 8, F32), tensor(3, 1, F32)], {}, [tensor(T, 3, 8, F32)]),
    ("less_equal", [X, X], {}, [tensor(T, 8, I1)]),
    ("reduce_mean", [X], {"axis": -2}, [tensor(1, 8, F32)]),
    ("reshape", [X], {"shape": (2, T, 4)}, [tensor(2, T, 4, F32)]),
    ("slice", [X], {"axis": -1, "start": 2, "stop": 8}, [tensor(T, 6, F32)]),
    ("concat", [X, tensor(5, 8, F32)], {"axis": -2}, [tensor(T + 5, 8, F32)]),
    ("matmul", [tensor(4, 1, T, 8, F32), tensor(3, 8, 5, F32)], {}, [tensor(4, 3, T, 5, F32)]),
    ("linear", [tensor(T, 8, BF16), tensor(3, 8, F32)], {}, [tensor(T, 3, BF16)]),
    ("embedding", [tensor(9, 8, BF16), tensor(T, I32)], {}, [tensor(T, 8, BF16)]),
    ("swiglu", [tensor(T, 8, BF16)], {}, [tensor(T, 4, BF16)]),
    ("group_scale", [tensor(4, 65, F32)], {"group": 32, "dtype": I4}, [tensor(4, 3, F16)]),
    ("pack", [tensor(17, 3, F32)], {"format": "f32"}, [tensor(2, 192, U8)]),
    ("reduce_sum", [tensor(3, T, 8, F32)], {"axis": -3}, [tensor(1, T, 8, F32)]),
    ("floor_divide", [tensor(T, 1, I32), tensor(I32)], {}, [tensor(T, 1, I32)]),
    ("equal", [tensor(T, 1, I32), tensor(1, 5, I32)], {}, [tensor(T, 5, I1)]),
    ("logical_and", [tensor(T, 5, I1), tensor(1, 5, I1)], {}, [tensor(T, 5, I1)]),
    ("unit_rms_norm", [tensor(2, T, 4, BF16)], {"eps": 1e-5}, [tensor(2, T, 4, BF16)]),
    ("temper", [tensor(2, T, 4, BF16), ROWS[0]], {"floor": 4.0, "scale": 0.1}, [tensor(2, T, 4, BF16)]),
    ("top_k_mask", [tensor(T, 3, BF16)], {"top_k": 3}, [tensor(T, 3, I1)]),
    ("moe", [X, LOGITS, STACK, STACK, BACK], {"top_k": 3}, [X]),
    ("route", [LOGITS], {"top_k": 2}, [SLOTS, SLOTS, SCORES, OFFSETS]),
    ("gather_routed", [X, SLOTS, SCORES], {"top_k": 2}, [ROUTED]),
    ("expert_linear", [ROUTED, STACK, OFFSETS], {}, [tensor(2 * T, 16, F32)]),
    ("scatter_routed", [ROUTED, SLOTS, X], {"top_k": 2}, [X]),
    (
        "expert_linear_dense",
        [ROUTED, tensor(3, 512, U8), OFFSETS],
        {"format": "f32", **EXPERTS},
        [tensor(2 * T, 16, F32)],
    ),
    (
        "expert_linear_grouped",
        [tensor(T, 32, I8), tensor(T, 1, F32), tensor(T, 1, I32), tensor(3, 320, U8), OFFSETS],
        {"format": "i4g32s16", **EXPERTS},
        [tensor(T, 16, F32)],
    ),
    ("append", [CACHE, tensor(T, 32, F32), *ROWS], {"layer": 1, "heads": 4}, [CACHE, tensor(T, 16, F32)]),
    ("norm_heads", [X], {"heads": 1, "head_dim": 4, "eps": 1e-5}, [X]),
    ("temper_heads", [X, ROWS[0]], {"heads": 2, "head_dim": 4, "floor": 4.0, "scale": 0.1}, [X]),
    ("layer_norm_rows", [X, tensor(8, F32), tensor(8, BF16)], NORM_ROWS, [tensor(T, 8, F16)]),
    ("rope_image_rows", [QKV, *ANGLES], IMAGE_HEADS, [tensor(3, 24, F16)]),
    ("attend_image_rows", [QKV, tensor(1, I32)], IMAGE_ATTENTION, [tensor(3, 8, F16)]),
    ("attend_vision_rows", _seen(), VISION_ROWS, [tensor(T, 16, F16)]),
    ("cache_scales", [], {"key": 0.5, "value": 2.0, "heads": 3}, [tensor(6, F32)]),
]


@pytest.mark.parametrize(("opcode", "types", "attributes", "results"), ACCEPTED, ids=[a[0] for a in ACCEPTED])
def test_result_types(opcode: str, types: list[Type], attributes: dict[str, Attribute], results: list[Type]) -> None:
    assert infer_types(opcode, types, attributes) == results


any_dim = st.one_of(st.integers(0, 5), st.sampled_from([16, 18, 32, T, T + 1, 2 * T]))
any_tensor = st.builds(TensorType, st.lists(any_dim, max_size=4).map(tuple), st.sampled_from(list(DTYPES.values())))
any_type = st.one_of(any_tensor, any_tensor, any_tensor, st.just(CACHE))
numbers = st.integers(-3, 40)
ATTRIBUTES: dict[str, st.SearchStrategy[Any]] = {
    "int": numbers,
    "float": st.floats(),
    "str": st.sampled_from(["half_split", "f32", "i4g32s16", "e4m3fn", "q4_0", "q6_k", "first", "other"]),
    "bool": st.booleans(),
    "dtype": st.sampled_from(list(DTYPES.values())),
    "dim": any_dim,
    "dims": st.lists(any_dim, max_size=4).map(tuple),
    "ints": st.lists(numbers, max_size=4).map(tuple),
}


@settings(max_examples=1200, deadline=None)
@given(st.data())
def test_any_types_and_attributes_infer_or_raise_op_error(data: st.DataObject) -> None:
    definition = data.draw(st.sampled_from(list(all_ops().values())))
    count = len(definition.operands) if "?" not in "".join(definition.operands) else data.draw(st.integers(1, 5))
    types = data.draw(st.lists(any_type, min_size=count, max_size=count))
    attributes = {name: data.draw(ATTRIBUTES[kind.rstrip("?")]) for name, kind in definition.attributes.items()}
    try:
        found = infer_types(definition.name, types, attributes)
    except OpError:
        return
    assert found and all(isinstance(t, TensorType | CacheType) for t in found)


def test_ops_are_documented_and_legal_somewhere() -> None:
    for name, definition in all_ops().items():
        assert name == definition.name and definition.summary.endswith(".")
        assert any(is_legal(definition.levels, level) for level in LEVELS)
        assert all(k.rstrip("?") in ATTRIBUTES for k in definition.attributes.values())


def test_unknown_ops_name_the_near_match() -> None:
    with pytest.raises(OpError, match=r"unknown op 'matmull' \(did you mean 'matmul'\?\)"):
        find_op("matmull")


def test_the_builder_locates_errors_and_carries_locations() -> None:
    module = Module("m", "captured")
    b = Builder(module)
    graph = b.graph = new_graph(module, "step", [("x", X)])
    with b.at("layers.3.mlp"):
        made = b.op("neg", graph.arguments[0])
        with b.at("inner"):
            assert b.op("neg", made).producer.location == "inner"  # type: ignore[union-attr]
        with pytest.raises(LlamacError, match=r"LLC0402 layers\.3\.mlp: reduce_mean: attribute 'axis' = 5"):
            b.op("reduce_mean", made, axis=5)
    assert made.producer is not None and made.producer.location == "layers.3.mlp" and b.location == ""


def test_a_weight_is_defined_once() -> None:
    module = Module("m", "captured")
    w = Builder(module).weight("w", tensor(4, F32), FileSource("w", "f32"))
    first = define_weight(module, "h", "cast", w, dtype=F16)
    assert define_weight(module, "h", "cast", w, dtype=F16) is first and list(w.users.values()) == [1]
    with pytest.raises(LlamacError, match="already defined otherwise"):
        define_weight(module, "h", "cast", w, dtype=BF16)
    with pytest.raises(LlamacError, match="already defined otherwise"):
        define_weight(module, "w", "cast", w, dtype=BF16)
    with pytest.raises(LlamacError, match="needs a fixed matrix"):
        make_op("row_scale", (w,), {})

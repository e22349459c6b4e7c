"""Ops over weights: quantization by its definition, packing against the backend's independent packer, row blocks."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from panel16 import DENSE_TYPES, Grouped, GroupedMatrix, pack_dense
from quick import QUICK

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.definition import Evaluation, OpError
from llamac.ir.dtypes import BF16, E4M3FN, F16, F32, I4, I8, I32, U4, U8, DType
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.graph import FileSource, Module, Weight
from llamac.ir.layouts import PANEL, format_of, grouped_name, pack, unpack
from llamac.ir.registry import all_ops, find_op, infer_types
from llamac.ir.types import tensor

GROUPED = [
    Grouped(bits, signed, group, scale, minimum)
    for bits in (4, 8)
    for signed in (True, False)
    for group in (16, 32, 64, 128)
    for scale in (16, 32)
    for minimum in (0, 16, 32)
]
SHAPES = [(1, 1), (16, 32), (17, 33), (5, 130), (40, 64), (33, 257)]


@pytest.mark.parametrize("format", GROUPED, ids=lambda f: f.name)
def test_grouped_packing_is_the_contract_s(format: Grouped) -> None:
    fmt = format_of(format.name)
    assert fmt.block == format.block and fmt.offset == format.offset
    for seed, (rows, columns) in enumerate(SHAPES):
        matrix = GroupedMatrix.random(format, rows, columns, np.random.default_rng(seed))
        quants = (matrix.stored[:, :columns].astype(np.int16) - format.offset).astype(fmt.quants.storage)
        groups = -(-columns // format.group)
        scales = matrix.scales.copy()
        scales[:, groups:] = 0  # groups that hold padding alone carry no scale
        mins = None if matrix.mins is None else matrix.mins.copy()
        if mins is not None:
            mins[:, groups:] = 0
        whole = GroupedMatrix(format, columns, matrix.stored, scales, mins)
        packed = pack(fmt, quants, scales[:, :groups], None if mins is None else mins[:, :groups])
        assert packed.shape == (fmt.panels(rows), fmt.panel_bytes(columns)) and fmt.padded_columns(
            columns
        ) == format.padded(columns)
        expected = whole.pack().reshape(packed.shape)
        inside = _quant_bytes(format, rows, columns, expected.shape)
        assert (packed[inside] == expected[inside]).all()
        assert np.array_equal(unpack(fmt, packed, rows, columns), whole.values())
        assert fmt.packed_bytes(rows, columns) == packed.size


def _quant_bytes(format: Grouped, rows: int, columns: int, shape: tuple[int, int]) -> np.ndarray:
    """Bytes that stand for rows of the matrix: the quants of rows that pad the last panel may hold anything."""
    inside = np.ones(shape, bool)
    padded = format.padded(columns)
    lanes = np.arange(padded * 16 * format.bits // 8) // 4 % 16
    short = rows % 16
    if short:
        inside[-1, : len(lanes)] = lanes < short
    return inside


@pytest.mark.parametrize("name", DENSE_TYPES)
def test_dense_packing_is_the_contract_s(name: str) -> None:
    fmt = format_of(name)
    for seed, (rows, columns) in enumerate(SHAPES):
        random = np.random.default_rng(seed)
        matrix = random.standard_normal((rows, columns)).astype(DENSE_TYPES[name])
        scale = random.uniform(0.5, 2, rows).astype(np.float32) if name == "e4m3fn" else None
        packed = pack(fmt, matrix, None if scale is None else scale[:, None], None)
        assert (packed.reshape(-1) == pack_dense(matrix, scale)).all()
        expected = matrix.astype(np.float32) * (1 if scale is None else scale[:, None])
        assert np.array_equal(unpack(fmt, packed, rows, columns), expected)


@pytest.mark.parametrize("name", ["i4", "i4g31s16", "i5g32s16", "i4g32s16m8", "f64", "", "i4g32", "u4g32s16m16x"])
def test_malformed_format_names(name: str) -> None:
    with pytest.raises(OpError, match="is not a weight format"):
        format_of(name)


def test_format_names_round_trip() -> None:
    for format in GROUPED:
        fmt = format_of(format.name)
        assert fmt.scale is not None and grouped_name(fmt.quants, fmt.group, fmt.scale, fmt.minimum) == format.name


# Quantization by its definition, one group at a time.


def _run(opcode: str, inputs: list[np.ndarray], types: list[DType], **attributes: object) -> np.ndarray:
    given = [tensor(*x.shape, t) for x, t in zip(inputs, types, strict=True)]
    results = infer_types(opcode, given, attributes)  # type: ignore[arg-type]
    (found,) = find_op(opcode).evaluate(Evaluation(inputs, attributes, results, {}, False))  # type: ignore[arg-type]
    assert found.dtype == results[0].dtype.storage
    return np.asarray(found)


def _one_group(values: list[np.float32], dtype: DType, fitted: np.float16) -> tuple[np.float16, np.float16, list[int]]:
    """(scale, minimum, quants) of one group, as the docstrings define them, in plain loops; that of i4 is given."""
    low, high = {I4: (-8, 7), U4: (0, 15), I8: (-127, 127), U8: (0, 255)}[dtype]
    minimum = np.float16(min(0, *values)) if low == 0 else np.float16(0)
    if low == 0:
        scale = np.float16((max(values) - np.float32(min(0, *values))) / np.float32(high))
    elif dtype is I4:
        scale = fitted
    else:
        scale = np.float16(max(map(abs, values)) / np.float32(high))
    inverse = np.float32(1) / np.float32(scale) if scale else np.float32(0)
    quants = [round(float(np.float32(np.float32(v - np.float32(minimum)) * inverse))) for v in values]
    return scale, minimum, [min(max(q, low), high) for q in quants]


@QUICK
@given(
    st.sampled_from([I4, U4, I8, U8]),
    st.sampled_from([16, 32]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=70),
)
def test_group_quantization(dtype: DType, group: int, row: list[float]) -> None:
    x = np.array([row, row[::-1]], np.float32)
    asymmetric = dtype in (U4, U8)
    scale = _run("group_scale", [x], [F32], group=group, dtype=dtype)
    parts = [scale]
    if asymmetric:
        parts.append(_run("group_min", [x], [F32], group=group))
    quants = _run("group_quants", [x, *parts], [F32, *[F16] * len(parts)], group=group, dtype=dtype)
    for r in range(2):
        for g in range(scale.shape[1]):
            values = [np.float32(v) for v in x[r, g * group : (g + 1) * group]]
            expected = _one_group(values, dtype, scale[r, g])
            assert scale[r, g] == expected[0]
            assert not asymmetric or parts[1][r, g] == expected[1]
            assert quants[r, g * group : (g + 1) * group].tolist() == expected[2]
    restored = _run("dequantize", [quants, *parts], [dtype, *[F16] * len(parts)], group=group)
    for g in range(scale.shape[1]):
        columns = slice(g * group, (g + 1) * group)
        step = np.abs(scale[:, g : g + 1].astype(np.float32))
        peak = np.abs(x[:, columns]).max(axis=1, keepdims=True)
        if dtype is I4:
            assert _is_no_worse(x[:, columns], restored[:, columns])
        else:
            assert (np.abs(restored[:, columns] - x[:, columns]) <= 0.51 * step + 2e-3 * peak + 1e-7 * 255).all()


def _is_no_worse(x: np.ndarray, restored: np.ndarray) -> bool:
    """The squared error of each row, a group, is at most that of a scale that puts the largest element at -8."""
    x, restored = x.astype(np.float64), restored.astype(np.float64)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = np.where(extreme == 0, 1, extreme / -8)
    plain = np.clip(np.rint(x / scale), -8, 7) * scale
    errors = [np.linalg.norm(a - x, axis=1) for a in (restored, plain)]
    rounding = (np.abs(extreme[:, 0]) * 2.0**-10 + 1e-6) * x.shape[1] ** 0.5  # of a scale in f16
    return bool((errors[0] <= errors[1] + rounding).all())


def test_int4_scale_is_fitted() -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((64, 256)).astype(np.float32)
    errors = {}
    for name in ("fitted", "plain"):
        scale = _run("group_scale", [x], [F32], group=32, dtype=I4)
        if name == "plain":
            groups = x.reshape(64, 8, 32)
            largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
            scale = (largest / -8).astype(np.float16)
        quants = _run("group_quants", [x, scale], [F32, F16], group=32, dtype=I4)
        errors[name] = np.square(_run("dequantize", [quants, scale], [I4, F16], group=32) - x).mean()
    assert errors["fitted"] < 0.92 * errors["plain"]


def test_int4_values_on_a_grid_stay_where_they_are() -> None:
    random = np.random.default_rng(6)
    quants = random.integers(-8, 8, (16, 64)).astype(np.int8)
    quants[:, ::32] = -8
    scale = random.uniform(-1, 1, (16, 2)).astype(np.float16)
    x = _run("dequantize", [quants, scale], [I4, F16], group=32)
    assert np.array_equal(_run("group_scale", [x], [F32], group=32, dtype=I4), scale)
    assert np.array_equal(_run("group_quants", [x, scale], [F32, F16], group=32, dtype=I4), quants)


def test_fp8_rows() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((6, 40)).astype(np.float32)
    x[1], x[2] = 0, x[2] * np.float32(1e-38)
    x[2, 3], x[3, 0] = 0, 1e30
    scale = _run("row_scale", [x], [F32])
    assert np.array_equal(scale, np.abs(x).max(axis=1, keepdims=True) / np.float32(448))
    quants = _run("row_quants", [x, scale], [F32, F32])
    restored = _run("dequantize", [quants, scale], [E4M3FN, F32], group=40)
    assert np.isfinite(restored).all() and not restored[1].any() and restored[2, 3] == 0
    # Half a unit in the last place of 3 bits, or half a subnormal step of 2^-9.
    bound = np.maximum(np.abs(x) * 2.0**-4, scale * 2.0**-10) * (1 + 1e-4)
    normal = scale[:, 0] > 1e-30
    assert (np.abs(restored - x)[normal] <= bound[normal]).all()
    expected = (x[0] / scale[0]).astype(ml_dtypes.float8_e4m3fn)
    assert (quants[0].view(np.uint8) == expected.view(np.uint8)).all()


# Rows.


def _every_weight_op() -> tuple[Module, dict[str, np.ndarray]]:
    """A module in which every weight-defining op occurs, over 48 or 35 rows, and the bytes of its files."""
    module = Module("m", "kernel")
    b, random = Builder(module), np.random.default_rng(5)
    files: dict[str, np.ndarray] = {}

    def file(name: str, rows: int, columns: int, encoding: str) -> Weight:
        dtype = U8 if encoding in BLOCKS else {"f32": F32, "i32": I32, "u8": U8}[encoding]
        if encoding in BLOCKS:
            files[name] = np.minimum(random.integers(0, 256, (rows, columns), dtype=np.uint8), 0x7B)
        elif encoding == "f32":
            files[name] = random.standard_normal((rows, columns)).astype(np.float32).view(np.uint8)
        else:
            files[name] = random.integers(0, 256, (rows, columns * dtype.storage.itemsize), dtype=np.uint8)
        return b.weight(name, tensor(rows, columns, dtype), FileSource(name, encoding))

    a, c = file("a", 48, 70, "f32"), file("c", 35, 70, "f32")
    turned = b.define("turned", "rows_to_half_split", a, head_dim=8)
    b.define("other", "concat", a, turned, axis=-1)
    joined = b.define("joined", "concat", turned, c, a, axis=0)
    negative = b.define("negative", "concat", c, a, axis=-2)
    for dtype in (I4, U4):
        base = f"joined.{dtype}"
        parts = [b.define(f"{base}.s", "group_scale", joined, group=32, dtype=dtype)]
        if dtype is U4:
            parts.append(b.define(f"{base}.m", "group_min", joined, group=32))
        quants = b.define(f"{base}.q", "group_quants", joined, *parts, group=32, dtype=dtype)
        b.define(f"{base}.d", "dequantize", quants, *parts, group=32)
        b.define(f"{base}.p", "pack", quants, *parts, format="i4g32s16" if dtype is I4 else "u4g32s16m16")
    scale = b.define("e.s", "row_scale", negative)
    quants = b.define("e.q", "row_quants", negative, scale)
    b.define("e.p", "pack", quants, scale, format="e4m3fn")
    b.define("eighth", "scale_weight", negative, factor=0.125)
    files["norm"] = np.linspace(0.5, 2, 70, dtype=np.float32).view(np.uint8)[None]
    b.define("scaled", "scale_columns", negative, b.weight("norm", tensor(70, F32), FileSource("norm", "f32")))
    b.define("half", "cast", joined, dtype=F16)
    b.define("by_part", "columns_to_parts", joined, first=1, parts=3)
    b.define("half.p", "pack", module.weights["half"], format="f16")
    b.define("half.rows", "pack_rows", module.weights["half"], format="f16")
    blocks = file("k", 37, 2 * 144, "q4_k")
    parts = [b.define(f"k.{p}", f"block_{p}", blocks, format="q4_k") for p in ("quants", "scales", "mins")]
    b.define("k.d", "dequantize", *parts, group=32)
    b.define("k.p", "pack", *parts, format="u4g32s32m32")
    _packed_words(b, file)
    b.define("part.rows", "part", file("whole", 70, 9, "f32"), axis=0, start=13, stop=61)
    b.define("part.columns", "part", file("wide", 43, 9, "f32"), axis=1, start=2, stop=7)
    b.define("kv", "cache_scales", key=0.3, value=2.0, heads=3)
    return module, files


def _packed_words(b: Builder, file: Callable[[str, int, int, str], Weight]) -> None:
    """A weight as GPTQ stores it (words along the rows, zero points along the outputs), and one as AWQ does."""
    words, scale, zeros = file("w", 43, 9, "i32"), file("w.s", 43, 3, "f32"), file("w.z", 6, 3, "i32")
    quants = b.define("w.q", "unpack_columns", words, bits=4, columns=70)
    zeros = b.define("w.zeros", "unpack_rows", zeros, bits=4, rows=43)
    b.define("w.m", "zero_minimum", scale, zeros, offset=1)
    b.define("w.c", "center_quants", quants, offset=0)
    b.define("w.wide", "spread_columns", scale, times=2, columns=5)
    b.define("w.all", "spread_rows", file("one", 1, 3, "f32"), rows=43)
    b.define("awq.q", "unpack_rows", file("awq", 6, 70, "i32"), bits=4, rows=45, order=(0, 4, 1, 5, 2, 6, 3, 7))
    b.define("bytes.q", "unpack_rows", file("bytes", 11, 7, "i32"), bits=8, rows=43)
    b.define("pairs.q", "unpack_rows", file("pairs", 22, 7, "u8"), bits=4, rows=43, word=8)


def test_a_power_of_two_scales_exactly() -> None:
    x = np.random.default_rng(3).standard_normal((4, 40)).astype(np.float32)
    (found,) = [_run("scale_weight", [x], [F32], factor=0.125)]
    assert found.dtype == np.float32 and (found * 8 == x).all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_columns_times_factors_round_once(dtype: DType) -> None:
    random = np.random.default_rng(4)
    x, factors = random.standard_normal((3, 5)).astype(dtype.storage), random.uniform(-2, 2, 5).astype(np.float32)
    module = Module("m", "model")
    b = Builder(module)
    sources = [b.weight("x", tensor(3, 5, dtype), FileSource("x", dtype.name))]
    sources.append(b.weight("g", tensor(5, F32), FileSource("g", "f32")))
    files = {"x": x.view(np.uint8), "g": factors[None].view(np.uint8)}
    found = WeightEvaluator(lambda name, lo, hi: files[name][lo:hi]).whole(b.define("s", "scale_columns", *sources))
    assert found.dtype == dtype.storage
    for row in range(3):
        for column in range(5):
            # Products of an f32 and a narrower float are rounded to f32 first: that decides only exact ties.
            product = np.float32(float(x[row, column]) * float(factors[column]))
            assert found[row, column] == product.astype(dtype.storage)


def test_columns_that_become_too_large_are_refused_by_name() -> None:
    module = Module("m", "model")
    b = Builder(module)
    x, g = (b.weight(n, tensor(*shape, F32), FileSource(n, "f32")) for n, shape in (("x", (1, 2)), ("g", (2,))))
    made = b.define("x.scaled", "scale_columns", x, g)
    large = np.array([[1e30, 1]], np.float32).view(np.uint8)
    with pytest.raises(LlamacError, match=r"LLC0219 x\.scaled: holds values that are not finite, or too large for f32"):
        WeightEvaluator(lambda name, lo, hi: large).whole(made)


def test_blocks_of_rows_are_rows_of_the_whole() -> None:
    module, files = _every_weight_op()
    used = {w.producer.opcode for w in module.weights.values() if w.producer}
    assert used == {name for name, d in all_ops().items() if d.rows is not None}
    evaluator = WeightEvaluator(lambda name, lo, hi: files[name][lo:hi])
    for weight in (w for w in module.weights.values() if w.tensor.rank > 1):
        whole = evaluator.whole(weight)
        rows = weight.tensor.shape[0]
        assert isinstance(rows, int) and whole.shape == weight.tensor.shape
        for step in (1, 7, 16, rows):
            starts = range(0, rows, step)
            parts = [evaluator.rows(weight, lo, min(lo + step, rows)) for lo in starts]
            assert all(p.dtype == weight.tensor.dtype.storage for p in parts), weight.name
            assert (np.concatenate(parts).view(np.uint8) == whole.view(np.uint8)).all(), (weight.name, step)
    scales = np.array([0.3] * 3 + [2] * 3, np.float32)  # rank 1: no rows, but the whole of it
    for found in (evaluator.whole(module.weights["kv"]), evaluator.rows(module.weights["kv"], 0, 1)):
        assert found.dtype == np.float32 and found.tolist() == scales.tolist()


def test_only_the_rows_that_are_needed_are_read() -> None:
    module, files = _every_weight_op()
    read: list[tuple[str, int, int]] = []

    def reader(name: str, lo: int, hi: int) -> np.ndarray:
        read.append((name, lo, hi))
        return files[name][lo:hi]

    evaluator = WeightEvaluator(reader)
    evaluator.rows(module.weights["joined.i4.p"], 3, 5)  # rows 48..79: @c alone
    assert {name for name, _, _ in read} == {"c"} and {(lo, hi) for _, lo, hi in read} == {(0, 32)}
    read.clear()
    evaluator.rows(module.weights["k.p"], 2, 3)
    assert {(lo, hi) for _, lo, hi in read} == {(32, 37)}
    read.clear()
    evaluator.rows(module.weights["turned"], 8, 24)
    assert read == [("a", 8, 24)]


# Kernels over packed weights.


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linears_and_lookups_on_packed_weights(exact: bool, residual: bool) -> None:
    random = np.random.default_rng(9)
    kind = np.float64 if exact else np.float32
    x, added = random.standard_normal((4, 35)).astype(kind), random.standard_normal((4, 21)).astype(kind)
    extra = [added] if residual else []
    extra_types = [tensor(4, 21, F32)] if residual else []
    dense = random.standard_normal((21, 35)).astype(np.float32)
    packed = pack(format_of("f32"), dense, None, None)
    attributes = {"format": "f32", "rows": 21, "columns": 35}
    expected = x @ dense.T.astype(kind) + (added if residual else 0)
    types = [tensor(4, 35, F32), tensor(*packed.shape, U8), *extra_types]
    found = _evaluate("linear_dense", [x, packed, *extra], types, attributes, exact)
    assert np.allclose(found, expected, rtol=1e-12 if exact else 1e-4, atol=1e-12 if exact else 1e-4)
    ids = np.array([20, 0, 20, 7])
    rows = _evaluate("embed_rows", [ids, packed], [tensor(4, I32), types[1]], attributes, exact)
    assert (rows == dense[ids]).all()

    format = Grouped(4, True, 32, 16, 0)
    matrix = GroupedMatrix.random(format, 21, 35, random)
    packed = matrix.pack().reshape(2, -1)
    quantized = find_op("quantize_rows").evaluate(Evaluation([x], {"block": 32, "padded": 64}, [], {}, exact))
    attributes["format"] = format.name
    types = [tensor(4, 64, I8), tensor(4, 2, F32), tensor(4, 2, I32), tensor(*packed.shape, U8), *extra_types]
    found = _evaluate("linear_grouped", [*quantized, packed, *extra], types, attributes, exact)
    q, scale, _ = quantized
    activations = (q.reshape(4, 2, 32).astype(kind) * scale[:, :, None]).reshape(4, 64)[:, :35]
    expected = activations @ matrix.values().T.astype(kind) + (added if residual else 0)
    assert np.allclose(found, expected, rtol=1e-12 if exact else 1e-4, atol=1e-12 if exact else 1e-4)


def _evaluate(opcode: str, inputs: list[np.ndarray], types: list, attributes: dict, exact: bool) -> np.ndarray:
    results = infer_types(opcode, types, attributes)
    (found,) = find_op(opcode).evaluate(Evaluation(inputs, attributes, results, {}, exact))
    assert found.shape == results[0].concrete_shape({})
    return np.asarray(found)


def test_panels_hold_16_rows() -> None:
    assert PANEL == 16 and format_of("f32").panels(17) == 2

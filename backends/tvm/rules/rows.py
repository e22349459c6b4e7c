"""Ops on whole rows: looking up, choosing, joining, normalizing, adding, the gated activation, rotation's tables."""

from __future__ import annotations

import math

from tvm import tirx

from llamac.ir.dtypes import F32

from ..kernel import Kernel
from ..loops import Expression, index
from ..values import f32, rounded, silu, to_float, to_index


def lanes_of(width: int) -> int:
    """The widest vector, at most 16, that divides `width`."""
    return math.gcd(width, 16)


def sum_of_squares(k: Kernel, row: Expression, first: Expression, width: int) -> Expression:
    """The sum over operand 0 [row, first .. first + width) of its squares."""
    lanes = lanes_of(width)
    total = k.code.filled(lanes, 0.0)
    with k.code.loop(width // lanes) as block, k.code.lanes(lanes) as lane:
        value = k.load(0, row, first + block * lanes + lane)
        k.code.add_to(total, lane, value * value)
    return folded(k, total, lanes)


def folded(k: Kernel, cells: Expression, lanes: int) -> Expression:
    """The sum of the first `lanes` elements of a local array, a power of two; the array changes."""
    while lanes > 1:
        lanes //= 2
        with k.code.lanes(lanes) as lane:
            k.code.add_to(cells, lane, cells[lane + lanes])
    return cells[index(0)]


def mean_inverse(k: Kernel, total: Expression, width: int) -> Expression:
    """1 / sqrt(total / width + eps), kept."""
    return k.code.kept(f32(1.0) / tirx.sqrt(total / f32(float(width)) + f32(k.number("eps"))))


def rms_norm(k: Kernel) -> None:
    """x / sqrt(mean(x^2) + eps) * weight."""
    width = k.width()
    with k.code.each(k.rows()) as t:
        inverse = mean_inverse(k, sum_of_squares(k, t, index(0), width), width)
        lanes = lanes_of(width)
        with k.code.loop(width // lanes) as block, k.code.lanes(lanes) as lane:
            at = block * lanes + lane
            k.store(0, [t, at], k.load(0, t, at) * inverse * k.load(1, at))


def norm_heads(k: Kernel) -> None:
    """The first heads of each row over their root mean square; the rest as it is."""
    heads, width = k.integer("heads"), k.integer("head_dim")
    with k.code.each(k.rows()) as t:
        with k.code.loop(heads) as head:
            inverse = mean_inverse(k, sum_of_squares(k, t, head * width, width), width)
            with k.code.loop(width) as i:
                value = k.load(0, t, head * width + i) * inverse
                k.store(0, [t, head * width + i], value * k.load(1, i) if k.has(1) else value)
        _copy_rest(k, t, heads * width)


def temper_heads(k: Kernel) -> None:
    """The first heads of each row times 1 + scale ln(1 + floor((position + 1) / floor)); the rest as it is."""
    columns = k.integer("heads") * k.integer("head_dim")
    with k.code.each(k.rows()) as t:
        blocks = tirx.floor((to_float(k.load(1, t)) + f32(1.0)) / f32(k.number("floor")))
        factor = k.code.kept(tirx.log(f32(1.0) + blocks) * f32(k.number("scale")) + f32(1.0))
        with k.code.loop(columns) as i:
            k.store(0, [t, i], k.load(0, t, i) * factor)
        _copy_rest(k, t, columns)


def _copy_rest(k: Kernel, t: Expression, first: int) -> None:
    rest = k.width() - first
    if rest:
        with k.code.loop(rest) as i:
            k.store(0, [t, first + i], k.load(0, t, first + i))


def add(k: Kernel) -> None:
    """a + b, of equal shapes or with a row added to every row."""
    a, b = (operand.shape for operand in k.op.operands)
    wide, thin = (0, 1) if len(a) >= len(b) else (1, 0)
    shape = k.op.operands[wide].shape
    with k.code.each(k.size(shape[0])) as t:
        if len(shape) == 1:
            k.store(0, [t], k.load(0, t) + k.load(1, t))
            return
        with k.code.loop(k.size(shape[1])) as i:
            row = _place(k, thin, t, i)
            k.store(0, [t, i], k.load(wide, t, i) + k.load(thin, *row))


def _place(k: Kernel, operand: int, t: Expression, i: Expression) -> tuple[Expression, ...]:
    """Where a broadcast operand holds element [t, i]."""
    shape = k.op.operands[operand].shape
    at = (t, i)[2 - len(shape) :]
    return tuple(index(0) if dim == 1 else place for dim, place in zip(shape, at, strict=True))


def cast(k: Kernel) -> None:
    """Another dtype, of a vector or a matrix."""
    shape, target = k.op.operands[0].shape, k.op.results[0].dtype
    source = k.op.operands[0].dtype
    with k.code.each(k.size(shape[0])) as t:
        places: list[Expression] = [t]
        if len(shape) == 2:
            with k.code.loop(k.size(shape[1])) as i:
                places = [t, i]
                _cast_element(k, places, source.is_float, target.is_float)
        else:
            _cast_element(k, places, source.is_float, target.is_float)


def _cast_element(k: Kernel, at: list[Expression], from_float: bool, to_a_float: bool) -> None:
    value = k.load(0, *at)
    k.store(0, at, value if from_float == to_a_float else to_float(value))


def concat(k: Kernel) -> None:
    """Matrices joined along an axis."""
    axis = k.integer("axis") % 2
    first: Expression = index(0)
    for number, operand in enumerate(k.op.operands):
        rows, columns = (k.size(dim) for dim in operand.shape)
        with k.code.each(rows) as t, k.code.loop(columns) as i:
            at = [t, first + i] if axis else [first + t, i]
            k.store(0, at, k.load(number, t, i))
        first = first + (columns if axis else rows)


def select_rows(k: Kernel) -> None:
    """Row rows[i] of x."""
    with k.code.each(k.rows(1)) as t:
        row = k.code.kept_index(k.row_number(1, t))
        with k.code.loop(k.width(0)) as i:
            k.store(0, [t, i], k.load(0, row, i))


def merge_rows(k: Kernel) -> None:
    """Row t is images[rows[t]] where rows[t] >= 0, else x[t]."""
    with k.code.each(k.rows(0)) as t:
        row = k.code.kept_index(k.row_number(2, t))
        with k.code.loop(k.width(0)) as i:
            shown = tirx.if_then_else(row >= 0, k.load(1, row, i), k.load(0, t, i))
            k.store(0, [t, i], shown)


def swiglu(k: Kernel) -> None:
    """silu(gate) * up; with one operand its last axis holds gate then up."""
    joined = not k.has(1)
    width = k.width() // 2 if joined else k.width()
    with k.code.each(k.rows()) as t, k.code.loop(width) as i:
        up = k.load(0, t, width + i) if joined else k.load(1, t, i)
        k.store(0, [t, i], silu(k.load(0, t, i), k.code.on_gpu) * up)


def gated_add(k: Kernel) -> None:
    """residual + tanh(gate) x; the residual alone in rows whose range is empty."""
    with k.code.each(k.rows()) as t:
        gate = k.code.kept(tirx.tanh(k.load(2, 0)))
        if k.has(3):
            gate = k.code.kept(tirx.Select(k.load(3, t) < k.load(4, t), gate, f32(0.0)))
        with k.code.loop(k.width()) as i:
            k.store(0, [t, i], k.load(1, t, i) + k.load(0, t, i) * gate)


def rope_angles(k: Kernel) -> None:
    """cos and sin of positions[t] * inverse_frequencies[i]: the product in f32, on a CPU the functions in f64."""
    with k.code.each(k.rows()) as t, k.code.loop(k.width(1)) as i:
        angle = k.code.kept(to_float(k.load(0, t)) * k.load(1, i))
        _store_tables(k, [t, i], angle)


def cos_sin(k: Kernel) -> None:
    """The cosines and sines of fixed angles."""
    with k.code.each(k.rows()) as t, k.code.loop(k.width(0)) as i:
        _store_tables(k, [t, i], k.load(0, t, i))


def _store_tables(k: Kernel, at: list[Expression], angle: Expression) -> None:
    wide = angle if k.code.on_gpu else tirx.Cast("float64", angle)
    for number, function in enumerate((tirx.cos, tirx.sin)):
        value = function(wide)
        k.store(number, at, value if k.code.on_gpu else tirx.Cast("float32", value))


def round_bf16(k: Kernel) -> None:
    """Rows rounded to bf16, as f32: what weights in pairs are multiplied with."""
    from llamac.ir.dtypes import BF16

    assert k.op.operands[0].dtype is F32
    with k.code.each(k.rows()) as t, k.code.loop(k.width()) as i:
        k.store(0, [t, i], rounded(k.load(0, t, i), BF16))


def take_rows(k: Kernel) -> None:
    """As many of the first rows of x as `rows` is long."""
    with k.code.each(k.rows(1)) as t, k.code.loop(k.width(0)) as i:
        k.store(0, [t, i], k.load(0, t, i))


def lookup_row(k: Kernel) -> None:
    """One row of a table of integers."""
    with k.code.each(k.width(0)) as i:
        k.store(0, [i], k.load(0, to_index(k.load(1, 0)), i))


RULES = {
    "rms_norm": rms_norm,
    "norm_heads": norm_heads,
    "temper_heads": temper_heads,
    "add": add,
    "cast": cast,
    "concat": concat,
    "select_rows": select_rows,
    "merge_rows": merge_rows,
    "swiglu": swiglu,
    "gated_add": gated_add,
    "rope_angles": rope_angles,
    "cos_sin": cos_sin,
    "round_bf16": round_bf16,
    "take_rows": take_rows,
    "lookup_row": lookup_row,
}
"""Opcode -> rule."""

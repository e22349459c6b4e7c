"""The layout `gpu-rows16`: packing and unpacking, against the values of the CPU layout and a reading by hand."""

from __future__ import annotations

import numpy as np
import pytest
from meanings import FORMATS, GROUPED, random_weight

from llamac.ir.layouts import format_of, pack, unpack
from llamac.ir.row_layouts import RowLayout, pack_rows, unpack_rows

SHAPES = [(1, 1), (3, 31), (16, 128), (37, 200)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_cpu_layout(format: str, shape: tuple[int, int]) -> None:
    """The same quants and scales, packed both ways, stand for the same values bit for bit."""
    rng, (rows, columns) = np.random.default_rng(0), shape
    fmt = format_of(format)
    layout = RowLayout(fmt, rows, columns)
    if fmt.is_dense:
        values = rng.standard_normal(shape).astype(fmt.quants.storage)
        groups = layout.scale_columns
    else:
        values = rng.integers(-fmt.offset, (1 << fmt.quants.bits) - fmt.offset, shape).astype(fmt.quants.storage)
        groups = -(-columns // fmt.group)
    scale = rng.uniform(0.1, 1, (rows, groups)).astype(layout.scale.storage) if layout.scale else None
    minimum = rng.uniform(-1, 1, (rows, groups)).astype(fmt.minimum.storage) if fmt.minimum else None
    packed = pack_rows(layout, values, scale, minimum)
    assert packed.size == layout.bytes
    expected = unpack(fmt, pack(fmt, values, scale, minimum), rows, columns)
    np.testing.assert_array_equal(unpack_rows(layout, packed), expected)


def test_nibbles_lie_as_documented() -> None:
    """Nibble j of word i of a unit is column 4 j + i."""
    layout = RowLayout(format_of("u4g32s32"), 1, 32)
    for column in range(32):
        values = np.zeros((1, 32), np.uint8)
        values[0, column] = 9
        words = pack_rows(layout, values, np.ones((1, 1), np.float32))[:16].view("<u4")
        assert words.tolist() == [9 << 4 * (column // 4) if i == column % 4 else 0 for i in range(4)]


def test_bytes_lie_as_documented() -> None:
    """Byte j of word i of a unit is column 4 j + i, signed quants with 128 added."""
    layout = RowLayout(format_of("i8g32s32"), 1, 32)
    values = np.arange(-16, 16, dtype=np.int8)[None]
    body = pack_rows(layout, values, np.ones((1, 1), np.float32))[:32].reshape(2, 4, 4)
    for unit in range(2):
        for i in range(4):
            for j in range(4):
                assert body[unit, i, j] == 128 + int(values[0, 16 * unit + 4 * j + i])


def test_sections_are_aligned() -> None:
    for format in FORMATS:
        layout = RowLayout(format_of(format), 5, 33)
        assert layout.row_bytes % 16 == 0 and layout.scales_at % 256 == 0 and layout.minima_at % 256 == 0
        assert layout.bytes % 256 == 0


def test_e4m3_bytes_are_half_their_value_as_fnuz() -> None:
    """Hardware that multiplies e4m3fnuz reads the same bytes: negative zero, its NaN, does not occur."""
    import ml_dtypes

    every = np.arange(256, dtype=np.uint8)
    finite = every[(every & 0x7F) != 0x7F]
    layout = RowLayout(format_of("e4m3fn"), 1, finite.size)
    values = finite.view(ml_dtypes.float8_e4m3fn)[None]
    body = pack_rows(layout, values, np.ones((1, 1), np.float32))[: finite.size]
    halves = body.view(ml_dtypes.float8_e4m3fnuz).astype(np.float32)
    np.testing.assert_array_equal(2 * halves, values[0].astype(np.float32))


@pytest.mark.parametrize("format", GROUPED)
def test_random_weights_have_the_size_of_real_ones(format: str) -> None:
    values = random_weight(np.random.default_rng(1), format, 64, 256).values
    assert 0.2 / 16 < values.std() < 5 / 16

"""The type of a cache of integers: its text, its bytes, what does not verify, and what such a cache gives back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.ir.definition import OpError, check_type
from llamac.ir.dtypes import F16, F32, I4, I8
from llamac.ir.ops.cache_ops import stored
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import CacheType

INT8 = CacheType(2, 3, 64, 256, I8, scale=F16)


def _module(cache: str) -> str:
    return f"module @m at kernel {{\n  graph @step(%cache: {cache}) -> ({cache}) {{\n    return %cache\n  }}\n}}\n"


@pytest.mark.parametrize("type", [INT8, replace(INT8, chunk=8192), replace(INT8, dtype=F16, scale=None)], ids=str)
def test_text_round_trip(type: CacheType) -> None:
    text = _module(str(type))
    assert print_module(parse_module(text)) == text
    assert parse_module(text).step.arguments[0].type == type


def test_page_bytes_hold_the_scales() -> None:
    elements, scales = 2 * 2 * 3 * 256 * 64, 2 * 2 * 3 * 256
    assert INT8.page_bytes == elements + 2 * scales
    assert replace(INT8, dtype=F16, scale=None).page_bytes == 2 * elements


@pytest.mark.parametrize(
    ("type", "reason"),
    [
        (replace(INT8, scale=None), "needs scales"),
        (replace(INT8, scale=I8), "needs scales"),
        (replace(INT8, dtype=F16), "floats without scales"),
        (replace(INT8, dtype=I4), "floats without scales"),
        (replace(INT8, page=0), "positive number"),
    ],
    ids=str,
)
def test_a_type_without_its_scales_does_not_verify(type: CacheType, reason: str) -> None:
    with pytest.raises(OpError, match=reason):
        check_type(type)
    with pytest.raises(LlamacError, match=reason):
        parse_module(_module(str(type)))


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("i8, scale = f17>", "unknown dtype 'f17' (did you mean 'f16'?)"),
        ("i8, scales = f16>", "expected 'scale'"),
        ("i8, scale = f16", "expected '>'"),
    ],
)
def test_text_that_is_no_type(ending: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_module(_module(str(INT8).replace("i8, scale = f16>", ending)))
    assert reason in caught.value.reason


def test_heads_come_back_within_half_a_step_of_their_scale() -> None:
    heads = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32) * np.float32([[1], [1e3], [0]])
    found = stored(heads, INT8)
    scale = np.abs(heads).max(axis=1, keepdims=True) / 127
    assert found.dtype == np.float32
    assert (np.abs(found - heads) <= 0.501 * scale).all() and (found[2] == 0).all()
    assert (np.abs(found).max(axis=1) >= 0.999 * np.abs(heads).max(axis=1)).all()
    assert (stored(heads, replace(INT8, dtype=F32, scale=None)) == heads).all()

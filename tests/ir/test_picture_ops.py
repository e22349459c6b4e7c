"""The ops that let pictures in: attention to ranges of vision tokens, gated additions, merged rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from running import run

from llamac.ir.dtypes import BF16, F16, F32, I32, DType
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.types import CacheType, tensor

RANDOM = np.random.default_rng(5)
START, STOP = np.array([0, 2, 3, 6, 1, 0], np.int32), np.array([7, 5, 3, 2, 2, 1], np.int32)
"""All, some, an empty range, one that ends before it begins, one token, the first."""

ROWS = len(START)
SEEN = (np.arange(7) >= START[:, None]) & (np.arange(7) < STOP[:, None])


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """torch's attention with an explicit mask; zeros where nothing is seen."""
    group = len(q) // len(k)
    keys, values = (torch.from_numpy(x).repeat_interleave(group, 0) for x in (k, v))
    mask = torch.from_numpy(SEEN)
    found = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(q), keys, values, attn_mask=mask | ~mask.any(1, keepdim=True), scale=scale
    )
    return (found * mask.any(1)[None, :, None]).numpy()


@pytest.mark.parametrize("group", [1, 3])
def test_cross_attention(group: int) -> None:
    q, k, v = (RANDOM.standard_normal(shape) for shape in ((2 * group, ROWS, 4), (2, 7, 4), (2, 7, 4)))
    (found,) = run("cross_attention", [q, k, v, START, STOP], scale=0.5)
    assert np.allclose(found, oracle(q, k, v, 0.5), atol=1e-12)
    assert not found[:, 2:4].any()


@pytest.mark.parametrize("dtype", [F32, F16])
def test_attend_range_reads_scattered_pages(dtype: DType) -> None:
    """Two sequences of 7 vision tokens in pages of 3, beside pages full of NaN."""
    kind = CacheType(2, 2, 4, 3, dtype, cross=True)
    state = CacheState.empty(kind, 8, True)
    state.keys[:], state.values[:] = np.nan, np.nan
    tables = np.array([[5, 0, 3], [1, 7, 2]], np.int32)
    keys, values = RANDOM.standard_normal((2, 2, 2, 7, 4))
    for sequence in (0, 1):
        for t in range(7):
            state.keys[tables[sequence, t // 3], 1, :, t % 3] = keys[sequence, :, t]
            state.values[tables[sequence, t // 3], 1, :, t % 3] = values[sequence, :, t]
    sequences = np.array([0, 1, 0, 1, 0, 1], np.int32)
    q = RANDOM.standard_normal((ROWS, 6 * 4))
    types = [tensor(ROWS, 24, F32), kind, *[tensor(ROWS, I32)] * 3, tensor(2, 3, I32)]
    (found,) = run("attend_range", [q, state, START, STOP, sequences, tables], types=types, layer=1, heads=6, scale=0.5)
    heads = q.reshape(ROWS, 6, 4).swapaxes(0, 1)
    both = [oracle(heads, keys[s], values[s], 0.5).swapaxes(0, 1).reshape(ROWS, 24) for s in (0, 1)]
    assert np.allclose(found, np.where(sequences[:, None] == 0, *both), atol=1e-12)


def test_gated_add() -> None:
    x, residual, gate = RANDOM.standard_normal((ROWS, 5)), RANDOM.standard_normal((ROWS, 5)), np.array([0.7])
    (plain,) = run("gated_add", [x, residual, gate])
    assert np.allclose(plain, residual + np.tanh(0.7) * x, atol=1e-15)
    (ranged,) = run("gated_add", [x, residual, gate, START, STOP])
    assert (ranged[2:4] == residual[2:4]).all() and (ranged[[0, 1, 4, 5]] == plain[[0, 1, 4, 5]]).all()


def test_gated_add_rounds_as_its_steps_do() -> None:
    x, residual = (torch.from_numpy(RANDOM.standard_normal((ROWS, 5)).astype(np.float32)).bfloat16() for _ in "ab")
    gate = torch.tensor([0.3], dtype=torch.bfloat16)
    types = [*[tensor(ROWS, 5, BF16)] * 2, tensor(1, BF16)]
    (found,) = run("gated_add", [t.float().numpy() for t in (x, residual, gate)], False, types=types)
    assert (found == (residual + x * torch.tanh(gate)).float().numpy()).all()


def test_merge_rows() -> None:
    x, images, rows = RANDOM.standard_normal((4, 3)), RANDOM.standard_normal((2, 3)), np.array([-1, 1, 0, -7], np.int32)
    (found,) = run("merge_rows", [x, images, rows])
    assert (found == np.stack([x[0], images[1], images[0], x[3]])).all()


def test_norm_heads_takes_a_weight() -> None:
    rows, weight = RANDOM.standard_normal((3, 20)), RANDOM.uniform(0.5, 1.5, 4)
    (found,) = run("norm_heads", [rows, weight], heads=3, head_dim=4, eps=1e-5)
    heads = torch.from_numpy(rows[:, :12].reshape(3, 3, 4))
    expected = torch.nn.functional.rms_norm(heads, (4,), torch.from_numpy(weight), 1e-5).reshape(3, 12).numpy()
    assert np.allclose(found[:, :12], expected, atol=1e-12) and (found[:, 12:] == rows[:, 12:]).all()


def test_a_cache_of_vision_tokens_prints_as_one() -> None:
    from llamac.errors import LlamacError
    from llamac.ir.parser import parse_module
    from llamac.ir.printer import print_module

    kind = "kv_cache<layers = 1, kv_heads = 1, head_dim = 2, page = 4, cross, f32>"
    text = f"module @m at kernel {{\n  graph @step(%c: {kind}) -> ({kind}) {{\n    return %c\n  }}\n}}\n"
    module = parse_module(text)
    assert print_module(module) == text
    found = module.step.argument("c").cache
    assert found.cross and found.kind == "cross" and found.page_bytes == 2 * 2 * 4 * 4
    assert CacheType(1, 1, 2, 4, F32).kind == "full" and CacheType(1, 1, 2, 4, F32, 8).kind == "chunk"
    with pytest.raises(LlamacError, match="vision tokens are seen by ranges"):
        parse_module(text.replace("cross,", "chunk = 2, cross,"))

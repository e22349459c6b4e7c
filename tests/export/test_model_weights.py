"""Weights by name: values as transformers has them, rows of q and k in either order, however they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamac.export.model_weights import ModelWeights
from llamac.ir.definition import Evaluation
from llamac.ir.registry import find_op
from llamac.models.sources import embedded_model, open_source


@pytest.fixture(scope="module")
def smollm2() -> ModelWeights:
    return ModelWeights(open_source(embedded_model()))


def test_half_split_is_what_fold_rope_makes(smollm2: ModelWeights) -> None:
    config = smollm2.checkpoint.config
    assert config.rope_style == "interleaved"
    halves = ModelWeights(smollm2.checkpoint, "half_split")
    name = "layers.3.attn.k"
    rows = smollm2.shape(name)[0]
    source = smollm2.rows(name, 0, rows)
    run = Evaluation([source], {"head_dim": config.head_dim}, [], {}, False)
    (expected,) = find_op("rows_to_half_split").evaluate(run)
    assert np.array_equal(halves.rows(name, 0, rows), expected)
    pieces = [halves.rows(name, lo, min(lo + 37, rows)) for lo in range(0, rows, 37)]
    assert np.array_equal(np.concatenate(pieces), expected)
    assert np.array_equal(np.concatenate([rows for _, rows in halves.blocks(name)]), expected)


def test_the_orders_undo_each_other(tmp_path: Path) -> None:
    checkpoint = open_source("tiny", random_weights=3)
    own, other = ModelWeights(checkpoint), ModelWeights(checkpoint, "interleaved")
    assert checkpoint.config.rope_style == "half_split"
    head = checkpoint.config.head_dim
    for name in ("layers.0.attn.q", "layers.0.attn.k"):
        rows = own.shape(name)[0]
        mixed, plain = other.rows(name, 0, rows), own.rows(name, 0, rows)
        assert not np.array_equal(mixed, plain)
        by_head = mixed.reshape(-1, head // 2, 2, plain.shape[1])
        assert np.array_equal(by_head.transpose(0, 2, 1, 3).reshape(plain.shape), plain)
        assert np.array_equal(other.stored_rows(name, 1, 3), _bytes(own, name)[[head // 2, 1]])


def _bytes(weights: ModelWeights, name: str) -> np.ndarray:
    return weights.stored_rows(name, 0, weights.shape(name)[0])


def test_only_rotated_rows_trade_places() -> None:
    checkpoint = open_source("tiny", random_weights=3)
    own, other = ModelWeights(checkpoint), ModelWeights(checkpoint, "interleaved")
    for name in own.names:
        rows = own.shape(name)[0] if len(own.shape(name)) == 2 else 1
        same = np.array_equal(own.rows(name, 0, rows), other.rows(name, 0, rows))
        assert same != name.endswith((".attn.q", ".attn.k")), name


def test_blocks_end_with_the_weight(smollm2: ModelWeights) -> None:
    for name in ("embed", "layers.0.mlp.down", "norm"):
        blocks = list(smollm2.blocks(name))
        starts = [lo for lo, _ in blocks]
        sizes = [len(rows) if rows.ndim == 2 else 1 for _, rows in blocks]
        assert starts == list(np.cumsum([0, *sizes[:-1]]))
        rows = np.concatenate([rows for _, rows in blocks])
        assert rows.shape == smollm2.shape(name) and rows.dtype == np.float32

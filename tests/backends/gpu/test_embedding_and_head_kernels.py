"""Embedding rows and the best token, in Triton's interpreter, against table rows and numpy's argmax."""

from __future__ import annotations

import numpy as np
import pytest
from meanings import FORMATS, meaning, random_weight
from triton_interpreted import Array, Interpreter

EPS = 1e-5


@pytest.mark.parametrize("format", (*FORMATS, "e4m3fn bits"))
def test_embedding(interpreter: Interpreter, format: str) -> None:
    """Rows of the table: 130 columns in blocks of 64."""
    rng = np.random.default_rng(1)
    table = random_weight(rng, format, 11, 130)
    ids = np.array([10, 0, 3, 3], np.int32)
    y = np.full((4, 130), np.nan, np.float32)
    arguments = table.arguments()
    interpreter.launch("embed.embed_rows", (4, 3), ids_ptr=ids, y_ptr=y, K=130, BK=64, **arguments)
    # A GPU adds the minimum to the product of quant and scale before that is rounded.
    np.testing.assert_allclose(y, table.values[ids], rtol=2e-7, atol=6e-8)


def best(interpreter: Interpreter, x: Array, norm: Array, weight: Array, rows: Array) -> Array:
    """Token ids by `decode_best` and `best_of_tiles`."""
    tokens, vocab = len(rows), weight.shape[0]
    tiles = -(-vocab // 8)
    value, index = np.full((tokens, tiles), np.nan, np.float32), np.full((tokens, tiles), -1, np.int32)
    ids = np.full(tokens, -1, np.int32)
    interpreter.launch(
        "head.decode_best", (tiles,), x_ptr=x, row_ptr=rows, norm_ptr=norm, w_ptr=weight, scale_ptr=None, min_ptr=None,
        best_ptr=value, index_ptr=index, tokens=tokens, N=vocab, K=x.shape[1], KP=x.shape[1], EPS=EPS, M=4, BN=8, BK=32,
        WEIGHT="dense", GROUP=0, ZERO=0, PDL=False,
    )  # fmt: skip
    interpreter.launch(
        "head.best_of_tiles", (tokens,), best_ptr=value, index_ptr=index, id_ptr=ids, TILES=tiles, BLOCK=4, PDL=False
    )
    return ids


def test_best_token(interpreter: Interpreter) -> None:
    rng = np.random.default_rng(2)
    x, norm = rng.standard_normal((5, 64)).astype(np.float32), rng.uniform(0.5, 1.5, 64).astype(np.float32)
    weight = rng.standard_normal((77, 64)).astype(np.float32)
    rows = np.array([4, 0, 2], np.int32)
    logits = meaning("rms_norm", x[rows], norm, eps=EPS)[0] @ weight.T
    assert best(interpreter, x, norm, weight, rows).tolist() == logits.argmax(1).tolist()


def test_of_equal_logits_the_first_wins(interpreter: Interpreter) -> None:
    """Equal rows of the head in the same tile, in tiles of one block and of two."""
    rng = np.random.default_rng(3)
    x, norm = rng.uniform(1, 2, (1, 64)).astype(np.float32), np.ones(64, np.float32)
    for places in ([5, 6], [3, 9, 70], [33, 40, 76], [76], [0, 76]):
        weight = -np.ones((77, 64), np.float32)
        weight[places] = 1
        assert best(interpreter, x, norm, weight, np.zeros(1, np.int32)).tolist() == [places[0]]


def test_best_of_logits(interpreter: Interpreter) -> None:
    rng = np.random.default_rng(4)
    logits = rng.integers(-3, 4, (4, 101)).astype(np.float32)
    logits[3] = -np.inf
    logits[3, 50] = -1e30
    ids = np.full(4, -1, np.int32)
    interpreter.launch("head.best_of_logits", (4,), logits_ptr=logits, id_ptr=ids, N=101, BLOCK=16)
    assert ids.tolist() == logits.argmax(1).tolist()

"""The laws of the passes that change what an image encoder takes or gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.ops.cache_ops import CacheState

Array = np.ndarray
Rows = Callable[[str, int, int], Array]
TILES = 3
LENGTHS = {"N": TILES, "L": 3}


def check_tiles(before: Module, after: Module, rows: Rows) -> None:
    """The graph before on several tiles equals the graph after on each of them."""
    shape = tuple(d if isinstance(d, int) else LENGTHS[str(d)] for d in before.main.argument("pixels").tensor.shape)
    pixels = np.random.default_rng(0).standard_normal(shape)
    (expected,) = Interpreter(before, rows, True).run({"pixels": pixels}, "encode_image")
    own = after.main.argument("pixels").tensor.shape[0]
    parts = np.split(pixels, shape[0] // own) if isinstance(own, int) else [pixels]
    run = Interpreter(after, rows, True)
    found = [run.run({"pixels": part}, "encode_image")[0] for part in parts]
    assert np.array_equal(np.concatenate(found).reshape(-1), expected.reshape(-1))


def check_encoder(before: Module, after: Module, rows: Rows) -> None:
    """Both graphs give the same for the same rows, and for a picture of every shape."""
    shapes = {a.name: a.tensor.shape for a in before.main.arguments}
    pixels = np.random.default_rng(0).standard_normal([d for d in shapes["pixels"] if isinstance(d, int)])
    for ratio in range(1, 3 if "aspect_ratio" in shapes else 2):
        given: dict[str, Any] = {"pixels": pixels}
        if "aspect_ratio" in shapes:
            given["aspect_ratio"] = np.array([ratio], np.int32)
        (expected,), (found,) = (Interpreter(m, rows, True).run(given, "encode_image") for m in (before, after))
        assert np.abs(found - expected).max() <= 1e-10 * np.abs(expected).max()


def check_image_cache(before: Module, after: Module, rows: Rows) -> None:
    """What project_image makes of the first tokens is at their positions in the cache."""
    shape = tuple(d for d in before.main.argument("pixels").tensor.shape if isinstance(d, int))
    given: dict[str, Any] = {"pixels": np.random.default_rng(0).standard_normal(shape)}
    old, new = Interpreter(before, rows, True), Interpreter(after, rows, True)
    (tokens,) = old.run(given, "encode_image")
    if "project_image" not in before.graphs:
        assert np.array_equal(new.run(given, "encode_image")[0], tokens)
        return
    count, first = 5, 2
    expected = old.run({"tokens": tokens[:count]}, "project_image")
    kind = after.main.argument("cache.cross").cache
    tables = np.array([[1, 2, 0]], np.int32)
    cache = CacheState.empty(kind, 3, True)
    (state,) = new.run(
        {**given, "positions": first + np.arange(count), "page_tables.cross": tables, "cache.cross": cache},
        "encode_image",
    )
    for index, part in enumerate(expected):
        held = (state.keys, state.values)[index % 2][tables[0], index // 2]
        found = held.swapaxes(0, 1).reshape(kind.kv_heads, -1, kind.head_dim)[:, first : first + count]
        assert np.abs(found - part).max() <= 1e-10 * np.abs(part).max()

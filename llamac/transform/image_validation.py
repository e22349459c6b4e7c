"""Translation validation of the image side: as that of the step, on a few pictures instead of token sequences.

What is compared is what the text model gets: the embeddings of every tile (Llama 4), or the keys and values of every
vision token of pictures of several shapes (Llama 3.2 Vision), which lie in the cache once `lower-image-cache` has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.ir.definition import Array
from llamac.ir.evaluator import RowReader
from llamac.ir.graph import Graph, Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.ops.cache_ops import CacheState

from .arena import ArenaInterpreter
from .scenario import Scenario
from .validation import Validator

TILES = 3
FIRST = 5
"""Where a picture begins in the cache of vision tokens: within a page."""


@dataclass(frozen=True)
class Pictures:
    """What is encoded: for encoders of whole pictures, numbers of shapes with their tiles, of `tokens` tokens each."""

    seed: int
    shapes: tuple[tuple[int, int], ...] = ()
    tokens: int = 0


class ImageValidator(Validator):
    """Runs the pipeline of an image encoder on a small one and compares after every pass."""

    def __init__(self, read_rows: RowReader, pictures: Pictures) -> None:
        super().__init__(read_rows, Scenario((), pictures.seed))
        self.pictures = pictures

    def logits(
        self, module: Module, exact: bool, overrides: Mapping[str, Array] | None = None, in_arena: bool = False
    ) -> Array:
        """What the text model gets of every picture, one row a token."""
        run = ArenaInterpreter(module, self.read_rows) if in_arena else Interpreter(module, self.read_rows, exact)
        for name, value in (overrides or {}).items():
            run.override(name, value)
        random = np.random.Generator(np.random.Philox(key=self.pictures.seed))
        if not self.pictures.shapes:
            return _tiles(run, random)
        return np.concatenate([self._picture(run, random, *shape) for shape in self.pictures.shapes])

    def _picture(self, run: Interpreter, random: np.random.Generator, shape: int, tiles: int) -> Array:
        graph, count = run.module.main, tiles * self.pictures.tokens
        pixels = _pixels(random, graph)
        pixels[tiles:] = 0
        inputs: dict[str, Any] = {"pixels": pixels, "aspect_ratio": np.array([shape], np.int32)}
        if "project_image" not in run.module.graphs:
            return _cached(run, inputs, count)
        (features,) = run.run(inputs, graph.name)
        tokens = features.reshape(-1, features.shape[-1])[:count]
        found = run.run({"tokens": tokens}, "project_image")
        return np.concatenate([part.swapaxes(0, 1).reshape(count, -1) for part in found], axis=1)


def _pixels(random: np.random.Generator, graph: Graph) -> Array:
    shape = [d if isinstance(d, int) else TILES for d in graph.argument("pixels").tensor.shape]
    return random.uniform(-1, 1, shape)


def _tiles(run: Interpreter, random: np.random.Generator) -> Array:
    """Embeddings of some tiles: all at once, or one after the other where the graph takes one."""
    graph = run.module.main
    whole = [_pixels(random, graph)] if graph.argument("pixels").tensor.shape[0] != 1 else []
    parts = whole or [_pixels(random, graph) for _ in range(TILES)]
    found = [run.run({"pixels": part}, graph.name)[0] for part in parts]
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in found])


def _cached(run: Interpreter, inputs: Mapping[str, Any], count: int) -> Array:
    """Keys and values of every layer in the cache, from pages in no order, beside numbers that nobody wrote."""
    graph = run.module.main
    kind = graph.argument("cache.cross").cache
    pages = -(-(FIRST + count) // kind.page)
    tables = np.roll(np.arange(pages, dtype=np.int32), 1)[::-1][None]
    state = CacheState.empty(kind, pages, run.exact)
    state.keys[:], state.values[:] = np.nan, np.nan
    where = {"positions": (FIRST + np.arange(count)).astype(np.int32), "page_tables.cross": tables}
    (filled,) = run.run({**inputs, **where, "cache.cross": state}, graph.name)
    rows = []
    for layer in range(kind.layers):
        for held in (filled.keys, filled.values):
            # [pages, heads, page, head_dim] -> [tokens, heads * head_dim]
            tokens = held[tables[0], layer].swapaxes(1, 2).reshape(pages * kind.page, -1)
            rows.append(tokens[FIRST : FIRST + count])
    return np.concatenate(rows, axis=1)

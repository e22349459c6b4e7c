"""Runs the graphs of a model that sees, through onnxruntime, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .emit import DECODER, EMBEDDING, VISION
from .emitter import EMBEDS, IDS, LOGITS, MASK, POSITIONS
from .interfaces import CROSS_MASK, FEATURES, PIXELS, SHAPES
from .sessions import open_session

Floats = NDArray[np.float32]


class SeeingSession:
    """One sequence through a folder's encoder, embedding and decoder, its past kept from step to step.

    exact: products with integer weights keep their activations in f32.
    """

    def __init__(self, folder: Path, exact: bool = False) -> None:
        parts = (VISION, EMBEDDING, DECODER)
        self._encoder, self._embedding, self._decoder = (open_session(folder, f"{p}.onnx", exact) for p in parts)
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        self._crosses = any(i.name == CROSS_MASK for i in self._decoder.get_inputs())
        self.restart()

    def restart(self) -> None:
        """Forget the past and the pictures."""
        given = [i for i in self._decoder.get_inputs() if i.name.startswith(("past_", "cross_attn_"))]
        empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in given}
        self._state = {name: value for name, value in empty.items() if name.startswith("past_")}
        self._cross = {name: value for name, value in empty.items() if name not in self._state}
        self._length = 0

    def encode_tiles(self, pixels: Floats) -> Floats:
        """Rows of image embeddings, [tiles * tile_tokens, d], of tiles [tiles, channels, px, px]."""
        found = self._encoder.run([FEATURES], {PIXELS: pixels})[0]
        return np.asarray(found.reshape(-1, found.shape[-1]), np.float32)

    def show_pictures(self, pixels: Floats, shapes: Sequence[int]) -> None:
        """What the steps from now on attend to: pictures [pictures, tiles, channels, px, px] of so many shapes."""
        given = {PIXELS: pixels[None], SHAPES: np.array([shapes], np.int64)}
        names = [output.name for output in self._encoder.get_outputs()]
        self._cross = dict(zip(names, self._encoder.run(names, given), strict=True))

    def step(self, ids: Sequence[int], rows: Floats | None = None, seen: NDArray[Any] | None = None) -> Floats:
        """The logits after each of `ids`; they come behind what came before.

        rows: [len(ids), d], what is not NaN takes the place of an embedded token. seen: which tiles of which pictures
        each token sees, [len(ids), pictures, tiles]; none unless given.
        """
        start, self._length = self._length, self._length + len(ids)
        embedded = self._embedding.run([EMBEDS], {IDS: np.array([ids], np.int64)})[0]
        if rows is not None:
            embedded = np.where(np.isnan(rows), embedded, rows)
        feeds: dict[str, NDArray[Any]] = {
            EMBEDS: np.asarray(embedded, np.float32),
            MASK: np.ones((1, self._length), np.int64),
            POSITIONS: np.arange(start, self._length, dtype=np.int64)[None],
        }
        if self._crosses:
            seen = np.zeros((len(ids), 0, 1), np.int64) if seen is None else seen
            feeds |= {CROSS_MASK: np.asarray(seen, np.int64)[None], **self._cross}
        found = dict(zip(self._outputs, self._decoder.run(None, feeds | self._state), strict=True))
        self._state = {name: found[name.replace("past_key_values", "present")] for name in self._state}
        return np.asarray(found[LOGITS][0], np.float32)

"""`--check` of the ONNX graphs of a model that sees: ONNX Runtime's logits with a picture against the interpreter's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.backends.onnx.seeing_session import SeeingSession
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.models.graph import build_graph
from llamac.models.image_graph import build_image_graphs
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision

from .interpreted_logits import prompt_of
from .onnx_check import DIVERGENCE, EXACT, TEXT, divergence, relative_error
from .onnx_graph import lowered, lowered_encoder
from .request import Check, ExportRequest

Floats = NDArray[np.float32]

_BEFORE = 4
"""Tokens of the prompt that come before the picture."""

_MOST_TOKENS = 16
_SEED = 11


@dataclass(frozen=True)
class ShownPicture:
    """A random picture in a prompt, as both sides take it.

    pixels: [tiles, channels, px, px]; filled: how many of the tiles are the picture's, the others being zero. shape:
    the number of its shape, where the encoder wants it. tokens: rows that stand for a tile.
    """

    ids: list[int]
    pixels: Floats
    filled: int
    shape: int
    tokens: int


def check_pictures(request: ExportRequest, place: Path) -> Iterator[Check]:
    """A prompt with a picture, cut in pieces: in f32, and as the graphs are delivered."""
    shown = shown_picture(request)
    meant = reference_logits(request, shown)
    steps = "a picture, then single tokens"
    found = logits_in_steps(SeeingSession(place, exact=True), shown)
    error = relative_error(found, meant)
    yield Check("logits with a picture", error <= EXACT, f"{error:.1e} of the largest logit ({steps})", f"{EXACT:.0e}")
    nats = divergence(logits_in_steps(SeeingSession(place), shown), meant)
    name = "probabilities with a picture, activations rounded as the consumer likes"
    yield Check(name, nats <= DIVERGENCE, f"{nats:.1e} nats of KL divergence ({steps})", f"{DIVERGENCE:g}")


def shown_picture(request: ExportRequest) -> ShownPicture:
    """A prompt of the source with a picture of noise in it."""
    vision, random = request.checkpoint.config.vision, np.random.default_rng(_SEED)
    ids = prompt_of(request.checkpoint, TEXT)[:_MOST_TOKENS]
    assert vision is not None
    size = (vision.channels, vision.image_size, vision.image_size)
    if isinstance(vision, Llama4Vision):
        patch = vision.image_token if vision.image_token < request.checkpoint.config.vocab_size else 0
        ids[_BEFORE:_BEFORE] = [patch] * vision.tile_tokens
        return ShownPicture(ids, random.standard_normal((1, *size), np.float32), 1, 0, vision.tile_tokens)
    assert isinstance(vision, MllamaVision)
    shape = min(2, len(vision.supported_aspect_ratios))
    rows, columns = vision.supported_aspect_ratios[shape - 1]
    pixels = np.zeros((vision.max_tiles, *size), np.float32)
    pixels[: rows * columns] = random.standard_normal((rows * columns, *size), np.float32)
    return ShownPicture(ids, pixels, rows * columns, shape, vision.tile_tokens)


def logits_in_steps(session: SeeingSession, shown: ShownPicture) -> Floats:
    """The logits of a prompt cut within the picture (where it has rows there), behind it, and token by token."""
    count = len(shown.ids)
    rows, seen = None, None
    if shown.shape:
        session.show_pictures(shown.pixels[None], [shown.shape])
        sees = np.arange(count) >= _BEFORE
        seen = (sees[:, None] & (np.arange(len(shown.pixels)) < shown.filled))[:, None]
    else:
        made = session.encode_tiles(shown.pixels)
        rows = np.full((count, made.shape[1]), np.nan, np.float32)
        rows[_BEFORE : _BEFORE + len(made)] = made
    cuts = [0, _BEFORE + 2, count // 2 + 2, count - 2, count - 1, count]
    return np.concatenate(
        [
            session.step(
                shown.ids[start:stop],
                None if rows is None else rows[start:stop],
                None if seen is None else seen[start:stop],
            )
            for start, stop in pairwise(cuts)
        ]
    )


def reference_logits(request: ExportRequest, shown: ShownPicture) -> Floats:
    """What llamac means by the model: the interpreter's logits after each of the ids, with activations in f32.

    It runs the graphs as they were captured where the scheme changes no value, else those with the wanted weights.
    """
    checkpoint = request.checkpoint
    step, encoder = _modules(request)
    run = Interpreter(encoder, checkpoint.read_rows, keep=False).run
    config, count = checkpoint.config, len(shown.ids)
    inputs: dict[str, Any] = {"ids": np.array(shown.ids, np.int32), "positions": np.arange(count, dtype=np.int32)}
    if shown.shape:
        shape = np.array([shown.shape], np.int32)
        (tokens,) = run({"pixels": shown.pixels, "aspect_ratio": shape}, "encode_image")
        filled = np.asarray(tokens, np.float32).reshape(-1, config.hidden_size)[: shown.filled * shown.tokens]
        made = run({"tokens": filled}, "project_image")
        names = [f"cross_{part}.{layer}" for layer in config.cross_layers for part in "kv"]
        stop = np.where(np.arange(count) >= _BEFORE, len(filled), 0).astype(np.int32)
        inputs |= dict(zip(names, made, strict=True)) | {"vision_start": np.zeros_like(stop), "vision_stop": stop}
    else:
        (tokens,) = run({"pixels": shown.pixels}, "encode_image")
        made_rows = np.asarray(tokens, np.float32).reshape(-1, config.hidden_size)
        rows = np.full(count, -1, np.int32)
        rows[_BEFORE : _BEFORE + len(made_rows)] = np.arange(len(made_rows))
        inputs |= {"image_rows": rows, "image_embeddings": made_rows}
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    pasts = {argument.name: empty for argument in step.step.arguments if argument.name.startswith("past_")}
    return np.asarray(Interpreter(step, checkpoint.read_rows, keep=False).run(inputs | pasts)[0], np.float32)


def _modules(request: ExportRequest) -> tuple[Module, Module]:
    """The step that takes pictures, and the encoder."""
    checkpoint = request.checkpoint
    if request.quantize in ("keep", "f32"):
        config = replace(checkpoint.config, dtype="f32")
        encoder = build_image_graphs(config, checkpoint.tensors)
        assert encoder is not None
        return build_graph(config, checkpoint.tensors), encoder
    decided = list(request.ledger)
    found = lowered(request, joined=False, merges=True), lowered_encoder(request)
    request.ledger[:] = decided  # it was said when the model was written
    return found

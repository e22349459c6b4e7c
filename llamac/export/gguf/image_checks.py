"""Reads an exported image encoder back: the table, the config, every tensor, and what it makes of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.interpreter import Interpreter
from llamac.models.checkpoint import Checkpoint, FileRows, StoredTensor
from llamac.models.gguf_file import read_gguf
from llamac.models.gguf_mmproj import CHANNELS, MEAN, STD, image_weights
from llamac.models.gguf_reader import read_gguf_checkpoint
from llamac.models.image_graph import build_image_graphs
from llamac.models.llama.vision_config import Llama4Vision

from ..hf_plain import rounded
from ..interpreted_logits import MOST_PARAMETERS, relative_largest
from ..model_weights import ModelWeights
from ..request import Check, ExportRequest
from .image_encoder import image_tensors
from .llama_cpp_images import NotLoaded, llama_cpp_embeddings

Floats = NDArray[np.float32]
BOUND = 0.05
"""Of the largest number: llama.cpp has GELU as tanh's approximation, out of a table of f16, and rounds activations to
the 16 bits of the matrices where they have 16."""


def image_checks(request: ExportRequest, vision: Llama4Vision, text: Path, path: Path) -> Iterator[Check]:
    """All checks; llama.cpp's only where it is installed, and the vocabulary has the tokens of pictures."""
    weights = request.weights("interleaved")
    tensors = image_tensors(request, weights, vision)
    wanted = {tensor.name: (tensor.shape, tensor.kind) for _, tensor in tensors}
    file = read_gguf(path)
    table = {tensor.name: (tensor.shape, tensor.encoding) for tensor in file.tensors}
    odd = sorted({*wanted, *table} - {name for name in wanted if table.get(name) == wanted[name]})
    said = f"{len(odd)} differ, {odd[0]} first" if odd else f"{len(table)} tensors as meant"
    yield Check("image encoder, table", not odd, said)
    if odd:
        return
    found = image_weights(file, vision, request.checkpoint.config.hidden_size)
    yield _values(weights, found, {name: tensor.kind for name, tensor in tensors})
    back = read_gguf_checkpoint(text)
    if back.config.vision is None:
        reason = "the vocabulary has none of the tokens that stand for pictures"
        request.note("note", "check", "the image encoder is compared, and is no part of the model read back", reason)
        return
    yield _config(vision, back)
    if back.config.parameters <= MOST_PARAMETERS:
        yield from _picture(request, back, text, path)


def _config(vision: Llama4Vision, back: Checkpoint) -> Check:
    odd = [f.name for f in fields(vision) if getattr(vision, f.name) != getattr(back.config.vision, f.name)]
    return Check("image encoder, config", not odd, ", ".join(odd) + " differ" if odd else "every value equal")


def _values(source: ModelWeights, found: Mapping[str, StoredTensor], kinds: Mapping[str, str]) -> Check:
    """Every number against the source's, rounded to the type in the file: bit for bit."""
    odd, file = [], FileRows()
    for name, kind in kinds.items():
        shape = source.shape(name)
        step, rows = (source.rows_at_once(name), shape[0]) if len(shape) == 2 else (1, 1)
        for lo in range(0, rows, step):
            meant = rounded(source.rows(name, lo, min(lo + step, rows)), kind, name)
            stored = file.read(found[name], lo, min(lo + step, rows))
            if stored.tobytes() != meant.tobytes() and name not in odd:
                odd.append(name)
    said = f"{len(odd)} differ, {odd[0]} first" if odd else f"{len(kinds)} tensors, bit for bit"
    return Check("image encoder, values", not odd, said)


def _picture(request: ExportRequest, back: Checkpoint, text: Path, path: Path) -> Iterator[Check]:
    """The tokens of one tile by llama.cpp, beside the interpreter's on the file's values."""
    assert back.config.vision is not None
    side = back.config.vision.image_size
    samples = np.random.default_rng(11).integers(0, 256, (side, side, CHANNELS), np.uint8)
    try:
        name, theirs = llama_cpp_embeddings(text, path, samples, back.config.hidden_size)
    except NotLoaded as missing:
        request.note("note", "check", "llama.cpp did not encode a picture", str(missing))
        return
    ours = interpreted_tokens(back, samples)
    if theirs.shape != ours.shape:
        yield Check(f"{name}, a picture", False, f"{len(theirs)} tokens, not {len(ours)}")
        return
    across = by_columns(ours)
    apart, turned = min((relative_largest(theirs, tokens), tokens is across) for tokens in (ours, across))
    yield Check(f"{name}, a picture", apart <= BOUND, f"{len(ours)} tokens, apart by {apart:.1e}", f"{BOUND:g}")
    if turned:
        reason = f"{name} hands the tokens of a tile on column by column, transformers and Meta's code row by row"
        request.note("note", "check", "the tokens of a picture are the same, in another order", reason)


def by_columns(tokens: Floats) -> Floats:
    """The tokens of a square tile in the order of its columns."""
    side = math.isqrt(len(tokens))
    return np.ascontiguousarray(tokens.reshape(side, side, -1).transpose(1, 0, 2)).reshape(tokens.shape)


def interpreted_tokens(checkpoint: Checkpoint, samples: NDArray[np.uint8]) -> Floats:
    """The text positions that one tile [pixels, pixels, 3] becomes, [tokens, hidden], with activations in f32."""
    module = build_image_graphs(replace(checkpoint.config, dtype="f32"), checkpoint.tensors)
    assert module is not None
    pixels = ((samples.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    inputs: dict[str, Any] = {"pixels": np.ascontiguousarray(pixels)}
    (found,) = Interpreter(module, checkpoint.read_rows).run(inputs, "encode_image")
    return np.asarray(found, np.float32).reshape(-1, checkpoint.config.hidden_size)

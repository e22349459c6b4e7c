"""Llama 4's image encoder for llama.cpp: `mmproj.gguf` beside the text model, matrices as floats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.gguf_mmproj import (
    ARCHITECTURE,
    CHANNELS,
    MEAN,
    NORM_EPS,
    PROJECTOR,
    ROPE_THETA,
    STD,
    image_tensor_names,
)
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision

from ..model_weights import ModelWeights
from ..request import ExportRequest
from .encode import quantized
from .keys import Keys
from .recipes import FILE_TYPES, FLOATS
from .writing import FileTensor, write_file

IMAGE_FILE = "mmproj.gguf"
OPTION = "mmproj"
OMITTED = "none"
_ADDED = "vision.position"
"""The matrix that is added, not multiplied with: llama.cpp adds in f32 alone."""


def written_encoder(request: ExportRequest, is_folder: bool) -> Llama4Vision | None:
    """The encoder that the export has a file for. LLC0947 for an `--option mmproj` that names no type."""
    vision, wanted = request.checkpoint.config.vision, request.options.get(OPTION)
    if wanted is not None and wanted not in (*FLOATS, OMITTED):
        hint = f"choose {', '.join(FLOATS)}, or {OMITTED} to leave the image encoder out"
        raise LlamacError("LLC0947", f"--option {OPTION}", f"'{wanted[:40]}' is no type of matrices in it", hint)
    if not isinstance(vision, Llama4Vision) or not is_folder or wanted == OMITTED:
        return None
    return None if why_not(request.checkpoint.config) else vision


def note_left_out(request: ExportRequest, is_folder: bool) -> None:
    """Why a model that sees is written without its encoder, in the ledger."""
    config = request.checkpoint.config
    if not isinstance(config.vision, Llama4Vision) or written_encoder(request, is_folder) is not None:
        return
    reason = why_not(config) or "llama.cpp has it in a second file (mmproj), for which the output has to be a folder"
    if is_folder and request.options.get(OPTION) == OMITTED:
        reason = f"--option {OPTION}={OMITTED}"
    request.note("absent", "vision", "the image encoder is left out; text works without it", reason)


def why_not(config: LlamaConfig) -> str:
    """What is unlike llama.cpp's constants in an encoder; "" where nothing is."""
    vision = config.vision
    assert isinstance(vision, Llama4Vision)
    joined = 1 / vision.pixel_shuffle_ratio
    if vision.rope_theta != ROPE_THETA:
        return f"its rotary base is {vision.rope_theta:g}, and llama.cpp has {ROPE_THETA:g} for every encoder"
    if vision.norm_eps != NORM_EPS:
        return f"its blocks' epsilon is {vision.norm_eps:g}, that of its other norms {NORM_EPS:g}, and the file has one"
    if vision.channels != CHANNELS or joined != int(joined):
        return f"its pictures have {vision.channels} channels, its tokens {joined:g} patches to a side"
    return ""


def image_tensors(request: ExportRequest, weights: ModelWeights, vision: Llama4Vision) -> list[tuple[str, FileTensor]]:
    """(model-level name, tensor) for all of the encoder; vectors, and what is added to activations, are F32."""
    wanted = request.options.get(OPTION, request.quantize)
    found = []
    for source, (name, shape) in image_tensor_names(vision, request.checkpoint.config.hidden_size).items():
        kind = wanted if wanted in FLOATS else weights.float_dtype(source)
        kind = "f32" if len(shape) == 1 or source == _ADDED else kind
        found.append((source, FileTensor(name, shape, kind, partial(_pieces, weights, source, kind))))
    return found


def _pieces(weights: ModelWeights, source: str, kind: str) -> Iterator[NDArray[np.uint8]]:
    for _, rows in weights.blocks(source):
        yield quantized(kind, rows, source)


def write_images(request: ExportRequest, weights: ModelWeights, vision: Llama4Vision, path: Path) -> None:
    """The file, with what the text model's type does not decide in the ledger."""
    tensors = image_tensors(request, weights, vision)
    matrices = [tensor.kind for name, tensor in tensors if len(tensor.shape) > 1 and name != _ADDED]
    kind = max(FLOATS, key=matrices.count)
    if request.quantize not in (kind, "keep") and OPTION not in request.options:
        reason = f"image encoders stay floats; --option {OPTION} names another type"
        request.note("kept", "vision", f"{IMAGE_FILE} has its matrices as {kind.upper()}", reason)
    keys = _keys(request, vision, kind)
    files = [tensor for _, tensor in tensors]
    write_file(path, ARCHITECTURE, keys, files, lambda done, total: request.progress("writing images", done, total))


def _keys(request: ExportRequest, vision: Llama4Vision, kind: str) -> Keys:
    """What llama.cpp's own conversion writes."""
    checkpoint = request.checkpoint
    own: Keys = {
        "projection_dim": checkpoint.config.hidden_size,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "block_count": vision.layers,
        "attention.head_count": vision.heads,
        "attention.layer_norm_epsilon": float(vision.norm_eps),
        "projector.scale_factor": int(1 / vision.pixel_shuffle_ratio),
        "image_mean": [MEAN] * CHANNELS,
        "image_std": [STD] * CHANNELS,
    }
    return {
        "general.type": "mmproj",
        "general.name": checkpoint.name or checkpoint.config.name,
        **({"general.license": checkpoint.license} if checkpoint.license else {}),
        "general.quantized_by": f"llamac {version('llamac')}",
        "general.file_type": FILE_TYPES[kind],
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR,
        "clip.use_gelu": True,
        **{f"{ARCHITECTURE}.vision.{name}": value for name, value in own.items()},
    }

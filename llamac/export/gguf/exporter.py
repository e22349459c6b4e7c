"""`llamac export --to gguf`: one file for llama.cpp, or a folder with a Modelfile for Ollama and the image encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..model_weights import ModelWeights
from ..request import Check, ExportRequest
from .architecture import check_architecture, rope_divisors
from .checks import checked
from .encode import tensor_bytes
from .image_checks import image_checks
from .image_encoder import IMAGE_FILE, note_left_out, write_images, written_encoder
from .keys import Keys
from .library import gguf_library
from .metadata import file_keys
from .modelfile import modelfile
from .plan import Notes, PlannedTensor, plan_tensors
from .writing import FileTensor, write_file

MODEL_FILE = "model.gguf"
ROPE_FREQUENCIES = "rope_freqs.weight"


def write(request: ExportRequest, place: Path) -> None:
    """Write the file, or the folder. LLC0945, LLC0946 or LLC0947 for what has no form in GGUF, LLC0948 without gguf."""
    gguf_library()
    check_architecture(request.checkpoint.config)
    weights, is_folder = request.weights("interleaved"), place.is_dir()
    vision = written_encoder(request, is_folder)
    planned, decisions = plan_tensors(request, weights)
    decisions.write(request)
    note_left_out(request, is_folder)
    keys = file_keys(request, planned)
    text = modelfile(request, keys, MODEL_FILE) if is_folder else None
    _write_file(request, weights, planned, keys, place / MODEL_FILE if is_folder else place)
    if text is not None:
        (place / "Modelfile").write_text(text, "utf-8")
    if vision is not None:
        write_images(request, weights, vision, place / IMAGE_FILE)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read the files back: tensors, config, tokenizer, logits, and llama.cpp where it is installed."""
    yield from checked(request, place / MODEL_FILE if place.is_dir() else place)
    vision = written_encoder(request, place.is_dir())
    if vision is not None:
        yield from image_checks(request, vision, place / MODEL_FILE, place / IMAGE_FILE)


def _write_file(
    request: ExportRequest, weights: ModelWeights, planned: Sequence[PlannedTensor], keys: Keys, path: Path
) -> None:
    """The text model; what was rounded on the way is noted behind it."""
    notes, memory = Notes(), request.memory
    tensors = [
        FileTensor(tensor.name, tensor.shape, tensor.kind, partial(tensor_bytes, weights, tensor, notes, memory))
        for tensor in planned
    ]
    divisors = rope_divisors(request.checkpoint.config)
    if divisors is not None:
        data = divisors.astype("<f4").view(np.uint8)
        tensors.insert(0, FileTensor(ROPE_FREQUENCIES, divisors.shape, "f32", lambda: iter((data,))))
    architecture = request.checkpoint.config.architecture
    write_file(path, architecture, keys, tensors, lambda done, total: request.progress("writing", done, total))
    notes.write(request)

"""`llamac export --to gguf`: one file for llama.cpp, or a folder with a Modelfile for Ollama."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..model_weights import ModelWeights
from ..request import Check, ExportRequest
from .architecture import check_architecture, rope_divisors
from .checks import checked
from .encode import tensor_bytes
from .keys import Keys, add_keys
from .library import gguf_library
from .metadata import file_keys
from .modelfile import modelfile
from .plan import Notes, PlannedTensor, plan_tensors

MODEL_FILE = "model.gguf"
ROPE_FREQUENCIES = "rope_freqs.weight"
ALIGNMENT = 32


def write(request: ExportRequest, place: Path) -> None:
    """Write the file, or the folder. LLC0945, LLC0946 or LLC0947 for what has no form in GGUF, LLC0948 without gguf."""
    gguf_library()
    check_architecture(request.checkpoint.config)
    weights = request.weights("interleaved")
    planned, decisions = plan_tensors(request, weights)
    decisions.write(request)
    keys = file_keys(request, planned)
    text = modelfile(request, keys, MODEL_FILE) if place.is_dir() else None
    _write_file(request, weights, planned, keys, place / MODEL_FILE if place.is_dir() else place)
    if text is not None:
        (place / "Modelfile").write_text(text, "utf-8")


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read the file back: tensors, config, tokenizer, logits, and llama.cpp where it is installed."""
    return checked(request, place / MODEL_FILE if place.is_dir() else place)


def _write_file(
    request: ExportRequest, weights: ModelWeights, planned: Sequence[PlannedTensor], keys: Keys, path: Path
) -> None:
    """The header by the library, then the tensors one after the other, a few rows at a time."""
    gguf = gguf_library()
    writer = gguf.GGUFWriter(path, request.checkpoint.config.architecture)
    add_keys(writer, keys)
    divisors = rope_divisors(request.checkpoint.config)
    if divisors is not None:
        kind = gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(ROPE_FREQUENCIES, divisors.shape, np.dtype(np.float32), divisors.nbytes, kind)
    for tensor in planned:
        kind = gguf.GGMLQuantizationType[tensor.kind.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    notes, total, done = Notes(), sum(tensor.nbytes for tensor in planned), 0
    with path.open("ab") as file:
        if divisors is not None:
            file.write(_aligned(file.tell()) + divisors.astype("<f4").tobytes())
        for tensor in planned:
            file.write(_aligned(file.tell()))
            start = file.tell()
            for piece in tensor_bytes(weights, tensor, notes, request.memory):
                file.write(piece.data)
                done += piece.nbytes
                request.progress("writing", done, total)
            assert file.tell() - start == tensor.nbytes, tensor
        file.write(_aligned(file.tell()))
    notes.write(request)


def _aligned(position: int) -> bytes:
    """Zeros up to the next place where a tensor may begin."""
    return bytes(-position % ALIGNMENT)

"""A Hugging Face folder of plain weights: what Transformers loads, and everything that reads its folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamac.models.llama.config import LlamaConfig

from .folder_check import FolderCheck
from .hf_config import hf_model
from .hf_names import hf_tensors
from .hf_plain import meant_rows, plain_job
from .hf_writing import write_hf_folder
from .model_weights import ModelWeights
from .request import Check, ExportRequest
from .transformers_check import transformers_checks


def write(request: ExportRequest, place: Path) -> None:
    """config.json, generation_config.json, the tokenizer, and safetensors in shards."""
    config, weights = _model(request)
    tensors = hf_tensors(config, weights.names)
    note_dequantized(request, weights)
    jobs = [plain_job(weights, config, tensor, _dtype(request, weights, tensor.weights[0])) for tensor in tensors]
    write_hf_folder(request, place, config, jobs)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read back: the config, every weight bit for bit, logits, and transformers where it is installed."""
    config, weights = _model(request)
    meant = meant_rows(weights, config, lambda name: _dtype(request, weights, name))
    yield from FolderCheck(request, place, config, meant).run()
    yield from transformers_checks(request, place)


def _model(request: ExportRequest) -> tuple[LlamaConfig, ModelWeights]:
    checkpoint = request.checkpoint
    config = hf_model(checkpoint.config, checkpoint.config.dtype if request.quantize == "keep" else request.quantize)
    return config, request.weights(config.rope_style)


def _dtype(request: ExportRequest, weights: ModelWeights, name: str) -> str:
    """What a weight is stored as: of experts that are stored together, what the first of them is."""
    return weights.float_dtype(name) if request.quantize == "keep" else request.quantize


def note_dequantized(request: ExportRequest, weights: ModelWeights) -> None:
    """One ledger entry where the source's weights are quantized."""
    names = [name for name in weights.names if weights.stored(name).encoding not in ("f32", "f16", "bf16")]
    if names:
        what = f"{names[0]} and {len(names) - 1} more were stored quantized ({weights.stored(names[0]).encoding})"
        request.note("dequantized", "weights", what, "a plain folder holds floats: their exact values")

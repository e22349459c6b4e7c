"""A folder as Meta publishes its models: params.json, consolidated.00.pth, and tokenizer.model where there is one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import LlamaConfig

from .folder_check import FolderCheck
from .hf_folder import note_dequantized
from .hf_names import HfTensor
from .hf_plain import STORED, meant_rows, rounded, tensor_values
from .meta_mllama import check_grids, mllama_values, note_places, with_grids
from .meta_names import meta_tensors
from .meta_params import meta_params
from .meta_tokenizer import TOKENIZER_MODEL, tokenizer_model
from .model_weights import ModelWeights
from .request import Check, ExportRequest
from .torch_file import StreamedTensor, write_torch_file

WEIGHTS = "consolidated.00.pth"
METAS_FACTOR = 8.0


def write(request: ExportRequest, place: Path) -> None:
    """One shard, for one device: Meta's own code divides it again where there are more."""
    params, config = meta_params(request.checkpoint.config)
    weights = request.weights(config.rope_style)
    _note_unsaid(request, config)
    note_places(request, weights)
    note_dequantized(request, weights)
    planned = meta_tensors(config, weights.names)
    check_grids(weights, config, planned)
    tensors = [_streamed(request, weights, config, tensor) for tensor in planned]
    (place / "params.json").write_text(json.dumps(params, indent=2) + "\n", "utf-8")
    tokenizer = tokenizer_model(request.checkpoint)
    if tokenizer is not None:
        (place / TOKENIZER_MODEL).write_bytes(tokenizer)
    write_torch_file(place / WEIGHTS, tensors, lambda done, total: request.progress("writing weights", done, total))


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read back as any of Meta's folders is: the config, every weight bit for bit, the tokenizer, logits."""
    _, config = meta_params(request.checkpoint.config)
    weights = request.weights(config.rope_style)
    meant = with_grids(meant_rows(weights, config, partial(_dtype, request, weights)), weights, config)
    stored = Counter(_dtype(request, weights, tensor.weights[0]) for tensor in meta_tensors(config, weights.names))
    config = replace(config, dtype=stored.most_common(1)[0][0])
    yield from FolderCheck(request, place, config, meant, hugging_face=False).run()


def _dtype(request: ExportRequest, weights: ModelWeights, name: str) -> str:
    return weights.float_dtype(name) if request.quantize == "keep" else request.quantize


def _streamed(request: ExportRequest, weights: ModelWeights, config: LlamaConfig, tensor: HfTensor) -> StreamedTensor:
    dtype = _dtype(request, weights, tensor.weights[0])

    def blocks() -> Iterator[NDArray[Any]]:
        read = tensor_values if tensor.layout in ("rows", "experts") else mllama_values
        for values in read(weights, config, tensor):
            yield rounded(values, dtype, tensor.weights[0])

    shape = (tensor.shape[0] * tensor.shape[1], tensor.shape[2]) if tensor.layout == "experts" else tensor.shape
    return StreamedTensor(tensor.name, STORED[dtype], shape, blocks)


def _note_unsaid(request: ExportRequest, config: LlamaConfig) -> None:
    source: Checkpoint = request.checkpoint
    if config.context_length != source.config.context_length:
        what = f"context length {source.config.context_length}"
        request.note("note", "params.json", what, f"the file has no place for it; readers take {config.context_length}")
    scaling = config.rope_scaling
    if scaling is not None and config.architecture != "llama4" and scaling.factor != METAS_FACTOR:
        reason = f"Meta's own code has {METAS_FACTOR:.0f} for every model; other readers take what the file says"
        request.note("note", "params.json", f"rope_scaling_factor {scaling.factor:g}", reason)
    if source.chat_template is not None or source.generation.sampling:
        request.note("note", "params.json", "chat template and sampling", "Meta's folders have no place for them")
    if tokenizer_model(source) is None:
        known = (
            "the source has no tokenizer" if source.tokenizer is None else f"it is of the kind {source.tokenizer.kind}"
        )
        request.note("absent", "tokenizer", f"no {TOKENIZER_MODEL}", f"{known}, which has no form there")

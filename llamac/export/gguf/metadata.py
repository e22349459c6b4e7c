"""All metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from llamac.models.gguf_file import read_gguf

from ..request import ExportRequest
from .architecture import architecture_keys
from .chat import jinja_template
from .keys import Keys
from .plan import PlannedTensor, most_frequent_scheme
from .recipes import FILE_TYPES, FLOATS
from .vocabulary import vocabulary_keys

QUANTIZATION_VERSION = 2
"""The version of the block formats, which llama.cpp asks for."""
SAMPLING_KEYS = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
SAMPLING_KEYS |= {"repetition_penalty": "penalty_repeat"}
_MADE_ANEW = frozenset({"general.architecture", "general.alignment"})


def file_keys(request: ExportRequest, planned: Sequence[PlannedTensor]) -> Keys:
    """Everything that llama.cpp and Ollama read; a GGUF source's own keys stay as they are.

    LLC0946 for a tokenizer without a form in GGUF.
    """
    if request.checkpoint.format == "gguf":
        keys = _of_source(request)
    else:
        keys = _general(request) | architecture_keys(request.checkpoint.config) | vocabulary_keys(request)
        template = jinja_template(request.checkpoint)
        if template is not None:
            keys["tokenizer.chat_template"] = template
            _note_template(request)
    if any(tensor.kind not in FLOATS for tensor in planned):
        keys["general.quantization_version"] = QUANTIZATION_VERSION
    keys["general.file_type"] = _file_type(request, planned)
    return keys


def _file_type(request: ExportRequest, planned: Sequence[PlannedTensor]) -> int:
    if request.quantize != "keep":
        return FILE_TYPES[request.quantize]
    if request.checkpoint.format == "gguf":
        stored = _source_metadata(request).get("general.file_type")
        if isinstance(stored, int):
            return stored
    return FILE_TYPES[most_frequent_scheme(planned)]


def _source_metadata(request: ExportRequest) -> dict[str, object]:
    return read_gguf(next(iter(request.checkpoint.tensors.values())).file).metadata


def _of_source(request: ExportRequest) -> Keys:
    """All keys of a GGUF source in their order but those of the container; empty lists say nothing and go."""
    metadata = _source_metadata(request)
    return {k: v for k, v in metadata.items() if k not in _MADE_ANEW and not k.startswith("split.") and v != []}


def _general(request: ExportRequest) -> Keys:
    checkpoint = request.checkpoint
    keys: Keys = {"general.type": "model", "general.name": checkpoint.name or checkpoint.config.name}
    if checkpoint.license:
        keys["general.license"] = checkpoint.license
    keys["general.quantized_by"] = f"llamac {version('llamac')}"
    for name, key in SAMPLING_KEYS.items():
        value = checkpoint.generation.sampling.get(name)
        if value is not None:
            keys[f"general.sampling.{key}"] = int(value) if name == "top_k" else float(value)
    return keys


def _note_template(request: ExportRequest) -> None:
    if request.checkpoint.chat_template is None:
        reason = "the source names its format and brings no template; tools are not part of this one"
        request.note("default", "chat template", "one that writes messages as the format does", reason)

"""Writes a Hugging Face folder: the configs, the tokenizer, and the weights that jobs make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamac.models.llama.config import LlamaConfig

from .chat_templates import chat_template
from .hf_config import config_json, generation_json
from .hf_tokenizer import tokenizer_files
from .image_processor import processor_files
from .request import ExportRequest
from .safetensors_writer import Job, write_safetensors
from .shard_option import shard_bytes


def write_hf_folder(
    request: ExportRequest,
    place: Path,
    config: LlamaConfig,
    jobs: Sequence[Job],
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Everything that a consumer reads; what can be refused is refused before the weights are written."""
    checkpoint, size = request.checkpoint, shard_bytes(request.options)
    texts = tokenizer_files(checkpoint)
    if not texts:
        request.note("absent", "tokenizer", "the folder takes and gives token ids only", "the source has no tokenizer")
    elif checkpoint.chat_template is None:
        made = chat_template(checkpoint)
        what = "none" if made is None else "that of the family's own format; it offers no tools"
        request.note("note", "chat template", what, "the source has no template")
    if checkpoint.config.attention is not None and not checkpoint.config.attention.chunk:
        what = f"one chunk of {config.context_length} positions"
        request.note(
            "note", "layers.N.attn", what, "the model has none, and transformers makes chunks for every Llama 4"
        )
    configs = {
        "config.json": config_json(config, checkpoint.generation, quantization),
        "generation_config.json": generation_json(checkpoint),
    }
    for name, content in configs.items():
        (place / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for name, data in (texts | processor_files(config)).items():
        (place / name).write_bytes(data)
    write_safetensors(place, jobs, size, lambda done, total: request.progress("writing weights", done, total))

"""`--to onnx-genai`: a folder that onnxruntime-genai runs: model.onnx with its operators, settings, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint

from .onnx_check import check_generation, check_logits, check_model, check_weights
from .onnx_graph import OnnxExport, emitted_graph, json_bytes, write_graphs
from .request import Check, ExportRequest

SETTINGS = "genai_config.json"


def write(request: ExportRequest, place: Path) -> None:
    """Write the folder; LLC0934 where onnxruntime-genai would not know where a text ends."""
    export = emitted_graph(request, contributed=True)
    settings = json_bytes(genai_settings(request.checkpoint, export))
    if "logits" not in request.options:
        reason = "onnxruntime-genai samples from no others; --option logits=all gives all of them"
        request.note("default", "logits", "those of the last token of each sequence alone", reason)
    if request.checkpoint.tokenizer is None:
        reason = "the source has none: the folder takes and gives token ids only"
        request.note("absent", "tokenizer", "no tokenizer.json is written", reason)
    write_graphs(request, [export], place)
    (place / SETTINGS).write_bytes(settings)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """onnx.checker, every weight, ONNX Runtime's logits, and the text that onnxruntime-genai writes."""
    export = emitted_graph(request, contributed=True)
    yield check_model(place)
    yield check_weights(request, export, place)
    yield from check_logits(request, place)
    yield from check_generation(request, place)


def genai_settings(checkpoint: Checkpoint, export: OnnxExport) -> dict[str, Any]:
    """genai_config.json: names of inputs and outputs, sizes, special ids, and the published sampling settings."""
    config, generation = checkpoint.config, checkpoint.generation
    stops = list(generation.stop_ids)
    if not stops and checkpoint.tokenizer is not None:
        reason = "the source names no token that ends a text, and onnxruntime-genai wants one"
        raise LlamacError("LLC0934", "generation", reason, "name eos_token_id in the source's generation_config.json")
    ends: Any = (stops if len(stops) > 1 else stops[0]) if stops else 0
    cache = ("key", "value")
    inputs = {name: name for name in export.emitted.inputs if not name.startswith("past_")}
    inputs |= {f"past_{part}_names": f"past_key_values.%d.{part}" for part in cache}
    outputs = {"logits": "logits"} | {f"present_{part}_names": f"present.%d.{part}" for part in cache}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": inputs,
        "outputs": outputs,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
    }
    model = {
        "bos_token_id": generation.bos_id if generation.bos_id is not None else 0,
        "context_length": config.context_length,
        "decoder": decoder,
        "eos_token_id": ends,
        "pad_token_id": stops[0] if stops else 0,
        "type": "llama",
        "vocab_size": config.vocab_size,
    }
    return {"model": model, "search": _search(checkpoint)}


def _search(checkpoint: Checkpoint) -> dict[str, Any]:
    """How onnxruntime-genai searches unless told: greedily, or as published with a temperature."""
    given = checkpoint.generation.sampling
    sampled = given.get("temperature", 0.0) > 0
    found: dict[str, Any] = {
        "do_sample": sampled,
        "max_length": checkpoint.config.context_length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": given.get("repetition_penalty", 1.0),
        "temperature": given["temperature"] if sampled else 1.0,
        "top_k": int(given.get("top_k", 50)) if sampled else 1,
        "top_p": given.get("top_p", 1.0),
    }
    return found

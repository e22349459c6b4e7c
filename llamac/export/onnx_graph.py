"""What both ONNX forms do: the model-level graph, its emission, and the files of text and settings beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.backends.onnx.contributed import emit_contributed
from llamac.backends.onnx.emit import Emitted, emit_decoder, emit_embedding, emit_standard, emit_vision
from llamac.backends.onnx.emitter import Settings
from llamac.backends.onnx.parts import decoder_of, embedding_of
from llamac.errors import LlamacError
from llamac.image_side import has_encoder, raised_encoder
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.layer_kinds import is_uniform, layer_counts
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import onnx_pipeline, parse_quantization
from llamac.passes.quantize_int4 import QuantizeInt4
from llamac.passes.quantize_int8 import QuantizeInt8
from llamac.transform.base import PassContext
from llamac.transform.pipeline import Step, run_pipeline

from .hf_config import config_json, generation_json, hf_model
from .hf_tokenizer import tokenizer_files
from .image_processor import processor_files
from .request import ExportRequest

_CHOICES = {"logits": ("all", "last"), "accuracy": ("4", "1"), "tables": ("8", "4")}
"""Option -> its values, the default first; onnxruntime-genai samples from the last logits alone."""


@dataclass(frozen=True)
class OnnxExport:
    """One model in one ONNX form: the graph it came from, and what was emitted."""

    module: Module
    emitted: Emitted
    evaluator: WeightEvaluator


def emitted_parts(request: ExportRequest) -> list[OnnxExport]:
    """What the standard form of `request` is made of: one graph, or the three of a model that sees."""
    checkpoint = request.checkpoint
    if not has_encoder(checkpoint.config, checkpoint.tensors):
        return [emitted_graph(request, contributed=False)]
    settings, properties = _settings(request), _properties(request)
    decoder = decoder_of(lowered(request, joined=False))
    embedding = embedding_of(lowered(request, joined=False))
    if checkpoint.config.tied_head:
        reason = "each of the graphs has a file of its own"
        request.note("copied", "embed", "stored for the embedding, and for the head", reason)
    vision = lowered_encoder(request)
    evaluator = WeightEvaluator(checkpoint.read_rows)
    return [
        OnnxExport(vision, emit_vision(vision, request.note, properties), evaluator),
        OnnxExport(embedding, emit_embedding(embedding, request.note, properties), evaluator),
        OnnxExport(decoder, emit_decoder(decoder, settings, request.note, properties), evaluator),
    ]


def lowered_encoder(request: ExportRequest) -> Module:
    """The model-level module of the image encoder; what was decided is in the ledger."""
    checkpoint, quantization = request.checkpoint, parse_quantization(request.quantize)
    context = PassContext(checkpoint.read_rows, [])
    module = raised_encoder(checkpoint.config, checkpoint.tensors, quantization, context)
    request.ledger.extend(entry for entry in context.ledger if entry not in request.ledger)
    return module


def emitted_graph(request: ExportRequest, contributed: bool) -> OnnxExport:
    """The graph of `request`, with ONNX Runtime's own operators or without; no weight is read.

    Everything that the form cannot hold is refused here: LLC0924 for options, LLC0931 and LLC0932 for the model.
    """
    settings = _settings(request)
    module = lowered(request, joined=contributed)
    emit = emit_contributed if contributed else emit_standard
    emitted = emit(module, settings, request.note, _properties(request))
    return OnnxExport(module, emitted, WeightEvaluator(request.checkpoint.read_rows))


def _properties(request: ExportRequest) -> dict[str, str]:
    return {"llamac.quantization": request.quantize, "llamac.model": request.checkpoint.name}


def lowered(request: ExportRequest, joined: bool, merges: bool = False) -> Module:
    """The model-level module of the text model, its weights in the wanted scheme; what was decided is in the ledger.

    merges: a step that puts image embeddings among the embedded text itself, as llamac's own code does.
    """
    checkpoint, quantization = request.checkpoint, parse_quantization(request.quantize)
    config = checkpoint.config if merges else _text_model(request)
    module = build_graph(config, checkpoint.tensors)
    context = PassContext(checkpoint.read_rows, [])
    steps = onnx_pipeline(layer_counts(config), quantization, is_uniform(config, checkpoint.tensors), joined)
    if _chosen(request)["tables"] == "4" and quantization.scheme == "int4":
        narrow = Step(QuantizeInt4("tables", quantization.group, quantization.asymmetric))
        steps = [narrow if isinstance(step.run, QuantizeInt8) else step for step in steps]
    run_pipeline(module, steps, context)
    request.ledger.extend(entry for entry in context.ledger if entry not in request.ledger)
    return module


def _text_model(request: ExportRequest) -> LlamaConfig:
    """The config without its image encoder; LLC0932 where the text model itself looks at pictures that cannot be shown.

    The standard form of a model that sees has graphs of its own for pictures.
    """
    config = request.checkpoint.config
    if request.format == "onnx" and has_encoder(config, request.checkpoint.tensors):
        return config if config.cross_layers else replace(config, vision=None)
    if config.cross_layers:
        reason = "its layers attend to vision tokens, and the interface of text models has no input for them"
        hint = "export it with --to onnx" if config.vision is not None else "compile it for a CPU target"
        raise LlamacError("LLC0932", f"layers.{config.cross_layers[0]}", reason, hint)
    if config.vision is not None:
        reason = f"the interface of {request.format} has no input for them; --to onnx has, for a source with an encoder"
        request.note("absent", "pictures", "the exported model takes text only", reason)
    return replace(config, vision=None)


def _chosen(request: ExportRequest) -> dict[str, str]:
    """The value of every option (LLC0924 for one that it does not have)."""
    chosen = {name: request.options.get(name, values[0]) for name, values in _CHOICES.items()}
    if request.format == "onnx-genai":
        chosen["logits"] = request.options.get("logits", "last")
    for name, values in _CHOICES.items():
        if chosen[name] not in values:
            reason = f"{name}={chosen[name]} is none of its values"
            raise LlamacError("LLC0924", "--option", reason, f"choose {' or '.join(values)}")
    return chosen


def _settings(request: ExportRequest) -> Settings:
    chosen = _chosen(request)
    return Settings(chosen["logits"], int(chosen["accuracy"]), request.checkpoint.config.context_length)


def write_graphs(request: ExportRequest, exports: Sequence[OnnxExport], folder: Path) -> None:
    """The graphs, their weights, and the files that transformers' own loaders want beside them."""
    total, done = sum(export.emitted.data.nbytes for export in exports), 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        request.progress("writing", done, total)

    for export in exports:
        export.emitted.write(folder, export.evaluator, request.memory, wrote)
    for name, content in text_files(request, sees=len(exports) > 1).items():
        (folder / name).write_bytes(content)


def text_files(request: ExportRequest, sees: bool) -> dict[str, bytes]:
    """config.json, generation_config.json and the tokenizer's files; how weights are stored is ONNX's matter.

    sees: with the image encoder in the config, and how pictures become tiles.

    The graph holds the rotation itself, so a config.json that cannot say it is left out, which the ledger tells.
    """
    checkpoint = request.checkpoint
    model = checkpoint.config if sees else replace(checkpoint.config, vision=None)
    found = tokenizer_files(checkpoint) | processor_files(model)
    found["generation_config.json"] = json_bytes(generation_json(checkpoint))
    try:
        config = hf_model(model, checkpoint.config.dtype)
        found["config.json"] = json_bytes(config_json(config, checkpoint.generation))
    except LlamacError as error:
        request.note("absent", "config.json", "transformers' loaders find no config beside the model", error.reason)
    return found


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON, one key a line."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

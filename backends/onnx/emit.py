"""The two kinds of ONNX models, from a model-level module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Graph, Module

from .attention_rules import ATTENTION_RULES
from .cross_rules import CROSS_RULES
from .emitter import Emitter, Rule, Settings
from .encoder_rules import ENCODER_RULES
from .external_data import ExternalData
from .graph_writer import DATA
from .interfaces import declare_embedding, declare_pictures, declare_text, declare_tiles, join_pictures
from .norm_rules import NORM_RULES
from .product_rules import PRODUCT_RULES
from .routing_rules import ROUTING_RULES
from .shape_rules import SHAPE_RULES
from .weights import Note, Stored

MODEL = "model.onnx"
"""Name of the file that holds the graph."""

STANDARD: Mapping[str, Rule] = {
    **SHAPE_RULES,
    **NORM_RULES,
    **PRODUCT_RULES,
    **ATTENTION_RULES,
    **ROUTING_RULES,
    **CROSS_RULES,
    **ENCODER_RULES,
}
"""Opcode -> its form in standard operators."""


@dataclass(frozen=True)
class Emitted:
    """An ONNX model whose weights are not written yet. `stored` says how each weight lies in the file.

    file, data_file: what its graph and its weights are called.
    """

    model: Any
    data: ExternalData
    stored: Mapping[str, Stored]
    file: str = MODEL
    data_file: str = DATA

    @property
    def inputs(self) -> list[str]:
        """Names of what the graph takes, in order."""
        return [declared.name for declared in self.model.graph.input]

    def write(self, folder: Path, evaluator: WeightEvaluator, memory: int, progress: Callable[[int], None]) -> None:
        """Write the graph and the weights into `folder`."""
        (folder / self.file).write_bytes(self.model.SerializeToString(deterministic=True))
        self.data.write(folder / self.data_file, evaluator, memory, progress)


def emit_standard(module: Module, settings: Settings, note: Note, properties: Mapping[str, str]) -> Emitted:
    """`module` in standard operators: what every ONNX runtime of the opset runs. LLC0931, LLC0932."""
    emitter = Emitter(module.step, STANDARD, settings, note)
    declare_text(emitter)
    emitter.run()
    return finished(emitter, module.name, properties)


VISION, EMBEDDING, DECODER = "vision_encoder", "embed_tokens", "decoder_model_merged"
"""The graphs of a model that sees, as transformers.js and optimum name them."""


def emit_decoder(module: Module, settings: Settings, note: Note, properties: Mapping[str, str]) -> Emitted:
    """A step that begins with embedded tokens (`parts.decoder_of`)."""
    emitter = _part(module.step, settings, note, DECODER)
    declare_text(emitter)
    emitter.run()
    return finished(emitter, module.name, properties, DECODER)


def emit_embedding(module: Module, note: Note, properties: Mapping[str, str]) -> Emitted:
    """The lookup alone (`parts.embedding_of`)."""
    emitter = _part(module.step, Settings(), note, EMBEDDING)
    declare_embedding(emitter)
    emitter.run()
    return finished(emitter, module.name, properties, EMBEDDING)


def emit_vision(module: Module, note: Note, properties: Mapping[str, str], data: ExternalData | None = None) -> Emitted:
    """An image encoder at the model level, with the projection to keys and values where it has one.

    data: the file of another graph that its weights go to, behind those of that graph.
    """
    emitter = _part(module.main, Settings(), note, VISION, data)
    projection = module.graphs.get("project_image")
    if projection is None:
        declare_tiles(emitter)
        emitter.run()
    else:
        declare_pictures(emitter, projection)
        emitter.run()
        join_pictures(emitter, projection)
        emitter.run(projection)
    return finished(emitter, module.name, properties, VISION)


def _part(graph: Graph, settings: Settings, note: Note, name: str, data: ExternalData | None = None) -> Emitter:
    return Emitter(graph, STANDARD, settings, note, f"{name}.onnx_data", data)


def finished(emitter: Emitter, name: str, properties: Mapping[str, str], part: str = "model") -> Emitted:
    """What an emitter made; `part` is what its file is called."""
    w = emitter.writer
    return Emitted(w.model(name, dict(properties)), w.data, emitter.weights.stored, f"{part}.onnx", w.data_file)

"""The two kinds of ONNX models, from a model-level module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module

from .attention_rules import ATTENTION_RULES
from .emitter import Emitter, Rule, Settings
from .external_data import ExternalData
from .graph_writer import DATA
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
}
"""Opcode -> its form in standard operators."""


@dataclass(frozen=True)
class Emitted:
    """An ONNX model whose weights are not written yet. `stored` says how each weight lies in the file."""

    model: Any
    data: ExternalData
    stored: Mapping[str, Stored]

    @property
    def inputs(self) -> list[str]:
        """Names of what the graph takes, in order."""
        return [declared.name for declared in self.model.graph.input]

    def write(self, folder: Path, evaluator: WeightEvaluator, memory: int, progress: Callable[[int], None]) -> None:
        """Write the graph and the weights into `folder`."""
        (folder / MODEL).write_bytes(self.model.SerializeToString(deterministic=True))
        self.data.write(folder / DATA, evaluator, memory, progress)


def emit_standard(module: Module, settings: Settings, note: Note, properties: Mapping[str, str]) -> Emitted:
    """`module` in standard operators: what every ONNX runtime of the opset runs. LLC0931, LLC0932."""
    emitter = Emitter(module.step, STANDARD, settings, note)
    emitter.run()
    return finished(emitter, module.name, properties)


def finished(emitter: Emitter, name: str, properties: Mapping[str, str]) -> Emitted:
    """What an emitter made."""
    return Emitted(emitter.writer.model(name, dict(properties)), emitter.writer.data, emitter.weights.stored)

"""The captured graphs of the image side of any architecture of the family that has one."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.ir.graph import Module

from .checkpoint import StoredTensor
from .llama.config import LlamaConfig
from .llama.vision_config import Llama4Vision, MllamaVision
from .llama4.vision_graph import build_llama4_vision
from .mllama.vision_graph import build_mllama_vision


def build_image_graphs(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module | None:
    """The module with the graph `encode_image` (and for mllama `project_image`) of `config`; None for a text model."""
    if isinstance(config.vision, Llama4Vision):
        return build_llama4_vision(config, tensors)
    if isinstance(config.vision, MllamaVision):
        return build_mllama_vision(config, tensors)
    return None

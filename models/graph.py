"""The captured graph of any architecture of the family."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError
from llamac.ir.graph import Module

from .checkpoint import StoredTensor
from .llama.config import LlamaConfig
from .llama.graph import build_llama
from .llama4.graph import build_llama4
from .mllama.graph import build_mllama

_BUILDERS = {"llama": build_llama, "llama4": build_llama4, "mllama": build_mllama}


def build_graph(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of `config`; `tensors` say how each weight is stored. LLC0301 for an unknown architecture."""
    builder = _BUILDERS.get(config.architecture)
    if builder is None:
        reason = f"the architecture {config.architecture!r} has no graph yet"
        raise LlamacError("LLC0301", config.name, reason, f"architectures: {', '.join(_BUILDERS)}")
    return builder(config, tensors)

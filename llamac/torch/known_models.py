"""Models that graphs of this process were for: a module makes many graphs, and is read off one of them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

from llamac.models.capture.forward import ModelShape
from llamac.models.llama.config import LlamaConfig

from .graph_inputs import GraphInputs
from .weight_states import state_of_weight


@dataclass(frozen=True)
class KnownModel:
    """What these weights are, and where their code lies, compiled into the folder `cache`."""

    weights: tuple[tuple[weakref.ref[torch.Tensor], tuple[float, int]], ...]
    shape: ModelShape
    config: LlamaConfig
    cache: Path
    path: Path

    def has(self, inputs: GraphInputs) -> bool:
        """Whether a graph takes these weights, and they have their values still."""
        given = list(inputs.weights.values())
        return len(given) == len(self.weights) and all(
            known() is weight and state == state_of_weight(weight)
            for (known, state), weight in zip(self.weights, given, strict=True)
        )


_KNOWN: list[KnownModel] = []


def known_model(inputs: GraphInputs, cache: Path) -> KnownModel | None:
    """What a graph before has shown of the same weights, if their code is still there."""
    _KNOWN[:] = [model for model in _KNOWN if all(known() is not None for known, _ in model.weights)]
    found = (model for model in _KNOWN if model.cache == cache and model.path.exists() and model.has(inputs))
    return next(found, None)


def remember_model(inputs: GraphInputs, shape: ModelShape, config: LlamaConfig, cache: Path, path: Path) -> None:
    """For `known_model`."""
    weights = tuple((weakref.ref(weight), state_of_weight(weight)) for weight in inputs.weights.values())
    _KNOWN.append(KnownModel(weights, shape, config, cache, path))

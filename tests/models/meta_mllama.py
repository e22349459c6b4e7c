"""Meta's own Llama 3.2 Vision modules on one process: fairscale's parallel layers are the plain ones there."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch

SOURCE = "llama_models.llama3.multimodal.model"


class _Linear(torch.nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, **_: Any) -> None:
        super().__init__(in_features, out_features, bias=bias)


class _Embedding(torch.nn.Embedding):
    def __init__(self, count: int, width: int, **_: Any) -> None:
        super().__init__(count, width)


def _stub(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


def load_meta_mllama() -> Any:
    """The module `llama_models.llama3.multimodal.model`, over stand-ins for fairscale and torchvision."""
    layers = {"ColumnParallelLinear": _Linear, "RowParallelLinear": _Linear, "VocabParallelEmbedding": _Embedding}
    parallel = {"get_model_parallel_world_size": lambda: 1, "get_model_parallel_rank": lambda: 0}
    stubs = [
        _stub("fairscale"),
        _stub("fairscale.nn"),
        _stub("fairscale.nn.model_parallel"),
        _stub("fairscale.nn.model_parallel.initialize", **parallel),
        _stub("fairscale.nn.model_parallel.layers", **layers),
        _stub("torchvision"),
        _stub("torchvision.transforms", functional=None),
        _stub("torchvision.transforms.functional"),
    ]
    importlib.import_module("transformers")  # before a torchvision that it must not find
    with pytest.MonkeyPatch.context() as patch:
        for stub in stubs:
            patch.setitem(sys.modules, stub.__name__, stub)
        for stub in stubs:
            parent, _, last = stub.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, stub)
        before = set(sys.modules)
        module = importlib.import_module(SOURCE)
        for name in set(sys.modules) - before:
            if name.startswith("llama_models."):
                del sys.modules[name]  # they hold the stand-ins
    module.reduce_from_tensor_model_parallel_region = lambda x: x
    module.gather_from_tensor_model_parallel_region = lambda x: x
    return module

"""Tiny image encoders: the references' models with random weights, and the same weights under model-level names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llamac.models.checkpoint import StoredTensor
from llamac.models.llama.config import LlamaConfig, RopeScaling
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision

Floats = NDArray[np.float32]

LLAMA4_VISION = Llama4Vision(
    hidden_size=32,
    intermediate_size=128,
    layers=2,
    heads=2,
    image_size=56,
    patch_size=14,
    channels=3,
    rope_theta=10000.0,
    norm_eps=1e-5,
    pixel_shuffle_ratio=0.5,
    adapter_hidden=48,
    adapter_output=48,
    image_token=255,
    image_start_token=253,
    image_end_token=254,
)
RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
MLLAMA_VISION = MllamaVision(
    hidden_size=32,
    intermediate_size=128,
    layers=4,
    global_layers=2,
    heads=4,
    image_size=28,
    patch_size=14,
    channels=3,
    norm_eps=1e-5,
    max_tiles=4,
    taps=(1, 3),
    output_size=96,
    supported_aspect_ratios=RATIOS,
    image_token=256,
)


def tiny_config(architecture: str, vision: Llama4Vision | MllamaVision, **changes: Any) -> LlamaConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers": 6,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        "context_length": 131072,
        "tied_head": False,
        "dtype": "f32",
        "rope_style": "half_split",
    }
    return LlamaConfig(**(fields | changes), architecture=architecture, vision=vision)


class Weights:
    """Arrays under model-level names as a checkpoint holds them."""

    def __init__(self, arrays: Mapping[str, Floats]) -> None:
        self.arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        self.tensors = {
            name: StoredTensor(name, name, array.shape, "f32", Path(), 0, array.nbytes)
            for name, array in self.arrays.items()
        }

    def read_rows(self, name: str, lo: int, hi: int) -> NDArray[np.uint8]:
        array = self.arrays[name]
        rows = array if array.ndim == 2 else array.reshape(1, -1)
        return np.ascontiguousarray(rows[lo:hi]).view(np.uint8)


def unread_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """Weights of any size, for graphs that are built and not run."""
    return {name: StoredTensor(name, name, shape, "bf16", Path(), 0, 0) for name, shape in shapes.items()}


def named(state: Mapping[str, torch.Tensor], name_of: Callable[[str], str | None]) -> dict[str, Floats]:
    """A state dictionary under model-level names; every entry must have one."""
    found: dict[str, Floats] = {}
    for stored, value in state.items():
        name = name_of(stored)
        assert name is not None and name not in found, f"{stored} -> {name}"
        found[name] = value.detach().float().numpy()
    return found


def enlarge(model: torch.nn.Module, seed: int, factor: float = 8.0) -> None:
    """Weights large enough to matter: initial ones give outputs that hardly depend on the input; gates are open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gate" in name.rsplit(".", 1)[-1] and weight.numel() == 1:
                weight.fill_(0.5)
            elif weight.ndim >= 2 and "embedding" not in name:
                weight.normal_(0, 0.02 * factor, generator=generator)
            else:
                weight.normal_(0, 0.3, generator=generator)
                weight += 1.0 if name.endswith("weight") and weight.ndim == 1 else 0.0
    model.eval()


def relative_error(found: Floats, expected: Floats) -> float:
    """The largest difference, over the largest expected magnitude."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())

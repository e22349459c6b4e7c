"""Tiny models that take pictures, with weights large enough that what they see shows: sizes that no tile divides."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from planned_models import Planned, Tiny, planned

from llamac.ir.interpreter import Interpreter
from llamac.models.checkpoint import Checkpoint, StoredTensor
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.random_weights import random_checkpoint

Array = np.ndarray[Any, Any]
LLAMA4 = Llama4Vision(
    hidden_size=24, intermediate_size=40, layers=2, heads=2, image_size=28, patch_size=7, channels=3, rope_theta=1e4,
    norm_eps=1e-5, pixel_shuffle_ratio=0.5, adapter_hidden=44, adapter_output=36, image_token=33, image_start_token=34,
    image_end_token=35,
)  # fmt: skip
RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
MLLAMA = MllamaVision(
    hidden_size=24, intermediate_size=40, layers=3, global_layers=1, heads=2, image_size=28, patch_size=14, channels=3,
    norm_eps=1e-5, max_tiles=4, taps=(1, 2), output_size=72, supported_aspect_ratios=RATIOS, image_token=37,
)  # fmt: skip


class LoudRows:
    """Random weights of about one over the root of the columns; norms about one, biases and gates about a half."""

    def __init__(self, dtype: str) -> None:
        self.dtype = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}[dtype]

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> Array:
        random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
        values = random.standard_normal((int(np.prod(tensor.shape[:-1], dtype=np.int64)), tensor.shape[-1]))
        if len(tensor.shape) == 1:
            values = values * 0.2 + (1.0 if tensor.name.endswith("norm") else 0.4)
        else:
            values = values * 1.2 / tensor.shape[-1] ** 0.5
        return np.ascontiguousarray(values[lo:hi].astype(self.dtype)).reshape(-1).view(np.uint8)


def seeing(architecture: str, dtype: str, small: bool = False) -> Checkpoint:
    """A tiny Llama 4 with experts and an encoder, or a tiny Llama 3.2 Vision of three layers, two of which see.

    small: one block of each kind in the encoder, pictures of two tiles at most, and one layer that sees.
    """
    few: Any = {"layers": 1, "output_size": 48, "taps": (0,), "max_tiles": 2, "supported_aspect_ratios": RATIOS[:2]}
    if architecture == "llama4":
        vision = replace(LLAMA4, layers=1) if small else LLAMA4
        config = replace(Tiny(dtype, experts=4).config(), vision=vision)
    else:
        text = Tiny(dtype, layers=2 if small else 3).config()
        config = replace(text, architecture="mllama", vision=MLLAMA, cross_layers=(1, 2))
        if small:
            config = replace(config, vision=replace(MLLAMA, **few), cross_layers=(1,))
    return replace(random_checkpoint(config, 0), row_source=LoudRows(dtype))


def planned_seeing(architecture: str, dtype: str, machine: str, small: bool = False) -> Planned:
    """Its plan for one instruction set."""
    return planned(seeing(architecture, dtype, small), machine, kv=dtype)


def pixels_of(config: LlamaConfig, tiles: int, seed: int = 0) -> Array:
    """Random tiles."""
    vision = config.vision
    assert vision is not None
    shape = (tiles, vision.channels, vision.image_size, vision.image_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def encoder_meaning(model: Planned) -> Interpreter:
    """What the IR means by the encoder, rounded as its types say."""
    assert model.compiled.image is not None
    return Interpreter(model.compiled.image, model.checkpoint.read_rows)

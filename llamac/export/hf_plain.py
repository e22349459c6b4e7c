"""The weights of a plain Hugging Face folder, block by block: every tensor in one float type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES, all_finite, round_to, widen
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import MllamaVision

from .hf_names import TILES, HfTensor, hf_tensors
from .model_weights import ModelWeights
from .safetensors_writer import Block, Job, PlannedTensor

Floats = NDArray[np.float32]
MeantRows = Callable[[str, int, int], Floats]
"""(model-level name, first row, end) -> the values that the written folder should hold, as f32."""

STORED = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""Our names of float types -> those of safetensors."""


def plain_job(weights: ModelWeights, config: LlamaConfig, tensor: HfTensor, dtype: str) -> Job:
    """The job that writes `tensor` in `dtype`; LLC0219 while it runs where a value is too large for that."""

    def blocks() -> Iterator[Block]:
        for values in tensor_values(weights, config, tensor):
            yield (rounded(values, dtype, tensor.weights[0]),)

    return Job((PlannedTensor(tensor.name, STORED[dtype], tensor.shape),), blocks)


def tensor_values(weights: ModelWeights, config: LlamaConfig, tensor: HfTensor) -> Iterator[Floats]:
    """The elements of a tensor in order, some rows at a time."""
    if tensor.layout == "tiles":
        return _tiles(config, weights, tensor)
    return _experts(weights, tensor) if tensor.layout == "experts" else _rows(weights, tensor)


def rounded(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    """`values` as the nearest that `dtype` holds, stored so; LLC0219 for one that is too large."""
    kind = DTYPES[dtype]
    found = round_to(values, kind).astype(kind.storage)
    if not all_finite(found, kind):
        reason = f"holds values that are not finite, or too large for {dtype}"
        raise LlamacError("LLC0219", name, reason, "take an undamaged checkpoint, or another --quantize")
    return found


def _rows(weights: ModelWeights, tensor: HfTensor) -> Iterator[NDArray[np.float32]]:
    for name in tensor.weights:
        for _, rows in weights.blocks(name):
            yield rows


def _experts(weights: ModelWeights, tensor: HfTensor) -> Iterator[NDArray[np.float32]]:
    """[in, out] of one expert after the other, its matrices side by side; some columns of them at a time."""
    for expert in range(tensor.shape[0]):
        matrices = []
        for name in tensor.weights:
            outputs = weights.shape(name)[0] // tensor.shape[0]
            matrices.append(weights.rows(name, expert * outputs, (expert + 1) * outputs))
        step = max(1, (1 << 21) // tensor.shape[2])
        for lo in range(0, tensor.shape[1], step):
            yield np.concatenate([matrix[:, lo : lo + step].T for matrix in matrices], axis=1)


def _tiles(config: LlamaConfig, weights: ModelWeights, tensor: HfTensor) -> Iterator[NDArray[np.float32]]:
    """A row for each aspect ratio id: the places of its grid, row by row, zeros for tiles that there are none of."""
    vision = config.vision
    assert isinstance(vision, MllamaVision)
    table = weights.rows(tensor.weights[0], 0, vision.max_tiles**2)
    yield np.zeros((1, tensor.shape[1]), np.float32)
    for high, wide in vision.supported_aspect_ratios:
        row = np.zeros((vision.max_tiles, table.shape[1]), np.float32)
        for tile in range(high * wide):
            row[tile] = table[tile // wide * vision.max_tiles + tile % wide]
        yield row.reshape(1, -1)


def meant_rows(weights: ModelWeights, config: LlamaConfig, dtype_of: Callable[[str], str]) -> MeantRows:
    """The values of a plain folder by the names that its own reader gives them: tables of tiles in their own form."""

    def rows(name: str, lo: int, hi: int) -> NDArray[np.float32]:
        grid = f"{name}.grid"
        if name in TILES and grid in weights.names:
            (tensor,) = (t for t in hf_tensors(config, weights.names) if t.weights == (grid,))
            table = np.concatenate(list(_tiles(config, weights, tensor)))
            return widen(rounded(table, dtype_of(grid), name))[lo:hi]
        return widen(rounded(weights.rows(name, lo, hi), dtype_of(name), name))

    return rows

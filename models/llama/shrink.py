"""A shrunken model of the same architecture, with synthetic weights: what passes are validated on.

Everything that decides which rewrites fire is kept: the rotary convention and scaling, the ratio of query to KV heads,
tied heads, working dtype, and how each role of weight is stored. Sizes, layers and vocabulary are small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import DTYPES
from llamac.ir.gguf_blocks import BLOCKS

from ..checkpoint import StoredTensor
from ..image_shrink import shrink_vision, vision_shapes
from ..packed_encoding import packed_encoding
from .config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling
from .synthetic_parts import small_packed, synthetic_parts
from .weights import expected_shapes

LAYERS = 2
VOCABULARY = 61
HEAD_DIM = 16
CHUNK = 12
CROSS_LAYERS = (1, 3)
EXPERT = 48
"""Width of an expert: whole panels of 16 rows, which experts have to fill."""
TEMPERATURE_FLOOR = 5.0


def shrink_config(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> LlamaConfig:
    """The same architecture with two layers or one of every kind, at most two KV heads and a vocabulary of 61."""
    group = config.heads // config.kv_heads
    kv_heads = min(config.kv_heads, 2)
    # GGUF blocks are 32 or 256 values wide: rows must hold whole ones.
    width = max((BLOCKS[t.encoding].values for t in tensors.values() if t.encoding in BLOCKS), default=0)
    head_dim = HEAD_DIM if not width else math.lcm(width, HEAD_DIM * kv_heads * group) // (kv_heads * group)
    head_dim += head_dim % 2
    layers = _layers_of_every_kind(config)
    # Two groups of 128 columns, the second short; whole panels of 16 rows where the model's own MLP fills them.
    wide = 136 if config.intermediate_size % 16 else 144
    hidden = 48 if config.moe is not None else 40
    return dataclasses.replace(
        config,
        hidden_size=width or hidden,
        intermediate_size=width or wide,
        layers=layers,
        cross_layers=CROSS_LAYERS if config.cross_layers else (),
        moe=_shrunken_moe(config, layers, width or EXPERT),
        attention=_shrunken_pattern(config, layers),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=VOCABULARY,
        rope_scaling=_shrunken_scaling(config, head_dim),
        vision=shrink_vision(config.vision),
    )


def divisible(small: LlamaConfig, ranks: int, group: int) -> LlamaConfig:
    """The small model with sizes that `ranks` share in whole heads and groups of columns; text only."""
    width = max(group, 32) * ranks
    kv_heads = max(small.kv_heads, ranks)
    heads, head_dim, moe = small.heads // small.kv_heads * kv_heads, small.head_dim, small.moe
    while heads // ranks * head_dim % max(group, 32):
        head_dim *= 2
    if moe is not None:
        moe = dataclasses.replace(moe, intermediate_size=-(-moe.intermediate_size // width) * width)
    return dataclasses.replace(
        small,
        intermediate_size=-(-small.intermediate_size // width) * width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        moe=moe,
        vocab_size=-(-small.vocab_size // ranks) * ranks,
        vision=None,
    )


def _layers_of_every_kind(config: LlamaConfig) -> int:
    """How many of the first layers show every kind twice: with and without rotation, dense and mixed.

    Twice, because equal layers become one function, which a model with one layer of a kind would not show.
    Layers that attend to pictures are not among the first of any model: two of them alternate with two others.
    """
    if config.cross_layers:
        return 2 * len(CROSS_LAYERS)
    unrotated = config.attention.unrotated if config.attention is not None else ()
    seen: dict[tuple[bool, bool], list[int]] = {}
    for layer in range(config.layers):
        seen.setdefault((layer in unrotated, config.is_moe(layer)), []).append(layer)
    return max(layers[:LAYERS][-1] + 1 for layers in seen.values())


def _shrunken_moe(config: LlamaConfig, layers: int, inner: int) -> MixtureOfExperts | None:
    moe = config.moe
    if moe is None:
        return None
    chosen = min(moe.experts_per_token, 3)
    kept = tuple(layer for layer in moe.layers if layer < layers)
    return MixtureOfExperts(min(moe.experts, chosen + 3), chosen, inner, kept)


def _shrunken_pattern(config: LlamaConfig, layers: int) -> AttentionPattern | None:
    """Chunks that end inside a page, and temperatures that change, within the few positions of a scenario."""
    pattern = config.attention
    if pattern is None:
        return None
    unrotated = tuple(layer for layer in pattern.unrotated if layer < layers)
    chunk = CHUNK if pattern.chunk else 0
    return dataclasses.replace(pattern, unrotated=unrotated, chunk=chunk, temperature_floor=TEMPERATURE_FLOOR)


def _shrunken_scaling(config: LlamaConfig, head_dim: int) -> RopeScaling | None:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "divisors":
        return scaling
    # As many divisors as the small head has frequencies, from 1 to the largest, so that each still matters.
    found = scaling.divisors
    picked = [found[i * (len(found) - 1) // max(head_dim // 2 - 1, 1)] for i in range(head_dim // 2)]
    return dataclasses.replace(scaling, divisors=tuple(picked))


def shrink_tensors(
    config: LlamaConfig, small: LlamaConfig, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Weights of the small model, each stored as its counterpart is."""
    shapes = expected_shapes(small) | vision_shapes(small.vision, small.hidden_size, tensors)
    return small_tensors(small, {name: tensors[_source_of(name, config)].encoding for name in shapes})


def _source_of(name: str, config: LlamaConfig) -> str:
    """The weight whose storage that of a small model is like: layer n stands for the n-th of its kind."""
    outer, _, rest = name.partition(".")
    if outer != "layers" or not config.cross_layers:
        return name
    number, _, role = rest.partition(".")
    own = [layer for layer in range(config.layers) if layer not in config.cross_layers]
    kind = config.cross_layers if int(number) in CROSS_LAYERS else own
    return f"layers.{kind[min(int(number) // 2, len(kind) - 1)]}.{role}"


def small_tensors(small: LlamaConfig, encodings: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Weights of the small model in the given encodings; they lie in no file."""
    found: dict[str, StoredTensor] = {}
    shapes = expected_shapes(small) | vision_shapes(small.vision, small.hidden_size, encodings)
    for name, shape in shapes.items():
        encoding = encodings[name]
        packed = packed_encoding(encoding)
        if packed is not None:
            found[name] = small_packed(name, shape, packed)
            continue
        found[name] = StoredTensor(name, name, shape, encoding, Path(), 0, _bytes(encoding, shape))
    return found


def _bytes(encoding: str, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    if encoding in BLOCKS:
        return count // BLOCKS[encoding].values * BLOCKS[encoding].bytes
    return count * DTYPES[encoding].storage.itemsize


class SyntheticWeights:
    """Row bytes of the small model by seed.

    The embedding holds awkward rows: zeros, denormals, large values, twins. Float matrices have rows and groups of
    columns of very different sizes, so that a scale of the wrong row or group shows.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], seed: int) -> None:
        self._rows: dict[str, NDArray[np.uint8]] = {}
        for index, (name, stored) in enumerate(tensors.items()):
            generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
            self._rows |= synthetic_parts(stored, generator) if stored.parts else {name: _synthetic(stored, generator)}

    def read_rows(self, name: str, lo: int, hi: int) -> NDArray[np.uint8]:
        """The row reader that passes and the interpreter use."""
        return self._rows[name][lo:hi]


def _synthetic(stored: StoredTensor, generator: np.random.Generator) -> NDArray[np.uint8]:
    if stored.encoding in BLOCKS:
        return _blocks(stored, generator)
    shape = stored.shape if len(stored.shape) == 2 else (1, *stored.shape)
    spread = 1.5 / math.sqrt(shape[1]) if len(stored.shape) == 2 else 0.25
    values = (generator.random(shape, np.float32) * 2 - 1) * np.float32(spread * math.sqrt(3))
    if len(stored.shape) == 1:
        values += 1
    if len(stored.shape) == 2:
        values = _uneven(values)
    if stored.name == "embed":
        values = _awkward(values * 4)
    data = values.astype(DTYPES[stored.encoding].storage)
    return np.ascontiguousarray(data).view(np.uint8).reshape(shape[0], -1)


def _uneven(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every third 16 columns eight times as large, every eighth row 4096 times smaller."""
    rows, columns = values.shape
    values[:, np.arange(columns) // 16 % 3 == 1] *= np.float32(8)
    values[np.arange(rows) % 8 == 5] *= np.float32(2.0**-12)
    return values


def _awkward(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values[0] = 0.0
    values[1] *= np.float32(1e-30)
    values[2] *= np.float32(200.0)
    values[4] = values[3]
    return values


def _blocks(stored: StoredTensor, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks with scales of a sane size: every byte is random but those of f16 scales and minima."""
    block = BLOCKS[stored.encoding]
    rows, columns = stored.shape
    count = rows * columns // block.values
    data = generator.integers(0, 256, (count, block.bytes), np.uint8)
    places = {"q6_k": (208,), "q4_0": (0,), "q5_0": (0,), "q8_0": (0,)}.get(block.name, (0, 2))
    # So that values are of order 1 / sqrt(columns) whatever the range of the integers and sub-scales.
    largest = {"q8_0": 128, "q6_k": 32 * 128, "q4_k": 15 * 63, "q5_k": 31 * 63}.get(block.name, 16)
    scale = generator.uniform(0.5, 1.5, (count, 1)).astype(np.float32) * np.float32(4 / (largest * math.sqrt(columns)))
    for place in places:
        sign = -8 if place == 2 and block.name.endswith("_1") else 1
        data[:, place : place + 2] = (scale * sign).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)

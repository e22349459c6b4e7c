"""A model of the same widths with few layers, which compiles quickly: text layers and blocks of the image encoder.

Equal layers use the same memory one after another, and weights of equal sizes: a model with every kind of layer twice
says everything about the whole. Blocks whose input joins the encoder's output are all kept, as those inputs are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from llamac.models.image_shrink import vision_shapes
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.llama.weights import expected_shapes

REPEATS = 2
"""Layers of one kind that are kept: the second one finds the hidden state where all later ones find it."""

TEXT, BLOCKS, GLOBAL_BLOCKS = "layers", "vision.layers", "vision.global_layers"
_LAYER = re.compile(r"((?:vision\.(?:global_)?)?layers)\.(\d+)\.(.+)")

Vision = Llama4Vision | MllamaVision


@dataclass(frozen=True)
class FewLayers:
    """The small model: its config, how its weights are stored, and how many layers of the whole each of its stands for.

    standing: "layers.1", "vision.layers.0" and so on -> a count; the first of a kind stands for all that are left out.
    """

    config: LlamaConfig
    encodings: Mapping[str, str]
    standing: Mapping[str, int]

    def count(self, weight: str) -> int:
        """How many weights of the whole model `weight`, or what passes make of it, stands for."""
        found = _LAYER.match(weight)
        return self.standing[f"{found[1]}.{found[2]}"] if found else 1


def image_shapes(config: LlamaConfig, encodings: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The weights of the image encoder; nothing where `encodings` are those of a checkpoint without them."""
    return vision_shapes(config.vision, config.hidden_size, encodings or ("vision.pre_tile",))


def few_layers(config: LlamaConfig, encodings: Mapping[str, str]) -> FewLayers:
    """The model with at most `REPEATS` layers of each kind, in their order.

    A kind is what the config says of a layer, and how each of its weights is stored.
    """
    stored = {
        name: encodings.get(name, config.dtype) for name in expected_shapes(config) | image_shapes(config, encodings)
    }
    kinds = _kinds(config, stored)
    taps = config.vision.taps if isinstance(config.vision, MllamaVision) else ()
    kept = {stack: _kept(rows, taps if stack == BLOCKS else ()) for stack, rows in kinds.items()}
    found, standing = {}, {}
    for stack, rows in kinds.items():
        missing = Counter(rows) - Counter(rows[index] for index in kept[stack])
        for number, index in enumerate(kept[stack]):
            standing[f"{stack}.{number}"] = 1 + missing.pop(rows[index], 0)
    for name, encoding in stored.items():
        layer = _LAYER.match(name)
        if layer is None:
            found[name] = encoding
        elif int(layer[2]) in kept[layer[1]]:
            found[f"{layer[1]}.{kept[layer[1]].index(int(layer[2]))}.{layer[3]}"] = encoding
    return FewLayers(_shrunken(config, kept), found, standing)


def _kinds(config: LlamaConfig, stored: Mapping[str, str]) -> dict[str, list[tuple[object, ...]]]:
    """Stack of layers -> the kind of each of its layers."""
    layers: dict[tuple[str, int], list[object]] = {}
    for name, encoding in stored.items():
        layer = _LAYER.match(name)
        if layer is not None:
            layers.setdefault((layer[1], int(layer[2])), []).append((layer[3], encoding))
    unrotated = config.attention.unrotated if config.attention else ()
    found: dict[str, list[tuple[object, ...]]] = {}
    for (stack, index), rows in layers.items():
        own = (config.is_moe(index), index in unrotated, index in config.cross_layers) if stack == TEXT else ()
        found.setdefault(stack, []).append((*own, *rows))
    return found


def _kept(kinds: list[tuple[object, ...]], taps: Iterable[int]) -> list[int]:
    """Indices of the first layers of every kind, and of all in `taps`."""
    always, seen, kept = set(taps), Counter[tuple[object, ...]](), []
    for index, kind in enumerate(kinds):
        if index not in always:
            seen[kind] += 1
        if index in always or seen[kind] <= REPEATS:
            kept.append(index)
    return kept


def _shrunken(config: LlamaConfig, kept: Mapping[str, list[int]]) -> LlamaConfig:
    layers = kept[TEXT]
    return replace(
        config,
        layers=len(layers),
        moe=_moe(config.moe, layers),
        attention=_attention(config.attention, layers),
        cross_layers=_renumbered(config.cross_layers, layers),
        vision=_vision(config.vision, kept),
    )


def _renumbered(layers: Iterable[int], kept: list[int]) -> tuple[int, ...]:
    """Indices among the kept layers."""
    wanted = set(layers)
    return tuple(index for index, layer in enumerate(kept) if layer in wanted)


def _moe(moe: MixtureOfExperts | None, kept: list[int]) -> MixtureOfExperts | None:
    return replace(moe, layers=_renumbered(moe.layers, kept)) if moe is not None else None


def _attention(pattern: AttentionPattern | None, kept: list[int]) -> AttentionPattern | None:
    return replace(pattern, unrotated=_renumbered(pattern.unrotated, kept)) if pattern is not None else None


def _vision(vision: Vision | None, kept: Mapping[str, list[int]]) -> Vision | None:
    if vision is None or BLOCKS not in kept:
        return vision
    blocks = kept[BLOCKS]
    if isinstance(vision, Llama4Vision):
        return replace(vision, layers=len(blocks))
    taps = _renumbered(vision.taps, blocks)
    return replace(vision, layers=len(blocks), global_layers=len(kept.get(GLOBAL_BLOCKS, ())), taps=taps)

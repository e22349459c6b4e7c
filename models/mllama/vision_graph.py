"""The captured graphs of Llama 3.2 Vision's image side.

`encode_image(pixels [tiles, 3, px, px], aspect_ratio [1]) -> [tiles, tile_tokens, d]`: one picture, always on max_tiles
tiles, those that the picture does not fill zero. All tokens of all tiles attend to one another (padding too: only
padding does not see padding); the inputs of some blocks, the taps, join the output (Meta's VisionEncoder).

`project_image(tokens [M, d]) -> cross_k.i, cross_v.i, ...`: what the cross-attention layers i attend to, [K, M, h],
of the tokens of the tiles that are filled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llamac.ir.builder import new_graph
from llamac.ir.dims import symbol
from llamac.ir.dtypes import F32, I32
from llamac.ir.graph import DataSource, Module, Value
from llamac.ir.types import Type, tensor

from ..checkpoint import StoredTensor
from ..image_encoder import EncoderBuilder
from ..llama.config import LlamaConfig
from ..llama.vision_config import MllamaVision

VISION_TOKENS = symbol("M")
MULTIPLE = 8
"""The tokens of a tile are padded to a multiple of this. None is one already: side^2 + 1 leaves 1, 2 or 5."""


IMAGE_SIDE = ("cross.k", "cross.v", "cross.k_norm")
"""What the image side takes of a cross-attention layer; the rest is the text model's."""


def is_of_image_side(name: str) -> bool:
    """Whether a weight is used by these graphs, rather than by the text model's."""
    return name.startswith("vision.") or name.endswith(IMAGE_SIDE)


def build_mllama_vision(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of both graphs; of `tensors` it takes the weights for which `is_of_image_side` holds."""
    assert isinstance(config.vision, MllamaVision)
    own = {name: stored for name, stored in tensors.items() if is_of_image_side(name)}
    builder = _MllamaVisionBuilder(config, config.vision, own)
    builder.encode_image()
    builder.project_image()
    return builder.module


class _MllamaVisionBuilder(EncoderBuilder):
    def __init__(self, config: LlamaConfig, vision: MllamaVision, tensors: Mapping[str, StoredTensor]) -> None:
        self.padded = vision.tile_tokens + -vision.tile_tokens % MULTIPLE
        super().__init__(config, vision, tensors, vision.max_tiles * self.padded, vision.norm_eps)
        self.vision = vision

    def encode_image(self) -> None:
        b, vision, size = self.b, self.vision, self.image_size
        pixels = tensor(vision.max_tiles, self.channels, size, size, F32)
        b.graph = graph = new_graph(self.module, "encode_image", [("pixels", pixels), ("aspect_ratio", tensor(1, I32))])
        self.aspect_ratio = graph.argument("aspect_ratio")
        with b.at("vision.mask"):
            self.slots = self.tile_slots()
            mask = self.mask()
        with b.at("vision.embed"):
            x = self.embedded(graph.argument("pixels"))
        x, taps = self.tapped_blocks(x, mask)
        with b.at("vision.post_tile"):
            x = self.layer_norm(x, "vision.post_norm")
            x = self.by_tile(x, self.padded, "vision.post_tile")
        for layer in range(vision.global_layers):
            x = self.block(f"vision.global_layers.{layer}", x, 1, mask=mask, gated=True)
        with b.at("vision.projector"):
            features = self.joined_features(x, taps)
            projected = self.linear(features, "vision.projector", bias=True)
            graph.outputs = [b.reshape(projected, vision.max_tiles, vision.tile_tokens, self.config.hidden_size)]

    # Which tiles are real, and what each of them adds.

    def tile_slots(self) -> Value:
        """For each tile its place in the grid of max_tiles x max_tiles, or -1 for padding: i32 [max_tiles]."""
        b, most = self.b, self.vision.max_tiles
        table = np.full((len(self.vision.supported_aspect_ratios) + 1, most), -1, "<i4")
        for number, (rows, columns) in enumerate(self.vision.supported_aspect_ratios, 1):
            places = [row * most + column for row in range(rows) for column in range(columns)]
            table[number, : len(places)] = places
        slots = b.weight("vision.tile_slots", tensor(*table.shape, I32), DataSource(table.tobytes()))
        return b.reshape(b.op("embedding", slots, self.aspect_ratio), most)

    def tile_values(self, name: str, values: int) -> Value:
        """What each tile adds by its place, [max_tiles, values]; nothing for padding."""
        b, most = self.b, self.vision.max_tiles
        if f"{name}.grid" not in self.module.weights:
            return b.reshape(b.op("embedding", self.parameter(name), self.aspect_ratio), most, values)
        none = b.constant(0.0, I32)
        is_padding = b.op("less", self.slots, none)
        rows = b.op("embedding", self.parameter(f"{name}.grid"), b.op("select", is_padding, none, self.slots))
        return b.op("select", b.reshape(is_padding, most, 1), b.constant(0.0, self.dtype), rows)

    def by_tile(self, x: Value, tokens: int, name: str) -> Value:
        """x [max_tiles * tokens, width] plus the gated embedding of each token's tile."""
        b, most = self.b, self.vision.max_tiles
        added = b.op("mul", self.tile_values(name, self.width), self.gate(f"{name}.gate"))
        split = b.reshape(x, most, tokens, self.width)
        return b.reshape(b.op("add", split, b.reshape(added, most, 1, self.width)), most * tokens, self.width)

    def mask(self) -> Value:
        """[tokens, tokens]: -inf where both are padding, 0 elsewhere. Padding is a whole tile, or the end of one."""
        b, most = self.b, self.vision.max_tiles
        zero, hidden = b.constant(0.0, self.dtype), b.constant(-math.inf, self.dtype)
        last = b.constant(float(self.vision.tile_tokens - 1), I32)
        is_token = b.op("less_equal", b.op("iota", length=self.padded, dtype=I32), last)
        of_token = b.op("select", b.reshape(is_token, 1, self.padded), zero, hidden)
        is_padding = b.op("less", b.reshape(self.slots, most, 1), b.constant(0.0, I32))
        keys = b.reshape(b.op("select", is_padding, hidden, of_token), 1, self.tokens)
        from_padding = b.op("less", b.reshape(keys, self.tokens, 1), zero)
        return b.op("select", from_padding, keys, zero)

    # From pixels to features.

    def embedded(self, pixels: Value) -> Value:
        """Patches after a class token, with places and positions, normalized and padded: [tokens, width]."""
        b, most, count = self.b, self.vision.max_tiles, self.vision.tile_tokens
        patches = self.linear(self.patches(pixels, most), "vision.patch")
        patches = b.reshape(self.by_tile(patches, count - 1, "vision.pre_tile"), most, count - 1, self.width)
        x = b.op("concat", self.class_tokens(most), patches, axis=1)
        gate = self.gate("vision.position.gate")
        rest = b.op("sub", b.constant(1.0, self.dtype), gate)
        x = b.op("add", x, b.op("mul", self.parameter("vision.position"), rest))
        of_tiles = self.tile_values("vision.tile_position", count * self.width)
        x = b.op("add", x, b.op("mul", b.reshape(of_tiles, most, count, self.width), gate))
        x = self.layer_norm(x, "vision.pre_norm")
        nothing = b.reshape(b.constant(0.0, self.dtype), 1, 1, 1)
        padding = b.op("broadcast", nothing, shape=(most, self.padded - count, self.width))
        return b.reshape(b.op("concat", x, padding, axis=1), self.tokens, self.width)

    def tapped_blocks(self, x: Value, mask: Value) -> tuple[Value, list[Value]]:
        """The local blocks' output, and the inputs of those that are tapped."""
        taps: dict[int, Value] = {}
        for layer in range(self.vision.layers):
            taps[layer] = x
            x = self.block(f"vision.layers.{layer}", x, 1, mask=mask)
        return x, [taps[layer] for layer in self.vision.taps]

    def joined_features(self, x: Value, taps: list[Value]) -> Value:
        """[max_tiles * tile_tokens, output_size]: the output's channels, then each channel's value in every tap."""
        b, rows = self.b, self.vision.max_tiles * self.vision.tile_tokens
        columns = [b.reshape(self.unpadded(tap), rows, self.width, 1) for tap in taps]
        parts = [self.unpadded(x)]
        if columns:
            parts.append(b.reshape(b.op("concat", *columns, axis=2), rows, self.width * len(taps)))
        return b.op("concat", *parts, axis=1)

    def unpadded(self, x: Value) -> Value:
        """[tokens, width] -> [max_tiles * tile_tokens, width]."""
        b, most, count = self.b, self.vision.max_tiles, self.vision.tile_tokens
        split = b.op("slice", b.reshape(x, most, self.padded, self.width), axis=1, start=0, stop=count)
        return b.reshape(split, most * count, self.width)

    # What the text model attends to.

    def project_image(self) -> None:
        b, c = self.b, self.config
        arguments: list[tuple[str, Type]] = [("tokens", tensor(VISION_TOKENS, c.hidden_size, F32))]
        b.graph = graph = new_graph(self.module, "project_image", arguments)
        tokens = self.cast(graph.argument("tokens"), self.dtype)
        for layer in c.cross_layers:
            with b.at(f"layers.{layer}.cross"):
                graph.outputs += [
                    self.keys(layer, tokens),
                    self.kv_heads(self.linear(tokens, f"layers.{layer}.cross.v")),
                ]

    def keys(self, layer: int, tokens: Value) -> Value:
        """RMSNorm of every head's keys, [K, M, h]."""
        b = self.b
        wide = self.cast(self.kv_heads(self.linear(tokens, f"layers.{layer}.cross.k")), F32)
        mean = b.op("reduce_mean", b.op("mul", wide, wide), axis=-1)
        inverse = b.op("rsqrt", b.op("add", mean, b.constant(self.config.rms_norm_eps, F32)))
        normal = self.cast(b.op("mul", wide, inverse), self.dtype)
        return b.op("mul", normal, self.parameter(f"layers.{layer}.cross.k_norm"))

    def kv_heads(self, x: Value) -> Value:
        """[M, K * h] -> [K, M, h]."""
        c = self.config
        return self.b.transpose(self.b.reshape(x, VISION_TOKENS, c.kv_heads, c.head_dim), 1, 0, 2)

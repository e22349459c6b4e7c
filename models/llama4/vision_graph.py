"""The captured graph of Llama 4's image encoder: `encode_image(pixels [N, 3, px, px]) -> [N, tile_tokens, d]`.

Every tile by itself: patches and a class token after them, blocks whose queries and keys are rotated by the column and
the row of their patch, 2 x 2 patches joined to one token, an MLP and the projection to the width of the text model
(transformers' Llama4VisionModel and Llama4MultiModalProjector). Symbol: N tiles.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError
from llamac.ir.builder import new_graph
from llamac.ir.dims import symbol
from llamac.ir.dtypes import F32
from llamac.ir.graph import Module, Value
from llamac.ir.types import tensor

from ..checkpoint import StoredTensor
from ..image_encoder import LAYER_NORM_EPS, EncoderBuilder
from ..llama.config import LlamaConfig
from ..llama.vision_config import Llama4Vision

TILES = symbol("N")


def build_llama4_vision(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of the image encoder of `config`; of `tensors` it takes the weights named `vision.`."""
    assert isinstance(config.vision, Llama4Vision)
    own = {name: stored for name, stored in tensors.items() if name.startswith("vision.")}
    return _Llama4VisionBuilder(config, config.vision, own).build()


class _Llama4VisionBuilder(EncoderBuilder):
    def __init__(self, config: LlamaConfig, vision: Llama4Vision, tensors: Mapping[str, StoredTensor]) -> None:
        side = vision.image_size // vision.patch_size
        super().__init__(config, vision, tensors, side * side + 1, LAYER_NORM_EPS)
        self.vision = vision
        self.joined = round(1 / vision.pixel_shuffle_ratio)
        if abs(self.joined * vision.pixel_shuffle_ratio - 1) > 1e-9 or side % self.joined or self.head_dim % 4:
            reason = f"{side} x {side} patches, shuffled by {vision.pixel_shuffle_ratio}, in heads of {self.head_dim}"
            raise LlamacError("LLC0304", "vision", reason, "check the vision_config")

    def build(self) -> Module:
        b, vision, size = self.b, self.vision, self.image_size
        b.graph = graph = new_graph(
            self.module, "encode_image", [("pixels", tensor(TILES, self.channels, size, size, F32))]
        )
        with b.at("vision.rope"):
            self.cos, self.sin = self.rope_tables()
        with b.at("vision.embed"):
            x = self.embedded(graph.argument("pixels"))
        for layer in range(vision.layers):
            x = self.block(f"vision.layers.{layer}", x, TILES, bias=True)
        with b.at("vision.adapter"):
            x = self.without_class(self.layer_norm(x, "vision.post_norm"))
            x = self.gelu(self.linear(self.shuffled(x), "vision.adapter.up"))
            x = self.gelu(self.linear(x, "vision.adapter.down"))
        with b.at("vision.projector"):
            x = self.linear(x, "vision.projector")
            graph.outputs = [b.reshape(x, TILES, vision.tile_tokens, self.config.hidden_size)]
        return self.module

    def embedded(self, pixels: Value) -> Value:
        """Patches, then the class token, plus their positions: [N * tokens, width]."""
        b = self.b
        patches = self.linear(self.patches(pixels, TILES), "vision.patch")
        patches = b.reshape(patches, TILES, self.tokens - 1, self.width)
        x = b.op("concat", patches, self.class_tokens(TILES), axis=1)
        x = b.op("add", x, self.parameter("vision.position"))
        return b.reshape(self.layer_norm(x, "vision.pre_norm"), TILES * self.tokens, self.width)

    def rope_tables(self) -> tuple[Value, Value]:
        """cos and sin, [tokens, h / 2] in f32.

        The first half of the pairs turns by the column + 1, the second by the row + 1; the class token, last, does not.
        """
        b, side, pairs = self.b, self.side, self.head_dim // 4
        even = b.op("mul", b.op("iota", length=pairs, dtype=F32), b.constant(2.0, F32))
        exponent = b.op("div", even, b.constant(2 * pairs, F32))
        inverse = b.op("reciprocal", b.op("pow", b.constant(self.vision.rope_theta, F32), exponent))
        places = b.op("add", b.op("iota", length=side, dtype=F32), b.constant(1.0, F32))
        angles = b.op("mul", b.reshape(places, side, 1), b.reshape(inverse, 1, pairs))
        shape = (side, side, pairs)
        by_column = b.op("broadcast", b.reshape(angles, 1, side, pairs), shape=shape)
        by_row = b.op("broadcast", b.reshape(angles, side, 1, pairs), shape=shape)
        patches = b.reshape(b.op("concat", by_column, by_row, axis=2), side * side, 2 * pairs)
        still = b.op("broadcast", b.reshape(b.constant(0.0, F32), 1, 1), shape=(1, 2 * pairs))
        angles = b.op("concat", patches, still, axis=0)
        return b.op("cos", angles), b.op("sin", angles)

    def turned(self, x: Value) -> Value:
        """Adjacent pairs rotated, in f32."""
        b, heads, pairs = self.b, self.head_count, self.head_dim // 2
        cos, sin = (b.reshape(t, 1, 1, self.tokens, pairs, 1) for t in (self.cos, self.sin))
        split = b.reshape(self.cast(x, F32), TILES, heads, self.tokens, pairs, 2)
        even = b.op("slice", split, axis=-1, start=0, stop=1)
        odd = b.op("slice", split, axis=-1, start=1, stop=2)
        new_even = b.op("sub", b.op("mul", even, cos), b.op("mul", odd, sin))
        new_odd = b.op("add", b.op("mul", odd, cos), b.op("mul", even, sin))
        pairs_again = b.op("concat", new_even, new_odd, axis=-1)
        return self.cast(b.reshape(pairs_again, TILES, heads, self.tokens, self.head_dim), self.dtype)

    def without_class(self, x: Value) -> Value:
        """[N * tokens, width] -> [N, patches, width]."""
        rows = self.b.reshape(x, TILES, self.tokens, self.width)
        return self.b.op("slice", rows, axis=1, start=0, stop=self.tokens - 1)

    def shuffled(self, x: Value) -> Value:
        """Squares of patches as one row, ordered y, x, channel: [N, patches, width] -> [N * tile_tokens, r*r*width]."""
        b, r, few = self.b, self.joined, self.side // self.joined
        squares = b.transpose(b.reshape(x, TILES, few, r, few, r, self.width), 0, 1, 3, 2, 4, 5)
        return b.reshape(squares, TILES * (few * few), r * r * self.width)

"""What the family's image encoders share: patches, LayerNorm, GELU, attention without a mask of time, pre-norm blocks.

Activations are matrices [batch * tokens, width] between the pieces, as the text model's are, so that the same passes
find the same products in them.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.dims import DimLike
from llamac.ir.dtypes import DTYPES, F32, DType
from llamac.ir.graph import Module, Value

from .checkpoint import StoredTensor
from .llama.config import LlamaConfig
from .llama.declared_weights import declare_weights
from .llama.vision_config import Llama4Vision, MllamaVision

LAYER_NORM_EPS = 1e-5
"""What every LayerNorm of the references adds to the variance, except where a config says otherwise."""


class EncoderBuilder:
    """Builds the graphs of an encoder, in the working dtype of `config`; `tensors` say how its weights are stored.

    `tokens` is the number of tokens that attend to one another.
    """

    def __init__(
        self,
        config: LlamaConfig,
        vision: Llama4Vision | MllamaVision,
        tensors: Mapping[str, StoredTensor],
        tokens: int,
        block_eps: float,
    ) -> None:
        self.config = config
        self.dtype = DTYPES[config.dtype]
        self.side = vision.image_size // vision.patch_size
        self.patch_size, self.channels, self.image_size = vision.patch_size, vision.channels, vision.image_size
        self.width, self.head_count = vision.hidden_size, vision.heads
        self.head_dim = vision.hidden_size // vision.heads
        self.tokens, self.block_eps = tokens, block_eps
        self.module = Module(f"{config.architecture}-vision", "captured")
        self.b = Builder(self.module)
        declare_weights(self.b, tensors)

    # Weights and casts.

    def parameter(self, name: str) -> Value:
        if name not in self.module.weights:
            raise LlamacError("LLC0205", name, "the checkpoint has no such tensor", "check that every shard is there")
        return self.cast(self.module.weights[name], self.dtype)

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.tensor.dtype is dtype else self.b.op("cast", x, dtype=dtype)

    def linear(self, x: Value, name: str, bias: bool = False) -> Value:
        """x [rows, in] -> [rows, out]."""
        product = self.b.op("matmul", x, self.b.transpose(self.parameter(name), 1, 0))
        return self.b.op("add", product, self.parameter(f"{name}.bias")) if bias else product

    def gate(self, name: str) -> Value:
        """tanh of a learned number, [1]."""
        return self.b.op("tanh", self.parameter(name))

    # Pieces.

    def patches(self, pixels: Value, batch: DimLike) -> Value:
        """[batch, C, S, S] -> [batch * patches, C * p * p]: one row a patch, samples ordered channel, y, x."""
        b, side, p = self.b, self.side, self.patch_size
        grid = b.reshape(self.cast(pixels, self.dtype), batch, self.channels, side, p, side, p)
        return b.reshape(b.transpose(grid, 0, 2, 4, 1, 3, 5), batch * (side * side), self.channels * p * p)

    def class_tokens(self, batch: DimLike) -> Value:
        """The class token once for each image of the batch, [batch, 1, width]."""
        token = self.b.reshape(self.parameter("vision.class_token"), 1, 1, self.width)
        return self.b.op("broadcast", token, shape=(batch, 1, self.width))

    def layer_norm(self, x: Value, name: str, eps: float = LAYER_NORM_EPS) -> Value:
        """Over the last axis, in f32: (x - mean) / sqrt(variance + eps) * weight + bias."""
        b = self.b
        wide = self.cast(x, F32)
        centered = b.op("sub", wide, b.op("reduce_mean", wide, axis=-1))
        variance = b.op("reduce_mean", b.op("mul", centered, centered), axis=-1)
        normal = b.op("mul", centered, b.op("rsqrt", b.op("add", variance, b.constant(eps, F32))))
        scaled = b.op("mul", normal, self.cast(self.parameter(name), F32))
        return self.cast(b.op("add", scaled, self.cast(self.parameter(f"{name}.bias"), F32)), self.dtype)

    def gelu(self, x: Value) -> Value:
        """x * (1 + erf(x / sqrt(2))) / 2, in f32."""
        b, wide = self.b, self.cast(x, F32)
        error = b.op("erf", b.op("mul", wide, b.constant(0.5**0.5, F32)))
        half = b.op("mul", wide, b.constant(0.5, F32))
        return self.cast(b.op("mul", half, b.op("add", error, b.constant(1.0, F32))), self.dtype)

    def turned(self, x: Value) -> Value:
        """Queries or keys [batch, heads, tokens, head_dim] as the scores see them: as they are, unless rotated."""
        return x

    def attention(self, name: str, x: Value, batch: DimLike, mask: Value | None, bias: bool) -> Value:
        """Every token sees every token of its image; `mask` [tokens, tokens] is added to the scores."""
        b = self.b
        q, k, v = (self.heads(self.linear(x, f"{name}.{part}", bias), batch) for part in "qkv")
        scores = b.op("matmul", self.turned(q), b.transpose(self.turned(k), 0, 1, 3, 2))
        scores = b.op("mul", scores, b.constant(self.head_dim**-0.5, self.dtype))
        if mask is not None:
            scores = b.op("add", scores, mask)
        weights = self.cast(b.op("softmax", self.cast(scores, F32), axis=-1), self.dtype)
        mixed = b.transpose(b.op("matmul", weights, v), 0, 2, 1, 3)
        return self.linear(b.reshape(mixed, *x.tensor.shape), f"{name}.o", bias)

    def heads(self, x: Value, batch: DimLike) -> Value:
        """[batch * tokens, heads * h] -> [batch, heads, tokens, h]."""
        split = self.b.reshape(x, batch, self.tokens, self.head_count, self.head_dim)
        return self.b.transpose(split, 0, 2, 1, 3)

    def mlp(self, name: str, x: Value) -> Value:
        return self.linear(self.gelu(self.linear(x, f"{name}.up", True)), f"{name}.down", True)

    def block(
        self, name: str, x: Value, batch: DimLike, *, mask: Value | None = None, bias: bool = False, gated: bool = False
    ) -> Value:
        """x + attention(norm x), then x + MLP(norm x); a gated block multiplies each term by the tanh of a number."""
        b, eps = self.b, self.block_eps
        with b.at(f"{name}.attn"):
            mixed = self.attention(f"{name}.attn", self.layer_norm(x, f"{name}.attn_norm", eps), batch, mask, bias)
            x = b.op("add", x, b.op("mul", mixed, self.gate(f"{name}.attn_gate")) if gated else mixed)
        with b.at(f"{name}.mlp"):
            made = self.mlp(f"{name}.mlp", self.layer_norm(x, f"{name}.mlp_norm", eps))
            return b.op("add", x, b.op("mul", made, self.gate(f"{name}.mlp_gate")) if gated else made)

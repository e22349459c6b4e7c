"""The captured graph of Llama 4's text model in its textbook form: what differs from the dense Llama.

Rotated layers see only their own block of the context and may normalize q and k; the others see everything and temper
their queries. A layer's MLP may be a mixture: every expert on every token, most of them on zeros (transformers'
Llama4TextDecoderLayer; the sums that routing saves are left for `lower-moe-routing` to save).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llamac.ir.dtypes import F32
from llamac.ir.graph import Graph, Module, Value
from llamac.ir.types import Type

from ..checkpoint import StoredTensor
from ..llama.config import LlamaConfig
from ..llama.graph import TOKENS, LlamaBuilder
from .merge import image_arguments, merge_images


def build_llama4(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of the text model of `config`, which has the architecture "llama4".

    With an image encoder beside it the step takes pictures too: see `merge.image_arguments`.
    """
    text = {name: stored for name, stored in tensors.items() if not name.startswith("vision.")}
    return Llama4Builder(config, text).build()


class Llama4Builder(LlamaBuilder):
    """A Llama whose layers differ in what their attention sees, and may be mixtures of experts."""

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> None:
        super().__init__(config, tensors)
        self.table_dtype = F32  # q and k are rotated in f32, whatever the working dtype
        self.pattern = config.attention

    def prepare(self) -> None:
        super().prepare()
        if self.pattern is None:
            return
        if self.pattern.chunk:
            with self.b.at("mask"):
                self.chunk_mask = self.causal_mask(self.pattern.chunk)
        if self.pattern.temperature_scale and self.pattern.unrotated:
            with self.b.at("temperature"):
                self.temperature = self.temperatures()

    def arguments(self) -> list[tuple[str, Type]]:
        found = super().arguments()
        return found if self.config.vision is None else found[:2] + image_arguments(self.config, TOKENS) + found[2:]

    def embedded(self, graph: Graph) -> Value:
        hidden = super().embedded(graph)
        if self.config.vision is None:
            return hidden
        return merge_images(self.b, hidden, graph.argument("image_rows"), graph.argument("image_embeddings"))

    def is_rotated(self, layer: int) -> bool:
        return self.pattern is None or layer not in self.pattern.unrotated

    def mask_of(self, layer: int) -> Value:
        chunked = self.pattern is not None and self.pattern.chunk and self.is_rotated(layer)
        return self.chunk_mask if chunked else self.mask

    def temperatures(self) -> Value:
        """1 + scale * ln(1 + floor((position + 1) / floor)), [1, T, 1] in f32."""
        b, pattern = self.b, self.pattern
        assert pattern is not None
        later = b.op("add", b.op("cast", self.positions, dtype=F32), b.constant(1.0, F32))
        blocks = b.op("floor", b.op("div", later, b.constant(pattern.temperature_floor, F32)))
        grown = b.op("mul", b.op("log1p", blocks), b.constant(pattern.temperature_scale, F32))
        return b.reshape(b.op("add", grown, b.constant(1.0, F32)), 1, TOKENS, 1)

    def queries_and_keys(self, layer: int, x: Value) -> tuple[Value, Value]:
        q = self.heads(self.linear(x, f"layers.{layer}.attn.q"), self.config.heads)
        k = self.heads(self.linear(x, f"layers.{layer}.attn.k"), self.config.kv_heads)
        if not self.is_rotated(layer):
            return self.tempered(q), k
        q, k = self.rotate(q), self.rotate(k)
        if self.pattern is not None and self.pattern.qk_norm:
            q, k = self.unit_rms(q), self.unit_rms(k)
        return q, k

    def tempered(self, q: Value) -> Value:
        if self.pattern is None or not self.pattern.temperature_scale:
            return q
        return self.cast(self.b.op("mul", self.cast(q, F32), self.temperature), self.dtype)

    def rotate(self, x: Value) -> Value:
        return self.cast(self.rotate_pairs(self.cast(x, F32)), self.dtype)

    def unit_rms(self, x: Value) -> Value:
        """x over its root mean square, head by head, without a weight."""
        b, wide = self.b, self.cast(x, F32)
        mean = b.op("reduce_mean", b.op("mul", wide, wide), axis=-1)
        inverse = b.op("rsqrt", b.op("add", mean, b.constant(self.config.rms_norm_eps, F32)))
        return self.cast(b.op("mul", wide, inverse), self.dtype)

    def mlp(self, layer: int, x: Value) -> Value:
        return self.mixture(f"layers.{layer}.moe", x) if self.config.is_moe(layer) else super().mlp(layer, x)

    def mixture(self, name: str, x: Value) -> Value:
        """The shared expert's answer plus those of the chosen experts, whose *input* is scaled by their score."""
        b, c = self.b, self.config
        assert c.moe is not None
        shared = self.gated_mlp(f"{name}.shared", x)
        scores = self.cast(self.scores(self.linear(x, f"{name}.router"), c.moe.experts_per_token), self.dtype)
        per_expert = b.reshape(b.transpose(scores, 1, 0), c.moe.experts, TOKENS, 1)
        scaled = b.op("mul", b.reshape(x, 1, TOKENS, c.hidden_size), per_expert)
        gate, up = self.each_expert(scaled, f"{name}.gate"), self.each_expert(scaled, f"{name}.up")
        answers = self.each_expert(self.gated(gate, up), f"{name}.down")
        return b.op("add", shared, b.reshape(b.op("reduce_sum", answers, axis=0), TOKENS, c.hidden_size))

    def scores(self, logits: Value, top_k: int) -> Value:
        """sigmoid of the top_k logits of each token, 0 for the others; [T, E] in f32."""
        b = self.b
        chosen = b.op("top_k_mask", logits, top_k=top_k)
        kept = b.op("select", chosen, logits, b.constant(-math.inf, self.dtype))
        return b.op("sigmoid", self.cast(kept, F32))

    def each_expert(self, x: Value, name: str) -> Value:
        """[E, T, in] -> [E, T, out]: row e times the transposed matrix of expert e."""
        b, weight = self.b, self.cast(self.parameter(name), self.dtype)
        experts = x.tensor.shape[0]
        rows, columns = weight.tensor.shape
        assert isinstance(experts, int) and isinstance(rows, int)
        stacked = b.reshape(weight, experts, rows // experts, columns)
        return b.op("matmul", x, b.transpose(stacked, 0, 2, 1))

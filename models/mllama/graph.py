"""The captured graph of Llama 3.2 Vision's text model: a Llama with cross-attention layers between its own.

`step(ids, positions, vision_start, vision_stop, past_k.i, past_v.i, ..., cross_k.j, cross_v.j, ...) -> logits, k.i,
v.i, ...`: i are the layers that attend to the text, j those that attend to pictures. Position t sees the vision tokens
[vision_start[t], vision_stop[t]); where that is empty, a cross layer leaves the position as it is (Meta's
CrossAttentionTransformerBlock; transformers 5.23 lets the average of all pictures in there). Symbols: T new tokens,
P past ones, M vision tokens, at least one (any, where no position sees one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llamac.ir.builder import new_graph
from llamac.ir.dtypes import F32, I32
from llamac.ir.graph import Module, Value
from llamac.ir.types import Type, tensor

from ..checkpoint import StoredTensor
from ..llama.config import LlamaConfig
from ..llama.graph import PAST, TOKENS, LlamaBuilder
from .vision_graph import VISION_TOKENS, is_of_image_side


def build_mllama(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of the text model of `config`, which has the architecture "mllama"."""
    text = {name: stored for name, stored in tensors.items() if not is_of_image_side(name)}
    return MllamaBuilder(config, text).build()


class MllamaBuilder(LlamaBuilder):
    """A Llama whose `cross_layers` attend to vision tokens."""

    def build(self) -> Module:
        c, b = self.config, self.b
        self.declare_weights()
        b.graph = graph = new_graph(self.module, "step", self.arguments())
        self.positions = graph.argument("positions")
        self.prepare()
        with b.at("embed"):
            hidden = self.embedded(graph)
        states: list[Value] = []
        for layer in range(c.layers):
            if layer in c.cross_layers:
                hidden = self.cross_layer(layer, hidden)
            else:
                hidden, k, v = self.layer(layer, hidden)
                states += [k, v]
        with b.at("norm"):
            hidden = self.rms_norm(hidden, "norm")
        with b.at("head"):
            logits = self.cast(self.linear(hidden, "head"), F32)
        graph.outputs = [logits, *states]
        return self.module

    def arguments(self) -> list[tuple[str, Type]]:
        c, rows = self.config, tensor(TOKENS, I32)
        past, seen = (tensor(c.kv_heads, length, c.head_dim, self.dtype) for length in (PAST, VISION_TOKENS))
        found: list[tuple[str, Type]] = [(name, rows) for name in ("ids", "positions", "vision_start", "vision_stop")]
        for layer in range(c.layers):
            if layer not in c.cross_layers:
                found += [(f"past_k.{layer}", past), (f"past_v.{layer}", past)]
        for layer in c.cross_layers:
            found += [(f"cross_k.{layer}", seen), (f"cross_v.{layer}", seen)]
        return found

    def prepare(self) -> None:
        super().prepare()
        with self.b.at("cross_mask"):
            self.sees_nothing, self.cross_mask = self.visibility()

    def visibility(self) -> tuple[Value, Value]:
        """Whether each row sees nothing, i1 [T, 1], and what is added to its scores, [T, M].

        Rows that see nothing see everything instead, so that their softmax has a value; it is never used.
        """
        b = self.b
        assert b.graph is not None
        start, stop = (b.reshape(b.graph.argument(f"vision_{end}"), TOKENS, 1) for end in ("start", "stop"))
        tokens = b.reshape(b.op("iota", length=VISION_TOKENS, dtype=I32), 1, VISION_TOKENS)
        visible = b.op("logical_and", b.op("less_equal", start, tokens), b.op("less", tokens, stop))
        zero, hidden = b.constant(0.0, self.dtype), b.constant(-math.inf, self.dtype)
        nothing = b.op("less_equal", stop, start)
        return nothing, b.op("select", nothing, zero, b.op("select", visible, zero, hidden))

    def cross_layer(self, layer: int, hidden: Value) -> Value:
        """hidden + tanh(gate) * cross_attention(norm hidden), then the same with the MLP."""
        b, name = self.b, f"layers.{layer}"
        with b.at(f"{name}.cross"):
            mixed = self.cross_attention(layer, self.rms_norm(hidden, f"{name}.attn_norm"))
            hidden = b.op("add", hidden, b.op("mul", mixed, self.gate(f"{name}.attn_gate")))
        with b.at(f"{name}.mlp"):
            made = self.seen(self.mlp(layer, self.rms_norm(hidden, f"{name}.mlp_norm")))
            return b.op("add", hidden, b.op("mul", made, self.gate(f"{name}.mlp_gate")))

    def cross_attention(self, layer: int, x: Value) -> Value:
        b, c = self.b, self.config
        assert b.graph is not None
        k, v = (self.repeat_kv(b.graph.argument(f"cross_{part}.{layer}")) for part in "kv")
        q = self.rms_norm(
            self.heads(self.linear(x, f"layers.{layer}.cross.q"), c.heads), f"layers.{layer}.cross.q_norm"
        )
        scores = b.op("matmul", q, b.transpose(k, 0, 2, 1))
        scores = b.op("mul", scores, b.constant(c.head_dim**-0.5, self.dtype))
        scores = b.op("add", scores, self.cross_mask)
        weights = self.cast(b.op("softmax", self.cast(scores, F32), axis=-1), self.dtype)
        mixed = b.transpose(b.op("matmul", weights, v), 1, 0, 2)
        mixed = self.seen(b.reshape(mixed, TOKENS, c.heads * c.head_dim))
        return self.linear(mixed, f"layers.{layer}.cross.o")

    def seen(self, x: Value) -> Value:
        """x [T, n], with nothing in the rows that see no vision token."""
        return self.b.op("select", self.sees_nothing, self.b.constant(0.0, self.dtype), x)

    def gate(self, name: str) -> Value:
        """tanh of a learned number, [1]."""
        return self.b.op("tanh", self.cast(self.parameter(name), self.dtype))

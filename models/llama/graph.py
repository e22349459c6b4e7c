"""Builds the captured graph of a dense Llama in its textbook form, as torch.export would give it.

One sequence with explicit past: `step(ids, positions, past_k.0, past_v.0, ...) -> logits, k.0, v.0, ...`. Symbols: T
new tokens, P past tokens. Nothing is fused here: repeated KV heads, rotated halves and separate projections are what
the passes have to find (Touvron et al. 2023; the layer follows transformers' LlamaDecoderLayer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dims import symbol
from llamac.ir.dtypes import DTYPES, F32, I1, I32, DType
from llamac.ir.graph import DataSource, Graph, Module, Value
from llamac.ir.interpreter import Interpreter
from llamac.ir.types import TensorType, Type, tensor

from ..checkpoint import StoredTensor
from .config import LlamaConfig
from .declared_weights import declare_weights

TOKENS = symbol("T")
PAST = symbol("P")


def build_llama(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> Module:
    """The captured module of `config`; `tensors` say how each weight is stored."""
    return LlamaBuilder(config, tensors).build()


class LlamaBuilder:
    """The dense Llama, piece by piece: other members of the family replace pieces."""

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> None:
        self.config = config
        self.tensors = tensors
        self.dtype = self.table_dtype = DTYPES[config.dtype]
        self.module = Module("llama", "captured")
        self.b = Builder(self.module)

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
            hidden, k, v = self.layer(layer, hidden)
            states += [k, v]
        with b.at("norm"):
            hidden = self.rms_norm(hidden, "norm")
        with b.at("head"):
            logits = self.cast(self.linear(hidden, "embed" if c.tied_head else "head"), F32)
        graph.outputs = [logits, *states]
        return self.module

    def arguments(self) -> list[tuple[str, Type]]:
        """What the step takes."""
        c = self.config
        past: TensorType = tensor(c.kv_heads, PAST, c.head_dim, self.dtype)
        found: list[tuple[str, Type]] = [("ids", tensor(TOKENS, I32)), ("positions", tensor(TOKENS, I32))]
        for layer in range(c.layers):
            found += [(f"past_k.{layer}", past), (f"past_v.{layer}", past)]
        return found

    def embedded(self, graph: Graph) -> Value:
        """The first hidden state, [T, d]."""
        return self.cast(self.b.op("embedding", self.parameter("embed"), graph.argument("ids")), self.dtype)

    def prepare(self) -> None:
        """What all layers share."""
        with self.b.at("rope"):
            self.tables = self.rope_tables()
        with self.b.at("mask"):
            self.mask = self.causal_mask()

    # Weights.

    def declare_weights(self) -> None:
        declare_weights(self.b, self.tensors)

    def parameter(self, name: str) -> Value:
        if name not in self.module.weights:
            raise LlamacError("LLC0205", name, "the checkpoint has no such tensor", "check that every shard is there")
        return self.module.weights[name]

    # Textbook pieces.

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.tensor.dtype is dtype else self.b.op("cast", x, dtype=dtype)

    def linear(self, x: Value, name: str) -> Value:
        weight = self.cast(self.parameter(name), self.dtype)
        return self.b.op("matmul", x, self.b.transpose(weight, 1, 0))

    def rms_norm(self, x: Value, name: str) -> Value:
        b = self.b
        wide = self.cast(x, F32)
        mean = b.op("reduce_mean", b.op("mul", wide, wide), axis=-1)
        inverse = b.op("rsqrt", b.op("add", mean, b.constant(self.config.rms_norm_eps, F32)))
        normal = self.cast(b.op("mul", wide, inverse), self.dtype)
        return b.op("mul", normal, self.cast(self.parameter(name), self.dtype))

    def inverse_frequencies(self) -> Value:
        """1 / theta^(2i/h), then the scaling of the config; every step in f32, in the references' order."""
        c, b = self.config, self.b
        even = b.op("mul", b.op("iota", length=c.head_dim // 2, dtype=F32), b.constant(2.0, F32))
        exponent = b.op("div", even, b.constant(c.head_dim, F32))
        inverse = b.op("reciprocal", b.op("pow", b.constant(c.rope_theta, F32), exponent))
        scaling = c.rope_scaling
        if scaling is None:
            return inverse
        if scaling.kind == "linear":
            return b.op("div", inverse, b.constant(scaling.factor, F32))
        if scaling.kind == "divisors":
            data = DataSource(np.array(scaling.divisors, "<f4").tobytes())
            divisors = b.weight("rope.divisors", tensor(c.head_dim // 2, F32), data)
            return b.op("div", inverse, divisors)
        return self.llama3_scaled(inverse)

    def llama3_scaled(self, inverse: Value) -> Value:
        """Long wavelengths divided by the factor, short ones kept, those between blended (transformers' llama3).

        Bit for bit as there: torch computes a number over a tensor as the tensor's reciprocal times the number.
        """
        b, scaling = self.b, self.config.rope_scaling
        assert scaling is not None
        original, factor = float(scaling.original_context), b.constant(scaling.factor, F32)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        wavelength = b.op("mul", b.op("reciprocal", inverse), b.constant(2 * math.pi, F32))
        is_long = b.op("less", b.constant(original / low, F32), wavelength)
        scaled = b.op("select", is_long, b.op("div", inverse, factor), inverse)
        if low == high:
            return scaled  # a hard step: the blend would divide by zero
        ratio = b.op("mul", b.op("reciprocal", wavelength), b.constant(original, F32))
        smooth = b.op("div", b.op("sub", ratio, b.constant(low, F32)), b.constant(high - low, F32))
        rest = b.op("div", b.op("mul", b.op("sub", b.constant(1.0, F32), smooth), scaled), factor)
        blended = b.op("add", rest, b.op("mul", smooth, scaled))
        is_short = b.op("less", wavelength, b.constant(original / high, F32))
        return b.op("select", is_long, scaled, b.op("select", is_short, scaled, blended))

    def rope_tables(self) -> tuple[Value, Value]:
        """cos and sin, [T, h] for half_split (each angle twice) and [T, h/2] for interleaved."""
        c, b = self.config, self.b
        columns = b.reshape(self.inverse_frequencies(), 1, c.head_dim // 2)
        rows = b.reshape(b.op("cast", self.positions, dtype=F32), TOKENS, 1)
        angles = b.op("mul", rows, columns)
        if c.rope_style == "half_split":
            angles = b.op("concat", angles, angles, axis=-1)
        return self.cast(b.op("cos", angles), self.table_dtype), self.cast(b.op("sin", angles), self.table_dtype)

    def rotate(self, x: Value) -> Value:
        """Rotary embedding of x [heads, T, h]."""
        return self.rotate_halves(x) if self.config.rope_style == "half_split" else self.rotate_pairs(x)

    def rotate_halves(self, x: Value) -> Value:
        b, h = self.b, self.config.head_dim
        cos, sin = (b.reshape(t, 1, TOKENS, h) for t in self.tables)
        first = b.op("slice", x, axis=-1, start=0, stop=h // 2)
        second = b.op("slice", x, axis=-1, start=h // 2, stop=h)
        turned = b.op("concat", b.op("neg", second), first, axis=-1)
        return b.op("add", b.op("mul", x, cos), b.op("mul", turned, sin))

    def rotate_pairs(self, x: Value) -> Value:
        b, h = self.b, self.config.head_dim
        heads = x.tensor.shape[0]
        cos, sin = (b.reshape(t, 1, TOKENS, h // 2, 1) for t in self.tables)
        pairs = b.reshape(x, heads, TOKENS, h // 2, 2)
        even = b.op("slice", pairs, axis=-1, start=0, stop=1)
        odd = b.op("slice", pairs, axis=-1, start=1, stop=2)
        new_even = b.op("sub", b.op("mul", even, cos), b.op("mul", odd, sin))
        new_odd = b.op("add", b.op("mul", odd, cos), b.op("mul", even, sin))
        return b.reshape(b.op("concat", new_even, new_odd, axis=-1), heads, TOKENS, h)

    def causal_mask(self, chunk: int = 0) -> Value:
        """[T, P + T]: 0 where key s is not after the query's position, -inf where it is.

        With `chunk`, also -inf where s lies in another block of `chunk` positions.
        """
        b = self.b
        keys = b.reshape(b.op("iota", length=PAST + TOKENS, dtype=I32), 1, PAST + TOKENS)
        queries = b.reshape(self.positions, TOKENS, 1)
        visible = b.op("less_equal", keys, queries)
        if chunk:
            blocks = [b.op("floor_divide", x, b.constant(chunk, I32)) for x in (keys, queries)]
            visible = b.op("logical_and", visible, b.op("equal", *blocks))
        assert visible.tensor.dtype is I1
        return b.op("select", visible, b.constant(0.0, self.dtype), b.constant(-math.inf, self.dtype))

    def repeat_kv(self, x: Value) -> Value:
        """[K, S, h] -> [H, S, h]: each KV head repeated for the query heads that share it."""
        b, c = self.b, self.config
        group = c.heads // c.kv_heads
        if group == 1:
            return x
        _, length, h = x.tensor.shape
        wide = b.op("broadcast", b.reshape(x, c.kv_heads, 1, length, h), shape=(c.kv_heads, group, length, h))
        return b.reshape(wide, c.heads, length, h)

    def heads(self, x: Value, count: int) -> Value:
        """[T, count * h] -> [count, T, h]."""
        return self.b.transpose(self.b.reshape(x, TOKENS, count, self.config.head_dim), 1, 0, 2)

    def queries_and_keys(self, layer: int, x: Value) -> tuple[Value, Value]:
        """q [H, T, h] and the new k [K, T, h], as the scores see them."""
        q = self.heads(self.linear(x, f"layers.{layer}.attn.q"), self.config.heads)
        k = self.heads(self.linear(x, f"layers.{layer}.attn.k"), self.config.kv_heads)
        return self.rotate(q), self.rotate(k)

    def mask_of(self, layer: int) -> Value:
        """What is added to the scores of a layer, [T, P + T]."""
        return self.mask

    def attention(self, layer: int, x: Value) -> tuple[Value, Value, Value]:
        b, c = self.b, self.config
        assert b.graph is not None
        name = f"layers.{layer}.attn"
        q, k = self.queries_and_keys(layer, x)
        v = self.heads(self.linear(x, f"{name}.v"), c.kv_heads)
        k = b.op("concat", b.graph.argument(f"past_k.{layer}"), k, axis=1)
        v = b.op("concat", b.graph.argument(f"past_v.{layer}"), v, axis=1)
        scores = b.op("matmul", q, b.transpose(self.repeat_kv(k), 0, 2, 1))
        scores = b.op("mul", scores, b.constant(c.head_dim**-0.5, self.dtype))
        scores = b.op("add", scores, self.mask_of(layer))
        weights = self.cast(b.op("softmax", self.cast(scores, F32), axis=-1), self.dtype)
        mixed = b.transpose(b.op("matmul", weights, self.repeat_kv(v)), 1, 0, 2)
        return self.linear(b.reshape(mixed, TOKENS, c.heads * c.head_dim), f"{name}.o"), k, v

    def mlp(self, layer: int, x: Value) -> Value:
        """What a layer adds to x after its attention."""
        return self.gated_mlp(f"layers.{layer}.mlp", x)

    def gated_mlp(self, name: str, x: Value) -> Value:
        gate, up = self.linear(x, f"{name}.gate"), self.linear(x, f"{name}.up")
        return self.linear(self.gated(gate, up), f"{name}.down")

    def gated(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up."""
        return self.b.op("mul", self.b.op("mul", gate, self.b.op("sigmoid", gate)), up)

    def layer(self, layer: int, hidden: Value) -> tuple[Value, Value, Value]:
        b = self.b
        with b.at(f"layers.{layer}.attn"):
            mixed, k, v = self.attention(layer, self.rms_norm(hidden, f"layers.{layer}.attn_norm"))
            hidden = b.op("add", hidden, mixed)
        with b.at(f"layers.{layer}.mlp"):
            hidden = b.op("add", hidden, self.mlp(layer, self.rms_norm(hidden, f"layers.{layer}.mlp_norm")))
        return hidden, k, v


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """The scaled inverse frequencies of `config` in f32, [head_dim / 2], bit for bit as fold-constants makes them."""
    builder = LlamaBuilder(config, {})
    graph = builder.b.graph = new_graph(builder.module, "step", [])
    graph.outputs = [builder.inverse_frequencies()]
    (found,) = Interpreter(builder.module).run({})
    return np.asarray(found, np.float32)

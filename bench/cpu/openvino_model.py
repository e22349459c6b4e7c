"""Writes a Llama GGUF file as an OpenVINO model for OpenVINO GenAI: int4 in groups of 32, tables int8 a row.

    PYTHON openvino_model.py MODEL.gguf FOLDER          PYTHON: an interpreter with openvino, gguf and numpy

The graph is the one that optimum-intel exports (stateful cache, rotary embedding, grouped attention spelled out), with
weights compressed as its `int4_sym --group-size 32`: the same integers and scales as in a q4_0 file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from gguf_weights import GgufWeights, packed_nibbles
from openvino import opset13 as op

Node = Any


def _integers(*values: int) -> Node:
    return op.constant(np.array(values, np.int64))


class LlamaWriter:
    """Builds the model; parts of the graph that all layers share are fields."""

    def __init__(self, weights: GgufWeights) -> None:
        self.weights = weights
        self.shape = weights.shape
        self.ids, self.mask, self.positions = (
            self._input(name, [-1, -1], np.int64) for name in ("input_ids", "attention_mask", "position_ids")
        )
        self.beams = self._input("beam_idx", [-1], np.int32)
        self.batch = op.gather(op.shape_of(self.ids), _integers(0), _integers(0))
        self.sinks: list[Node] = []
        self.cosines, self.sines = self._angles()
        self.causal = self._causal()

    def model(self) -> ov.Model:
        """The whole model, from ids to logits of every row."""
        table = self._decompressed("token_embd", 8, None)
        hidden = op.gather(table, op.convert(self.ids, "i32"), op.constant(np.int32(0)))
        for layer in range(self.shape.layers):
            hidden = self._layer(hidden, f"blk.{layer}", layer)
        hidden = self._norm(hidden, "output_norm")
        head = self._decompressed("output", 8, None) if "output" in self.weights else table
        result = op.result(op.matmul(hidden, head, False, True))
        result.get_output_tensor(0).set_names({"logits"})
        inputs = [self.ids, self.mask, self.positions, self.beams]
        model = ov.Model([result], self.sinks, inputs, "llama")
        return model

    def _input(self, name: str, shape: list[int], dtype: Any) -> Node:
        node = op.parameter(shape, dtype)
        node.set_friendly_name(name)
        node.get_output_tensor(0).set_names({name})
        return node

    def _layer(self, hidden: Node, prefix: str, layer: int) -> Node:
        rows = self._norm(hidden, f"{prefix}.attn_norm")
        queries = self._rotated(self._heads(rows, f"{prefix}.attn_q", self.shape.heads))
        keys = self._rotated(self._heads(rows, f"{prefix}.attn_k", self.shape.kv_heads))
        values = self._heads(rows, f"{prefix}.attn_v", self.shape.kv_heads)
        keys, values = self._cached(keys, f"key.{layer}"), self._cached(values, f"value.{layer}")
        found = op.scaled_dot_product_attention(queries, keys, values, self.causal)
        joined = op.reshape(op.transpose(found, _integers(0, 2, 1, 3)), _integers(0, 0, -1), True)
        hidden = op.add(hidden, self._linear(joined, f"{prefix}.attn_output"))
        rows = self._norm(hidden, f"{prefix}.ffn_norm")
        gate = op.swish(self._linear(rows, f"{prefix}.ffn_gate"))
        product = op.multiply(gate, self._linear(rows, f"{prefix}.ffn_up"))
        return op.add(hidden, self._linear(product, f"{prefix}.ffn_down"))

    def _norm(self, rows: Node, name: str) -> Node:
        mean = op.reduce_mean(op.power(rows, op.constant(np.float32(2))), _integers(-1), True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self.shape.epsilon))))
        inverse = op.divide(op.constant(np.float32(1)), root)
        return op.multiply(op.multiply(rows, inverse), op.constant(self.weights.vector(name)[None, None]))

    def _linear(self, rows: Node, name: str) -> Node:
        return op.matmul(rows, self._decompressed(name, 4, 32), False, True)

    def _decompressed(self, name: str, bits: int, group: int | None) -> Node:
        integers, scales = self.weights.quantized(name, bits, group)
        rows, groups, width = integers.shape
        if groups == 1:
            stored = op.constant(integers[:, 0])
            return op.convert(op.multiply(op.convert(stored, "f16"), op.constant(scales.astype(np.float16))), "f32")
        packed = ov.Tensor(packed_nibbles(integers, 0), [rows, groups, width], ov.Type.i4)
        stored = ov.op.Constant(packed, shared_memory=False)
        values = op.multiply(op.convert(stored, "f16"), op.constant(scales[:, :, None].astype(np.float16)))
        return op.convert(op.reshape(values, _integers(rows, groups * width), False), "f32")

    def _heads(self, rows: Node, name: str, heads: int) -> Node:
        """[batch, heads, tokens, head_dim]."""
        split = op.reshape(self._linear(rows, name), _integers(0, 0, heads, self.shape.head_dim), True)
        return op.transpose(split, _integers(0, 2, 1, 3))

    def _angles(self) -> tuple[Node, Node]:
        places = op.convert(op.unsqueeze(self.positions, _integers(2)), "f32")
        angles = op.multiply(places, op.constant(self.shape.frequencies[None, None]))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), _integers(1)), op.unsqueeze(op.sin(both), _integers(1))

    def _rotated(self, heads: Node) -> Node:
        half, whole = self.shape.head_dim // 2, self.shape.head_dim
        first = op.slice(heads, _integers(0), _integers(half), _integers(1), _integers(3))
        second = op.slice(heads, _integers(half), _integers(whole), _integers(1), _integers(3))
        turned = op.concat([op.multiply(second, op.constant(np.float32(-1))), first], -1)
        return op.add(op.multiply(heads, self.cosines), op.multiply(turned, self.sines))

    def _causal(self) -> Node:
        """0 where a query sees a key, a very negative number elsewhere, [1, 1, tokens, tokens so far]."""
        total = op.gather(op.shape_of(self.mask), op.constant(np.int64(1)), op.constant(np.int64(0)))
        new = op.gather(op.shape_of(self.ids), op.constant(np.int64(1)), op.constant(np.int64(0)))
        one = op.constant(np.int64(1))
        keys = op.unsqueeze(op.range(op.constant(np.int64(0)), total, one, "i64"), _integers(0))
        queries = op.unsqueeze(op.range(op.subtract(total, new), total, one, "i64"), _integers(1))
        sees = op.less_equal(keys, queries)
        mask = op.select(sees, op.constant(np.float32(0)), op.constant(np.float32(np.finfo(np.float16).min)))
        return op.unsqueeze(mask, _integers(0, 1))

    def _cached(self, new: Node, name: str) -> Node:
        """`new` after what the state holds, its heads repeated for the queries that share them."""
        heads, dim = self.shape.kv_heads, self.shape.head_dim
        sizes = op.concat([self.batch, _integers(heads), _integers(0), _integers(dim)], 0)
        empty, state_name = op.broadcast(op.constant(np.float32(0)), sizes), f"past_key_values.{name}"
        state = op.read_value(empty, state_name, ov.Type.f32, ov.PartialShape([-1, heads, -1, dim]))
        whole = op.concat([op.gather(state, self.beams, op.constant(np.int64(0))), new], -2)
        self.sinks.append(op.assign(whole, state_name))
        repeats = self.shape.heads // heads
        if repeats == 1:
            return whole
        length = op.gather(op.shape_of(whole), _integers(2), _integers(0))
        target = op.concat([self.batch, _integers(heads), _integers(repeats), length, _integers(dim)], 0)
        spread = op.broadcast(op.unsqueeze(whole, _integers(2)), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, _integers(0, self.shape.heads, -1, dim), True)


def write_openvino(source: Path, folder: Path) -> None:
    """Write `folder`/openvino_model.xml and .bin, and what GenAI wants beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(LlamaWriter(GgufWeights(source)).model(), folder / "openvino_model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    write_openvino(Path(sys.argv[1]), Path(sys.argv[2]))

"""Writes a Llama GGUF file as a model of ONNX Runtime GenAI: int4 in blocks of 32, accuracy level 4.

    PYTHON onnxruntime_model.py MODEL.gguf FOLDER [--all-logits]      PYTHON: an interpreter with onnx, gguf and numpy

The graph is the one that `onnxruntime_genai.models.builder -p int4 -e cpu` makes, with its options
`prune_lm_head=true` (logits of the last row only; not with --all-logits): the operators, their fusions and attributes.
The blocks of a q4_0 file keep their integers and scales; the head is rounded to int4 anew, as the builder has it, and
embeddings are looked up in f32, where the builder looks those that are tied to the head up in its int4.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gguf_weights import GROUP, GgufWeights, packed_nibbles
from numpy.typing import NDArray
from onnx import TensorProto, helper

CONTRIBUTED = "com.microsoft"
DATA = "model.onnx.data"
_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
_ALIGNMENT = 4096


class LlamaWriter:
    """Collects nodes and weights; weights go straight into the file of data, which may exceed 2 GB."""

    def __init__(self, weights: GgufWeights, folder: Path, all_logits: bool) -> None:
        self.weights, self.shape, self.all_logits = weights, weights.shape, all_logits
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._data = (folder / DATA).open("wb")

    def model(self) -> Any:
        """The whole model."""
        shape = self.shape
        self._inputs()
        self._lengths()
        angles = np.outer(np.arange(shape.context, dtype=np.float64), shape.frequencies.astype(np.float64))
        self._weight("cos_cache", np.cos(angles).astype(np.float32))
        self._weight("sin_cache", np.sin(angles).astype(np.float32))
        self._weight("embed", self.weights.floats("token_embd"))
        self._node("Gather", ["embed", "input_ids"], ["hidden"])
        self._weight("norm.first", self.weights.vector("blk.0.attn_norm"))
        self._node("SimplifiedLayerNormalization", ["hidden", "norm.first"], ["rows"], **self._norm_attributes())
        hidden, rows = "hidden", "rows"
        for layer in range(shape.layers):
            hidden, rows = self._layer(layer, hidden, rows)
        self._head(rows)
        graph = helper.make_graph(self.nodes, "main_graph", self.inputs, self.outputs, self.tensors)
        self._data.close()
        opsets = [helper.make_opsetid("", 22), helper.make_opsetid(CONTRIBUTED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _inputs(self) -> None:
        shape = self.shape
        for name, last in (("input_ids", "tokens"), ("attention_mask", "total")):
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", last]))
        rows: list[Any] = ["batch", "tokens" if self.all_logits else 1, shape.vocabulary]
        self.outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, rows))
        for layer in range(shape.layers):
            for part in ("key", "value"):
                for values, prefix, length in (
                    (self.inputs, "past_key_values", "past"),
                    (self.outputs, "present", "total"),
                ):
                    sizes = ["batch", shape.kv_heads, length, shape.head_dim]
                    name = f"{prefix}.{layer}.{part}"
                    values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))

    def _lengths(self) -> None:
        """What grouped attention wants to know: the last position of each sequence, and the longest length."""
        self.tensors += [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("place", TensorProto.INT64, [], [1]),
            helper.make_tensor("last", TensorProto.INT64, [], [-1]),
        ]
        self._node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0)
        self._node("Sub", ["lengths", "one"], ["last_positions"])
        self._node("Cast", ["last_positions"], ["seqlens_k"], to=TensorProto.INT32)
        self._node("Shape", ["attention_mask"], ["mask_shape"])
        self._node("Gather", ["mask_shape", "place"], ["total"], axis=0)
        self._node("Cast", ["total"], ["total_seq_len"], to=TensorProto.INT32)

    def _layer(self, layer: int, hidden: str, rows: str) -> tuple[str, str]:
        prefix = f"blk.{layer}"
        queries = self._linear(f"{prefix}.qkv", [f"{prefix}.attn_{part}" for part in "qkv"], rows)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        attended = f"{prefix}.attended"
        inputs = [queries, "", "", *past, "seqlens_k", "total_seq_len", "cos_cache", "sin_cache"]
        self._node("GroupQueryAttention", inputs, [attended, *present], CONTRIBUTED, **self._attention_attributes())
        out = self._linear(f"{prefix}.attn_output", [f"{prefix}.attn_output"], attended)
        hidden, rows = self._add_and_norm(hidden, out, f"{prefix}.ffn_norm")
        gate = self._linear(f"{prefix}.ffn_gate", [f"{prefix}.ffn_gate"], rows)
        up = self._linear(f"{prefix}.ffn_up", [f"{prefix}.ffn_up"], rows)
        names = [f"{prefix}.{word}" for word in ("sigmoid", "silu", "product")]
        self._node("Sigmoid", [gate], [names[0]])
        self._node("Mul", [gate, names[0]], [names[1]])
        self._node("Mul", [names[1], up], [names[2]])
        down = self._linear(f"{prefix}.ffn_down", [f"{prefix}.ffn_down"], names[2])
        last = layer + 1 == self.shape.layers
        return self._add_and_norm(hidden, down, "output_norm" if last else f"blk.{layer + 1}.attn_norm")

    def _add_and_norm(self, hidden: str, new: str, norm: str) -> tuple[str, str]:
        self._weight(f"{norm}.weight", self.weights.vector(norm))
        outputs = [f"{norm}.rows", "", "", f"{norm}.sum"]
        epsilon = self.shape.epsilon
        inputs = [hidden, new, f"{norm}.weight"]
        self._node("SkipSimplifiedLayerNormalization", inputs, outputs, CONTRIBUTED, epsilon=epsilon)
        return outputs[3], outputs[0]

    def _head(self, rows: str) -> None:
        if not self.all_logits:
            self._node("Gather", [rows, "last"], ["last_row"], axis=1)
            self._node("Unsqueeze", ["last_row", "one"], ["last_rows"])
            rows = "last_rows"
        self._linear("lm_head", ["output" if "output" in self.weights else "token_embd"], rows, "logits")

    def _linear(self, name: str, matrices: list[str], rows: str, output: str | None = None) -> str:
        """One product with the matrices below one another."""
        parts = [self.weights.quantized(matrix, 4) for matrix in matrices]
        integers, scales = (np.concatenate(values) for values in zip(*parts, strict=True))
        self._weight(f"{name}.weight_Q4", packed_nibbles(integers, 8))
        self._weight(f"{name}.weight_scales", scales)
        output = output or f"{name}.out"
        count, groups = scales.shape
        sizes = {"K": groups * GROUP, "N": count, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
        inputs = [rows, f"{name}.weight_Q4", f"{name}.weight_scales"]
        self._node("MatMulNBits", inputs, [output], CONTRIBUTED, **sizes)
        return output

    def _norm_attributes(self) -> dict[str, Any]:
        return {"epsilon": self.shape.epsilon, "axis": -1, "stash_type": 1}

    def _attention_attributes(self) -> dict[str, Any]:
        sizes = {"num_heads": self.shape.heads, "kv_num_heads": self.shape.kv_heads}
        rotary = {"do_rotary": 1, "rotary_interleaved": 0}
        return {**sizes, "scale": self.shape.head_dim**-0.5, "local_window_size": -1, "softcap": 0.0, **rotary}

    def _node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> None:
        name = f"/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))

    def _weight(self, name: str, values: NDArray[Any]) -> None:
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, data_type=_TYPES[values.dtype], dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", self._data.tell()), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(np.ascontiguousarray(values).data)
        self.tensors.append(tensor)


def _settings(weights: GgufWeights) -> dict[str, Any]:
    """genai_config.json, as the builder writes it for the CPU."""
    shape, cache = weights.shape, ("key", "value")
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": shape.head_dim,
        "hidden_size": shape.hidden,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}
        | {f"past_{part}_names": f"past_key_values.%d.{part}" for part in cache},
        "outputs": {"logits": "logits"} | {f"present_{part}_names": f"present.%d.{part}" for part in cache},
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = {**ids, "context_length": shape.context, "decoder": decoder, "type": "llama"}
    search = {"do_sample": False, "max_length": shape.context, "past_present_share_buffer": True, "top_k": 1}
    return {"model": {**model, "vocab_size": shape.vocabulary}, "search": search}


def write_onnxruntime(source: Path, folder: Path, all_logits: bool = False) -> None:
    """Write model.onnx, its data and genai_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = GgufWeights(source)
    onnx.save_model(LlamaWriter(weights, folder, all_logits).model(), folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(_settings(weights), indent=1), encoding="utf-8")


if __name__ == "__main__":
    write_onnxruntime(Path(sys.argv[1]), Path(sys.argv[2]), "--all-logits" in sys.argv[3:])

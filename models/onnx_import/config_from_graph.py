"""The config of an ONNX model with none beside it, derived from its graph; every fact goes to the ledger.

What products with weights are tells the sizes: each layer has seven of them (q, k, v, o, gate, up, down), or five where
q, k and v are one and gate and up follow, and the head is the last. What no graph says, the length of the context where
angles are computed and the ids that end a text, is a default or left out, which the ledger says too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig, RopeScaling, shape_name
from ..llama.graph import inverse_frequencies
from .proto import Node, OnnxModel, TensorProto
from .rotary_base import base_of, frequencies_of_table, sine_tables
from .signature import Signature, unlike
from .stored import ENCODINGS, small_values

DEFAULT_CONTEXT = 4096
MOST_FREQUENCIES = 1 << 10
_PRODUCTS = ("MatMul", "Gemm", "com.microsoft.MatMulNBits")
_THROUGH = ("Transpose", "Cast", "Identity", "DequantizeLinear")
_ATTENTION = "com.microsoft.GroupQueryAttention"
_PER_LAYER = (5, 7)


@dataclass(frozen=True)
class Sizes:
    """Inputs and outputs of a product with a weight."""

    inputs: int
    outputs: int


class GraphFacts:
    """What is read off one graph; `ledger` has an entry for each fact."""

    def __init__(self, model: OnnxModel, sign: Signature) -> None:
        self.model, self.sign = model, sign
        self.ledger: list[LedgerEntry] = []
        self.makers = {name: node for node in model.nodes for name in node.outputs}

    def config(self, dtype: str) -> LlamaConfig:
        """The config; LLC0937 for a graph whose products are not those of a Llama."""
        products = [found for node in self.model.nodes if (found := self._product(node)) is not None]
        layers, each = self._layers(len(products))
        first, head = products[:each], products[-1]
        head_dim = self._note("head_dim", self._head_dim(), "half of it is the number of rotary frequencies")
        o = first[-4] if each == 7 else first[1]
        heads = self._note("heads", o.inputs // head_dim, "the inputs of attention's last product")
        keys = first[1].outputs if each == 7 else (first[0].outputs - o.inputs) // 2
        config = LlamaConfig(
            name="",
            hidden_size=self._note("hidden_size", head.inputs, "the inputs of the head"),
            intermediate_size=self._note("intermediate_size", first[-1].inputs, "the inputs of a layer's last product"),
            layers=self._note("layers", layers, f"{len(products)} products with weights"),
            heads=heads,
            kv_heads=self._note("kv_heads", keys // head_dim, "the outputs of the products that give keys"),
            head_dim=head_dim,
            vocab_size=self._note("vocab_size", head.outputs, "the outputs of the head"),
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            rope_scaling=None,
            context_length=self._context(),
            tied_head=False,
            dtype=dtype,
            rope_style="half_split",
        )
        self._said("rms_norm_eps", "1e-05", "the usual one; what the graph's norms add counts where it is another")
        reason = "no config or generation_config is beside the model: a text ends at its length"
        self.ledger.append(entry("absent", "stop ids", "none", reason))
        config = self._with_rotary(config)
        return replace(config, name=shape_name(config.parameters))

    def _note(self, what: str, value: int, reason: str) -> int:
        if not 0 < value < 1 << 24:
            raise unlike(self.model, f"its graph says {value} for {what} ({reason}), and no config.json is beside it")
        self._said(what, str(value), reason)
        return value

    def _said(self, what: str, value: str, reason: str) -> None:
        self.ledger.append(entry("default", f"config {what}", value, f"no config is beside the model: {reason}"))

    def _layers(self, count: int) -> tuple[int, int]:
        """Layers, and products in each."""
        named = self.sign.layers or sum(node.key == _ATTENTION for node in self.model.nodes)
        for layers, each in ((named or (count - 1) // each, each) for each in reversed(_PER_LAYER)):
            if layers > 0 and count == layers * each + 1:
                return layers, each
        raise unlike(self.model, f"it has {count} products with weights, and no config.json says how many layers")

    def _product(self, node: Node) -> Sizes | None:
        if node.key not in _PRODUCTS or len(node.inputs) < 2:
            return None
        if node.key.endswith("NBits"):
            columns, rows = node.attributes.get("K"), node.attributes.get("N")
            return Sizes(columns, rows) if isinstance(columns, int) and isinstance(rows, int) else None
        shape = self._shape(node.inputs[1])
        if shape is None:
            return None
        return Sizes(*(shape[::-1] if node.attributes.get("transB") == 1 else shape))

    def _shape(self, name: str) -> tuple[int, int] | None:
        """The shape of a stored matrix, behind casts and turns."""
        turned = False
        for _ in range(8):
            tensor = self.model.tensors.get(name)
            if tensor is not None:
                if len(tensor.shape) != 2:
                    return None
                rows, columns = tensor.shape
                return (columns, rows) if turned else (rows, columns)
            node = self.makers.get(name)
            if node is None or node.key not in _THROUGH or not node.inputs:
                return None
            turned, name = turned != (node.op == "Transpose"), node.inputs[0]
        return None

    # Rotary embedding.

    def _head_dim(self) -> int:
        if self.sign.has_past and isinstance(size := self.sign.pasts[0].shape[-1], int) and size > 0:
            return size
        table = next(sine_tables(self.model), None)
        if table is not None and len(table.shape) == 2:
            return 2 * table.shape[1]
        return 2 * len(next(self._frequencies(None), np.empty(0)))

    def _context(self) -> int:
        table = next(sine_tables(self.model), None)
        if table is not None and table.shape and 0 < table.shape[0] < 1 << 24:
            return self._note("context_length", table.shape[0], "the rows of the table of sines")
        return self._note("context_length", DEFAULT_CONTEXT, "the graph does not say it either; add one for another")

    def _with_rotary(self, config: LlamaConfig) -> LlamaConfig:
        table, half = next(sine_tables(self.model), None), config.head_dim // 2
        if table is not None:
            found = frequencies_of_table(table, self.model.file, config)
        else:
            stored = next(self._frequencies(half), None)
            if stored is None:
                raise unlike(self.model, f"it stores no {half} rotary frequencies, and no config.json is beside it")
            found = stored
        theta = base_of(found)
        self._said("rope_theta", f"{theta:g}", "the rotary frequencies tell it")
        config = replace(config, rope_theta=theta)
        plain = inverse_frequencies(config).astype(np.float64)
        if np.allclose(found, plain, rtol=1e-5, atol=0):
            return config
        divisors = tuple(float(np.float32(d)) if abs(d - 1) > 1e-5 else 1.0 for d in plain / found)
        self._said("rope_scaling", f"divisors up to {max(divisors):.6g}", "the rotary frequencies tell it")
        return replace(config, rope_scaling=RopeScaling("divisors", divisors=divisors))

    def _frequencies(self, count: int | None) -> Iterator[NDArray[np.float64]]:
        """Stored floats that could be rotary frequencies: 1, and each less than the one before, down to above 0."""
        for tensor in self._small_floats():
            if count is not None and tensor.count != count:
                continue
            found = np.asarray(small_values(tensor, self.model.file, MOST_FREQUENCIES), np.float64).reshape(-1)
            if found[0] == 1 and found[-1] > 0 and (np.diff(found) < 0).all():
                yield found

    def _small_floats(self) -> Iterator[TensorProto]:
        held = [value for node in self.model.nodes if node.op == "Constant" for value in node.attributes.values()]
        for tensor in (*self.model.tensors.values(), *held):
            if not isinstance(tensor, TensorProto) or tensor.type not in ENCODINGS:
                continue
            if 2 <= tensor.count <= MOST_FREQUENCIES and tensor.count in tensor.shape:
                yield tensor

"""Imports a graph `forward(ids) -> logits` without a past: what torch.compile hands to a backend.

What depends on shapes alone, mask and rotary tables, comes in as data for one shape; the rest must be a Llama. The
graph tells which weight is which and all sizes; from them the model is built as from any checkpoint, so that the code
does not depend on how the module was written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dtypes import I32
from llamac.ir.graph import DataSource, FileSource, Module, Op, Value
from llamac.ir.types import tensor

from ..checkpoint import Checkpoint
from ..llama.config import LlamaConfig, check_config
from .aten import IMPORTERS
from .aten_complex import COMPLEX_OPS, Complex, import_complex, is_complex
from .call import HINT, Call, module_path, source_line
from .captured import torch_checkpoint
from .roles import name_weights
from .torch_library import ir_dtype, require_torch

_MOVES = ("reshape", "cast", "broadcast", "transpose", "slice")


@dataclass(frozen=True)
class StoredWeight:
    """A parameter: its path in the module and its tensor."""

    name: str
    held: Any


@dataclass(frozen=True)
class ModelShape:
    """The sizes that a graph shows. rope_style: how the halves or pairs of q and k are turned."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    tied_head: bool
    dtype: str
    rope_style: str


class CapturedForward:
    """A graph that has been imported: `shape` describes the model, `checkpoint` is it once the rotation is known."""

    def __init__(self, module: Module, tensors: Mapping[str, Any], columns: int) -> None:
        self._module = module
        self._tensors = tensors
        self.shape = _Shape(module, columns).read()

    def checkpoint(self, config: LlamaConfig) -> Checkpoint:
        """The model as a checkpoint whose weights stay where torch holds them (LLC0318, LLC0206..LLC0208)."""
        check_config(config, "the graph")
        renamed = name_weights(self._module, config)
        tensors = {renamed[name]: held for name, held in self._tensors.items() if name in renamed}
        names = {after: before for before, after in renamed.items()}
        return torch_checkpoint(self._module, config, tensors, names, [])


def capture_forward(
    graph: Any, ids: Any, weights: Mapping[Any, StoredWeight], fixed: Mapping[Any, Any]
) -> CapturedForward:
    """Import an FX graph of ATen ops whose nodes have values in their meta.

    ids: the placeholder of the token ids. weights: placeholder -> parameter. fixed: placeholder -> tensor of values
    that depend on no id. LLC0314, LLC0315 (with the module's path and source line) for an op that no Llama has,
    LLC0318 when the graph is not built as one.
    """
    imported = _ForwardImport(weights, fixed)
    imported.run(graph, ids)
    return CapturedForward(imported.module, imported.tensors, int(ids.meta["val"].shape[-1]))


class _ForwardImport:
    """Goes through the graph once; a `Surroundings` of calls without open sizes."""

    def __init__(self, weights: Mapping[Any, StoredWeight], fixed: Mapping[Any, Any]) -> None:
        self.module = Module("llama", "captured")
        self.builder = Builder(self.module)
        self.values: dict[Any, Any] = {}
        self.symbols: dict[str, str] = {}
        self.tensors: dict[str, Any] = {}
        self._weights = weights
        self._fixed = fixed
        self._known: dict[object, Value] = {}

    def run(self, graph: Any, ids: Any) -> None:
        shape = tuple(int(size) for size in ids.meta["val"].shape)
        step = self.builder.graph = new_graph(self.module, "step", [("ids", tensor(*shape, I32))])
        self.values[ids] = step.argument("ids")
        for node in graph.nodes:
            if node.op == "placeholder" and node is not ids:
                held = self._fixed.get(node)
                self.values[node] = self.weight(node) if held is None else self.data(node.name, held)
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                logits = [self.values.get(value) for value in _flat(node.args[0])]
                if len(logits) != 1 or not isinstance(logits[0], Value):
                    raise LlamacError("LLC0318", "the graph", f"it returns {len(logits)} values", "return the logits")
                step.outputs = [logits[0]]
        step.remove_dead_ops()
        for softmax in [op for op in step.ops if op.opcode == "softmax"]:
            attention = _attention(softmax)
            step.outputs += [attention.k, attention.v]
        self.module.remove_dead_weights()

    def weight(self, node: Any) -> Value:
        stored = self._weights[node]
        held = stored.held
        key = (held.data_ptr(), tuple(held.shape), held.stride(), held.dtype)
        if key not in self._known:
            dtype, shape = ir_dtype(held.dtype, stored.name), tuple(int(size) for size in held.shape)
            if not dtype.is_float or len(shape) not in (1, 2):
                raise LlamacError("LLC0315", stored.name, f"a parameter of type {tensor(*shape, dtype)}", HINT)
            self.tensors[stored.name] = held
            source = FileSource(stored.name, dtype.name)
            self._known[key] = self.builder.weight(stored.name, tensor(*shape, dtype), source)
        return self._known[key]

    def data(self, name: str, held: Any) -> Value | Complex:
        """A tensor of values; complex ones are two."""
        torch = require_torch()
        held = held.detach().cpu()
        if held.is_complex():
            real, imaginary = self.data(f"{name}.real", held.real), self.data(f"{name}.imaginary", held.imag)
            assert isinstance(real, Value) and isinstance(imaginary, Value)
            return Complex(real, imaginary)
        dtype, shape = ir_dtype(held.dtype, name), tuple(int(size) for size in held.shape)
        if not shape:
            return self.builder.constant(float(held), dtype)
        plain = (held.float() if held.is_floating_point() else held.to(torch.int64)).numpy()
        data = DataSource(plain.astype(dtype.storage).tobytes())
        return self.builder.weight(f"fixed.{name}", tensor(*shape, dtype), data)

    def call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        name = getattr(node.target, "_opname", str(getattr(node.target, "__name__", node.target)))
        if name in COMPLEX_OPS and is_complex(call := Call(node, self)):
            return import_complex(call)
        if name not in IMPORTERS or getattr(node.target, "namespace", "aten") != "aten":
            near = did_you_mean(name, IMPORTERS)
            reason = f"{node.target} {source_line(node)} is outside the supported set{near}"
            raise LlamacError("LLC0314", module_path(node), reason, HINT)
        return IMPORTERS[name](Call(node, self))


def _flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True)
class _Attention:
    q: Value
    k: Value
    v: Value


def _attention(softmax: Op) -> _Attention:
    """q, k and v of the attention around a softmax; LLC0318 when it is none."""
    value = softmax.operands[0]
    while (op := value.producer) is not None and op.opcode in ("cast", "add", "mul", "div", "select", "reshape"):
        # Of a sum or a choice, the side that is computed from ids: masks and scales are data.
        inner = [operand for operand in op.operands if _is_computed(operand)]
        if len(inner) != 1:
            break
        value = inner[0]
    users = [user for user in _users(softmax.results[0]) if user.opcode == "matmul"]
    if op is None or op.opcode != "matmul" or len(users) != 1:
        where = softmax.location or "the graph"
        raise LlamacError("LLC0318", where, "a softmax is not that of an attention", "softmax(q k^T scale + mask) v")
    return _Attention(op.operands[0], op.operands[1], users[0].operands[1])


def _is_computed(value: Value) -> bool:
    """Whether a matmul lies behind the value."""
    seen, todo = set[Op](), [value.producer]
    while todo:
        op = todo.pop()
        if op is not None and op not in seen:
            if op.opcode == "matmul":
                return True
            seen.add(op)
            todo += [operand.producer for operand in op.operands]
    return False


def _users(value: Value) -> list[Op]:
    found = []
    for user in value.users:
        found += _users(user.results[0]) if user.opcode in ("cast", "reshape") else [user]
    return found


class _Shape:
    """Reads the sizes off an imported graph."""

    def __init__(self, module: Module, columns: int) -> None:
        self.ops = module.step.ops
        self.columns = columns

    def read(self) -> ModelShape:
        embedding = self.the("embedding", "it looks no embeddings up").operands[0]
        softmaxes = [op for op in self.ops if op.opcode == "softmax"]
        if not softmaxes:
            raise LlamacError("LLC0318", "the graph", "it has no attention", HINT)
        attention = _attention(softmaxes[0])
        head_dim = _size(attention.q, -1)
        last = [op for op in self.ops if op.opcode == "matmul"][-1]
        head = _behind(last.operands[1])
        gate = self.the("sigmoid", "it has no silu").operands[0]
        return ModelShape(
            layers=len(softmaxes),
            hidden_size=_size(embedding, 1),
            intermediate_size=_size(gate, -1),
            heads=self.heads(attention.q, head_dim),
            kv_heads=self.heads(_behind(attention.k), head_dim),
            head_dim=head_dim,
            vocab_size=_size(embedding, 0),
            rms_norm_eps=self.epsilon(),
            tied_head=head is embedding,
            dtype=embedding.tensor.dtype.name,
            rope_style="half_split" if self.turns_halves(head_dim) else "interleaved",
        )

    def the(self, opcode: str, otherwise: str) -> Op:
        found = next((op for op in self.ops if op.opcode == opcode), None)
        if found is None:
            raise LlamacError("LLC0318", "the graph", otherwise, HINT)
        return found

    def heads(self, value: Value, head_dim: int) -> int:
        """How many heads a tensor of all rows holds."""
        rows = _elements(self.the("embedding", "").operands[1])
        return _elements(value) // (rows * head_dim)

    def epsilon(self) -> float:
        """What is added to the mean square in every norm."""
        found = set()
        for op in self.ops:
            inner = op.operands[0].producer if op.opcode == "rsqrt" else None
            if inner is not None and inner.opcode == "add":
                constants = [v.producer for v in inner.operands if v.producer and v.producer.opcode == "constant"]
                found |= {float(constant.attributes["value"]) for constant in constants}  # type: ignore[arg-type]
        if len(found) != 1:
            reason = f"its norms add {sorted(found) or 'nothing'} to the mean square"
            raise LlamacError("LLC0318", "the graph", reason, "every norm of a Llama has the same eps")
        return found.pop()

    def turns_halves(self, head_dim: int) -> bool:
        """Whether rotation cuts heads in halves, as transformers does, and not in pairs."""
        return any(
            op.opcode == "slice" and op.attributes["start"] == head_dim // 2 and _size(op.operands[0], -1) == head_dim
            for op in self.ops
        )


def _behind(value: Value) -> Value:
    while value.producer is not None and value.producer.opcode in _MOVES:
        value = value.producer.operands[0]
    return value


def _size(value: Value, axis: int) -> int:
    size = value.tensor.shape[axis]
    assert isinstance(size, int), "a graph without open sizes"
    return size


def _elements(value: Value) -> int:
    return math.prod(_size(value, axis) for axis in range(value.tensor.rank))

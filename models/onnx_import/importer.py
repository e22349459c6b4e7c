"""Imports an ONNX graph: every node becomes captured ops or is evaluated, every stored tensor a weight by reference.

The graph is specialised to one sequence: the batch is 1, the attention mask all ones, and position t of the new tokens
is P + t, which is what a captured step says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dims import DimLike
from llamac.ir.dtypes import DTYPES, F32, I32
from llamac.ir.graph import FileSource, Module, Value
from llamac.ir.types import TensorType, Type, tensor

from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig
from ..llama.graph import LlamaBuilder
from .arithmetic import ARITHMETIC
from .cache import add_cache
from .call import DTYPES as ONNX_DTYPES
from .call import HINT, PAST, TOKENS, Call, Found, Importer, LastToken
from .gathers import GATHERS
from .halves import angle_of
from .known import Literal, Ramp, as_ramp, literal, uniform
from .matrix import Matrix, whole
from .packed import Packed
from .products import PRODUCTS
from .proto import MOST_NODES, Node, OnnxModel, ValueInfo
from .rotary import Rotary
from .shapes import SHAPES, known_or_stored
from .signature import Signature, unlike
from .stored import Stored

IMPORTERS: dict[str, Importer] = {**ARITHMETIC, **SHAPES, **GATHERS, **PRODUCTS}
"""Op, with its domain where that is not ONNX's own -> the function that imports it."""
MOST_OPS = 4 * MOST_NODES


class Import:
    """One import: the module that is being made, and what each name of the ONNX graph stands for."""

    def __init__(self, model: OnnxModel, signature: Signature, config: LlamaConfig, ledger: list[LedgerEntry]) -> None:
        self.model = model
        self.signature = signature
        self.config = config
        self.ledger = ledger
        self.module = Module("llama", "captured")
        self.builder = Builder(self.module)
        self.values: dict[str, Found] = {}
        self.matrices: dict[str, Matrix] = {}
        self._tables: dict[object, Value] = {}
        self._rotary = Rotary(self.builder, config, self.note)

    @property
    def file(self) -> Path:
        """The model's file, beside which its data lies."""
        return self.model.file

    @property
    def past(self) -> DimLike:
        """How many tokens the graph has before its new ones: 0 where it knows no past."""
        return PAST if self.signature.has_past else 0

    @property
    def pieces(self) -> LlamaBuilder:
        """The textbook's pieces in this graph."""
        return self._rotary.pieces

    def opset(self, domain: str) -> str:
        """Of a domain, for messages."""
        return self.model.opset(domain)

    def version(self) -> int:
        """The version of ONNX's own ops."""
        return self.model.opsets.get("", 1)

    def note(self, where: str, what: str, reason: str) -> None:
        """Add to the ledger, once."""
        made = entry("note", where[:120], what, reason)
        if made not in self.ledger:
            self.ledger.append(made)

    def run(self) -> Module:
        """The captured module."""
        if self.model.functions:
            name = self.model.functions[0][:80]
            reason = f"it holds functions of its own, such as {name}"
            raise unlike(self.model, reason)
        self.declare_arguments()
        for tensor_proto in self.model.tensors.values():
            self.values[tensor_proto.name] = known_or_stored(tensor_proto, self.file)
        for node in self.model.nodes:
            self.call(node)
        self.finish()
        return self.module

    # The signature.

    def declare_arguments(self) -> None:
        """`ids, positions, past_k.0, past_v.0 ...`, and what the model's inputs are of those."""
        sign, c = self.signature, self.config
        if sign.has_past and sign.layers != c.layers:
            raise unlike(
                self.model, f"it has the keys and values of {sign.layers} layers, the config {c.layers} layers"
            )
        past: TensorType = tensor(c.kv_heads, PAST, c.head_dim, DTYPES[c.dtype])
        names = [f"past_{side}.{layer}" for layer in range(c.layers) for side in ("k", "v")]
        arguments: list[tuple[str, Type]] = [
            ("ids", tensor(TOKENS, I32)),
            ("positions", tensor(TOKENS, I32)),
            *((n, past) for n in names),
        ]
        graph = self.builder.graph = new_graph(self.module, "step", arguments)
        self._bind_rows(sign.ids, graph.argument("ids"))
        if sign.positions is not None:
            self._bind_rows(sign.positions, graph.argument("positions"))
        if sign.mask is not None:
            self.values[sign.mask.name] = uniform((1, self.past + TOKENS), 1, ONNX_DTYPES.get(sign.mask.type, I32))
            self.note(sign.mask.name, "all ones", "a step serves one sequence, which sees all of its past")
        if sign.kept_logits is not None:
            self.values[sign.kept_logits.name] = literal(0, I32)
            self.note(sign.kept_logits.name, "0", "every new token gets its logits")
        for value, name in zip(sign.pasts, names, strict=False):
            self._bind_past(value, graph.argument(name))
        if len(sign.ids.shape) == 2:
            self.note(sign.ids.name, "a batch of 1", "a step serves one sequence; the runtime batches sequences itself")

    def _bind_rows(self, value: ValueInfo, argument: Value) -> None:
        if len(value.shape) not in (1, 2):
            raise unlike(
                self.model, f"{value.name[:60]} has {len(value.shape)} axes, expected tokens, or batch and tokens"
            )
        batched = len(value.shape) == 2
        self.values[value.name] = self.builder.reshape(argument, 1, TOKENS) if batched else argument

    def _bind_past(self, value: ValueInfo, argument: Value) -> None:
        c, shape = self.config, value.shape[-3:]
        wanted = (c.kv_heads, c.head_dim)
        fixed = [(a, b) for a, b in zip((shape[0], shape[-1]), wanted, strict=True) if isinstance(a, int) and a > 0]
        if len(value.shape) not in (3, 4) or any(a != b for a, b in fixed):
            reason = f"{value.name[:60]} has the shape {list(value.shape)}, expected {c.kv_heads} heads of {c.head_dim}"
            raise unlike(self.model, reason)
        if ONNX_DTYPES.get(value.type) is not DTYPES[c.dtype]:
            raise unlike(self.model, f"{value.name[:60]} has ONNX type {value.type}, the model works in {c.dtype}")
        batched = len(value.shape) == 4
        whole_shape: tuple[DimLike, ...] = (1, *argument.tensor.shape)
        self.values[value.name] = self.builder.reshape(argument, *whole_shape) if batched else argument

    # Weights.

    def weight(self, matrix: Matrix) -> Value:
        """A weight of its own for every use, except that a table is one with the product that shares it."""
        if matrix.place in self._tables:
            return self._tables[matrix.place]
        source = matrix.source
        base = source.name if matrix.is_whole else f"{source.name}[{matrix.lo}:{matrix.hi}]"
        name = next(n for n in _numbered(base) if n not in self.module.weights)
        dtype = F32 if isinstance(source, Packed) else DTYPES[matrix.encoding]
        self.matrices[name] = matrix
        return self.builder.weight(name, tensor(*matrix.shape, dtype), FileSource(name, matrix.encoding))

    def looked_up(self, call: Call, table: Matrix, rows: Value) -> Value:
        """Rows of a matrix by ids of any shape; a product with the same matrix shares the weight."""
        if table.place not in self._tables:
            self._tables[table.place] = self.weight(table)
        count: DimLike = 1
        for size in rows.tensor.shape:
            count = count * size
        found = call.op("embedding", self._tables[table.place], call.reshape(rows, (count,)))
        if isinstance(table.source, Stored) and table.source.cast_to:
            found = call.cast(found, ONNX_DTYPES[table.source.cast_to])
        return call.reshape(found, (*rows.tensor.shape, table.shape[1]))

    def constant(self, stored: Stored) -> Value:
        """A stored tensor used as it is: frequencies, the weight of a norm, or a matrix."""
        if stored.cast_to and ONNX_DTYPES[stored.cast_to] is not ONNX_DTYPES[stored.type]:
            held = self.constant(replace(stored, cast_to=0))
            return self.builder.op("cast", held, dtype=ONNX_DTYPES[stored.cast_to])
        if self._rotary.is_frequencies(stored):
            return self._shaped(self._rotary.frequencies(stored), stored.seen)
        if len([size for size in stored.shape if size != 1]) == 1 and len(stored.shape) != 1:
            vector = Stored(stored.name, (stored.count,), stored.type, stored.file, stored.offset)
            return self._shaped(self.weight(whole(vector)), stored.seen)
        return self.weight(whole(stored))

    def _shaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        return value if value.tensor.shape == shape else self.builder.reshape(value, *shape)

    # Rotary embedding and masks.

    def causal_mask(self) -> Value:
        """[T, P + T], made once."""
        return self._rotary.mask

    def rotation(self, call: Call, cosine: int, interleaved: int) -> Callable[[Value], Value]:
        """What rotates heads [n, T, head size], once the tables in inputs `cosine` and the next are checked."""
        style = "interleaved" if interleaved else "half_split"
        if style != self.config.rope_style:
            raise call.unsupported(f"it rotates {style} pairs, other nodes {self.config.rope_style} ones")
        for index, function in ((cosine, np.cos), (cosine + 1, np.sin)):
            found = call.raw(index)
            if isinstance(found, Stored):
                self._rotary.check_table(found, function)
            elif not (isinstance(found, Value) and _is_table(found, "cos" if index == cosine else "sin")):
                raise call.unsupported("its tables of cosines and sines are neither stored nor made of the frequencies")
        self._check_positions(call, cosine + 2 if cosine == 7 else 1)
        return self._rotary.rotate

    def rotated(self, x: Value) -> Value:
        """Heads [n, T, head size], rotated by the positions."""
        return self._rotary.rotate(x)

    def _check_positions(self, call: Call, index: int) -> None:
        """The positions must be those of the step."""
        if call.has(index) and not self.is_positions(call.raw(index)):
            raise call.unsupported("it rotates by other positions than those of the new tokens")

    def is_positions(self, found: Found) -> bool:
        """Whether a value is `P, P + 1, ...` of the new tokens, or P alone."""
        if isinstance(found, Literal | Ramp):
            ramp = as_ramp(found)
            return ramp.start == self.past and (ramp.is_uniform or ramp.steps[-1] == 1)
        while isinstance(found, Value) and found.producer is not None and found.producer.opcode in ("reshape", "cast"):
            found = found.producer.operands[0]
        assert self.builder.graph is not None
        return found is self.builder.graph.argument("positions")

    def rope_rows(self, call: Call, table: Stored, rows: Value) -> Value | None:
        """Rows of a table of cosines or sines by position, computed instead; None for another table or other rows."""
        half = self.config.head_dim // 2
        if not self.is_positions(rows) or table.shape[-1] not in (half, 2 * half):
            return None
        is_cosine = bool(replace(table, shape=(1, table.shape[1])).read(2 * half).reshape(-1)[0] == 1)
        self._rotary.check_table(table, np.cos if is_cosine else np.sin)
        found = self._rotary.tables[0 if is_cosine else 1]
        width = found.tensor.shape[-1]
        if width != table.shape[1]:
            if width != 2 * half:
                raise call.unsupported("tables of whole heads for interleaved pairs")
            found = self.builder.op("slice", found, axis=1, start=0, stop=half)
        return call.reshape(found, (*rows.tensor.shape, table.shape[1]))

    # Nodes.

    def call(self, node: Node) -> None:
        """Import one node."""
        importer = IMPORTERS.get(node.key)
        if importer is None:
            near = did_you_mean(node.key, IMPORTERS)
            reason = f"{node.key} ({self.opset(node.domain)}) is outside the supported set{near}"
            raise LlamacError("LLC0935", node.title, reason, HINT)
        try:
            found = importer(Call(node, self))
        except LlamacError as error:
            if error.code != "LLC0402":
                raise
            reason = f"{node.key} ({self.opset(node.domain)}): {error.reason}"
            raise LlamacError("LLC0935", node.title, reason, HINT) from None
        except Exception as error:  # operands of an op can be wrong in more ways than anybody looks for
            reason = f"{node.key} ({self.opset(node.domain)}): {type(error).__name__}: {str(error)[:200]}"
            raise LlamacError("LLC0935", node.title, reason, HINT) from error
        results: list[Found] = list(found) if isinstance(found, Sequence) else [found]
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                self.values[name] = value
        assert self.builder.graph is not None
        if len(self.builder.graph.ops) > MOST_OPS:
            raise unlike(self.model, f"it takes more than {MOST_OPS} ops")

    def finish(self) -> None:
        """The outputs, without a batch axis, checked against the step's."""
        sign, graph = self.signature, self.builder.graph
        assert graph is not None
        for value, rank in ((sign.logits, 2), *((present, 3) for present in sign.presents)):
            if value.name not in self.values:
                raise unlike(self.model, f"no node gives the output {value.name[:80]}")
            self._of_every_token(value.name)
            node = Node(value.name, "", "output", [value.name], [], {})
            made = Call(node, self).tensor(0)
            shape = made.tensor.shape
            made = self.builder.reshape(made, *shape[1:]) if len(shape) == rank + 1 and shape[0] == 1 else made
            graph.outputs.append(made)
        if graph.outputs[0].tensor.dtype is not F32:
            graph.outputs[0] = self.builder.op("cast", graph.outputs[0], dtype=F32)
        if not sign.has_past:
            add_cache(graph, self._rotary.pieces, self.config, self.file.name)
            self.note(sign.ids.name, "a step with keys and values of the past", "the graph computes whole texts only")
        self._check_outputs(graph.outputs)

    def _of_every_token(self, name: str) -> None:
        """What the graph computes of the last token alone, for all of them."""
        found = self.values[name]
        if isinstance(found, LastToken):
            self.values[name] = found.tokens
            self.note(name, "those of every token", "the graph gives those of the last one, computed alike for each")

    def _check_outputs(self, outputs: list[Value]) -> None:
        c = self.config
        wanted = [tensor(TOKENS, c.vocab_size, F32)]
        wanted += [tensor(c.kv_heads, PAST + TOKENS, c.head_dim, DTYPES[c.dtype])] * (2 * c.layers)
        names = [value.name for value in (self.signature.logits, *self.signature.presents)]
        names += [f"output {index}" for index in range(len(names), len(outputs))]
        for value, type, name in zip(outputs, wanted, names, strict=True):
            if value.type != type:
                raise unlike(self.model, f"{name[:60]} is {value.type}, expected {type}")


def _is_table(value: Value, opcode: str) -> bool:
    """Whether a value is the cosines (or sines) of 0, 1, 2 ... times the frequencies."""
    factor = angle_of(value, opcode)
    return factor is not None and factor.producer is not None and factor.producer.opcode == "iota"


def _numbered(name: str) -> Iterator[str]:
    """name, name#2, name#3 ..."""
    yield name
    yield from (f"{name}#{index}" for index in range(2, 4096))

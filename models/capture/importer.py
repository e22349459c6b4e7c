"""Imports an exported program: every ATen call becomes captured ops, every parameter a weight.

The program must be one step of one sequence: `(ids, positions, past_k.0, past_v.0, ...) -> logits, k.0, v.0, ...`, each
with or without a batch axis of one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dims import DimLike
from llamac.ir.dtypes import F32, I32
from llamac.ir.graph import Module, Value
from llamac.ir.types import TensorType, tensor

from .aten import IMPORTERS
from .aten_complex import COMPLEX_OPS, import_complex, is_complex
from .call import HINT, PAST, TOKENS, Call, module_path, source_line
from .parameters import Parameters
from .symbols import dimension, is_symbolic
from .torch_library import ir_dtype


def import_program(program: Any, parameters: Parameters) -> Module:
    """The captured module of an ExportedProgram; weights are declared through `parameters` as they are used."""
    return _Import(program, parameters).run()


class _Import:
    def __init__(self, program: Any, parameters: Parameters) -> None:
        self.program = program
        self.parameters = parameters
        self.module = Module("llama", "captured")
        self.builder = Builder(self.module)
        self.values: dict[Any, Any] = {}
        self.symbols: dict[str, str] = {}

    def run(self) -> Module:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        inputs = [n for n in placeholders if specs[n.name].kind.name == "USER_INPUT" and "val" in n.meta]
        self.declare_arguments(inputs)
        stored = {n: specs[n.name] for n in placeholders if n not in inputs}
        for node in self.program.graph.nodes:
            if node in stored and node.users:
                self.values[node] = self.parameters.value(stored[node], self.builder)
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                self.finish(node)
            elif node.op != "placeholder":
                raise LlamacError("LLC0315", module_path(node), f"the graph has a {node.op} node", HINT)
        return self.module

    # The signature.

    def declare_arguments(self, inputs: Sequence[Any]) -> None:
        if len(inputs) < 4 or len(inputs) % 2:
            reason = f"the program takes {len(inputs)} tensors: {', '.join(n.name for n in inputs)}"
            raise LlamacError("LLC0316", "the program", reason, SIGNATURE)
        self.name_symbols(inputs)
        names = ["ids", "positions"]
        for layer in range(len(inputs) // 2 - 1):
            names += [f"past_k.{layer}", f"past_v.{layer}"]
        types = [self.argument_type(node, 1 if i < 2 else 3) for i, node in enumerate(inputs)]
        wanted = (TOKENS,), (TOKENS,), *((t.shape[0], PAST, t.shape[-1]) for t in types[2:])
        for node, found, shape in zip(inputs, types, wanted, strict=True):
            if found.shape != shape or (found.dtype is I32) != (len(shape) == 1):
                raise LlamacError("LLC0316", node.name, f"has the type {found}, which is not its place's", SIGNATURE)
        graph = self.builder.graph = new_graph(self.module, "step", list(zip(names, types, strict=True)))
        for node, argument in zip(inputs, graph.arguments, strict=True):
            shape = self.shape(node)
            self.values[node] = argument if shape == argument.tensor.shape else self.builder.reshape(argument, *shape)

    def name_symbols(self, inputs: Sequence[Any]) -> None:
        """T is the length of the ids, P that of the past."""
        for node, axis, name, what in ((inputs[0], -1, "T", "ids"), (inputs[2], -2, "P", "past")):
            shape = node.meta["val"].shape
            size: Any = shape[axis] if len(shape) >= -axis else 0
            if not is_symbolic(size) or not size.node.expr.is_Symbol:
                reason = f"the length of the {what} is fixed at {size}"
                raise LlamacError("LLC0316", node.name, reason, "export with dynamic dimensions for tokens and past")
            if str(size.node.expr) in self.symbols:
                raise LlamacError("LLC0316", node.name, "tokens and past are one dimension", "export with two Dims")
            self.symbols[str(size.node.expr)] = name

    def shape(self, node: Any) -> tuple[DimLike, ...]:
        return tuple(dimension(d, self.symbols, node.name) for d in node.meta["val"].shape)

    def argument_type(self, node: Any, rank: int) -> TensorType:
        """The type without a batch axis."""
        shape = self.shape(node)
        shape = shape[1:] if len(shape) == rank + 1 and shape[0] == 1 else shape
        return tensor(*shape, ir_dtype(node.meta["val"].dtype, node.name))

    # Calls.

    def call(self, node: Any) -> Any:
        """The value of a call: tensors as values, sizes as nothing (they are read from the node)."""
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        found = node.meta.get("val")
        if is_symbolic(found) or isinstance(found, bool | int | float):
            return None
        name = getattr(node.target, "_opname", str(getattr(node.target, "__name__", node.target)))
        if name in COMPLEX_OPS and is_complex(call := Call(node, self)):
            return import_complex(call)
        if name not in IMPORTERS or getattr(node.target, "namespace", "aten") != "aten":
            near = did_you_mean(name, IMPORTERS)
            reason = f"{node.target} {source_line(node)} is outside the supported set{near}"
            raise LlamacError("LLC0314", module_path(node), reason, HINT)
        return IMPORTERS[name](Call(node, self))

    def finish(self, node: Any) -> None:
        graph = self.builder.graph
        assert graph is not None
        kinds = {spec.kind.name for spec in self.program.graph_signature.output_specs}
        outputs: list[Any] = [self.values.get(value) for value in node.args[0]]
        if kinds != {"USER_OUTPUT"} or len(outputs) != len(graph.arguments) - 1 or not all(outputs):
            reason = f"the program returns {len(outputs)} values ({', '.join(sorted(kinds)).lower()})"
            raise LlamacError("LLC0316", "the program", reason, SIGNATURE)
        for value, rank in zip(outputs, (2, *(3,) * len(outputs)), strict=False):
            shape = value.tensor.shape
            batched = len(shape) == rank + 1 and shape[0] == 1
            graph.outputs.append(self.builder.reshape(value, *shape[1:]) if batched else value)
        logits = graph.outputs[0]
        if logits.tensor.dtype is not F32:
            graph.outputs[0] = self.builder.op("cast", logits, dtype=F32)
        self.check_outputs(graph.outputs)

    def check_outputs(self, outputs: Sequence[Value]) -> None:
        graph = self.builder.graph
        assert graph is not None
        if outputs[0].tensor.rank != 2 or outputs[0].tensor.shape[0] != TOKENS:
            reason = f"the logits have the type {outputs[0].type}"
            raise LlamacError("LLC0316", "the program", reason, "return the logits of every new token, [T, vocabulary]")
        for output, past in zip(outputs[1:], graph.arguments[2:], strict=True):
            heads, _, width = past.tensor.shape
            wanted = tensor(heads, PAST + TOKENS, width, past.tensor.dtype)
            if output.type != wanted:
                reason = f"returns {output.type} for %{past.name}, expected {wanted}"
                raise LlamacError("LLC0316", "the program", reason, SIGNATURE)


SIGNATURE = (
    "the step is (ids, positions, past_k.0, past_v.0, ...) -> logits, k.0, v.0, ...; keys are [heads, P, head_dim]"
)

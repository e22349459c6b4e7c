"""Turns a model-level graph into an ONNX graph, op by op, by a table of rules.

The IR's graph is that of one sequence; ONNX's has a batch in front: a value [T, d] becomes [batch, tokens, d], and
[heads, T, h] becomes [batch, heads, tokens, h]. Rows that are routed to experts are those of the whole batch, in one
row of axes as in the IR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Op, Value, Weight
from llamac.ir.types import TensorType

from .external_data import ExternalData
from .graph_writer import DATA, OPSET, GraphWriter
from .weights import Note, WeightForms

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
EMBEDS = "inputs_embeds"
"""What a decoder takes instead of ids where pictures come in among the embedded text."""


@dataclass(frozen=True)
class Settings:
    """What an emitted graph may be asked for.

    logits: "all", or "last" for those of the last token alone. accuracy: the accuracy_level of MatMulNBits: 4 rounds
    activations to 8 bits, 1 keeps them in f32. context: the longest sequence.
    """

    logits: str = "all"
    accuracy: int = 4
    context: int = 0


class Emitter:
    """The graph being emitted: names of values so far, and what several rules share."""

    def __init__(
        self,
        graph: Graph,
        rules: Mapping[str, Rule],
        settings: Settings,
        note: Note,
        data_file: str = DATA,
        data: ExternalData | None = None,
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.settings = settings
        self.writer = GraphWriter(data_file, data)
        self.weights = WeightForms(self.writer, note)
        self.rows = IDS  # the input with a row for each new token
        self._names: dict[Value, str] = {}
        self._wanted: dict[Value, str] = {}

    def name(self, value: Value) -> str:
        """The name of a value that has been emitted."""
        return self._names[value]

    def has(self, value: Value) -> bool:
        """Whether a value has a name already: a rule may emit several ops at once."""
        return value in self._names

    def bind(self, value: Value, name: str) -> None:
        """A value has the name `name` from now on."""
        self._names[value] = name

    def wanted(self, value: Value) -> str:
        """The name that a value must have because it is an output of the graph, or ""."""
        return self._wanted.get(value, "")

    def node(self, kind: str, *inputs: str, of: Value, domain: str = "", **attributes: Any) -> None:
        """Emit the node that gives `of`."""
        self.bind(of, self.writer.op(kind, *inputs, result=self.wanted(of), domain=domain, **attributes))

    def want(self, value: Value, name: str) -> None:
        """A value is an output of the graph, called `name`."""
        self._wanted[value] = name

    def operands(self, op: Op) -> tuple[str, ...]:
        """Names of the operands that are no weights."""
        return tuple(self.name(v) for v in op.operands if not isinstance(v, Weight))

    def run(self, graph: Graph | None = None, reads: Callable[[Op], Sequence[Value]] = lambda op: op.operands) -> None:
        """Emit a graph, the emitter's own unless told; `reads` says which values the rule of an op wants.

        Inputs and outputs have been declared, and its arguments have names.
        """
        for op in _needed(graph or self.graph, reads):
            if all(self.has(result) for result in op.results):
                continue
            self.writer.place = op.location
            rule = self.rules.get(op.opcode)
            if rule is None:
                hint = "this model cannot be exported to ONNX; compile it with llamac, or export it to GGUF"
                reason = f"the op {op.opcode} has no form in ONNX (opset {OPSET})"
                raise LlamacError("LLC0931", op.location or op.opcode, reason, hint)
            rule(self, op)


Rule = Callable[[Emitter, Op], None]


def _needed(graph: Graph, reads: Callable[[Op], Sequence[Value]]) -> list[Op]:
    """The ops whose results reach an output through what the rules read, in order."""
    wanted: set[Value] = set(graph.outputs)
    found = []
    for op in reversed(graph.ops):
        if any(result in wanted for result in op.results):
            wanted.update(reads(op))
            found.append(op)
    return found[::-1]


def with_batch(t: TensorType) -> list[int]:
    """The shape as a Reshape wants it: the batch kept, the one symbolic dimension found out."""
    return [0, *(d if isinstance(d, int) else -1 for d in t.shape)]

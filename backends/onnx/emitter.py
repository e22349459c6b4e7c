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

from .graph_writer import OPSET, GraphWriter
from .weights import Note, WeightForms

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"


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

    def __init__(self, graph: Graph, rules: Mapping[str, Rule], settings: Settings, note: Note) -> None:
        self.graph = graph
        self.rules = rules
        self.settings = settings
        self.writer = GraphWriter()
        self.weights = WeightForms(self.writer, note)
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

    def operands(self, op: Op) -> tuple[str, ...]:
        """Names of the operands that are no weights."""
        return tuple(self.name(v) for v in op.operands if not isinstance(v, Weight))

    def run(self, reads: Callable[[Op], Sequence[Value]] = lambda op: op.operands) -> None:
        """Emit the whole graph; `reads` says which values the rule of an op wants."""
        self._declare_inputs()
        self._declare_outputs()
        for op in _needed(self.graph, reads):
            if all(self.has(result) for result in op.results):
                continue
            self.writer.place = op.location
            rule = self.rules.get(op.opcode)
            if rule is None:
                hint = "this model cannot be exported to ONNX; compile it with llamac, or export it to GGUF"
                reason = f"the op {op.opcode} has no form in ONNX (opset {OPSET})"
                raise LlamacError("LLC0931", op.location or op.opcode, reason, hint)
            rule(self, op)

    def _declare_inputs(self) -> None:
        """What transformers' models take: ids, mask, positions, and the past of each layer."""
        w, names = self.writer, self._names
        w.place = "inputs"
        w.input(IDS, "INT64", ("batch", "tokens"))
        w.input(MASK, "INT64", ("batch", "total"))
        w.input(POSITIONS, "INT64", ("batch", "tokens"))
        for argument in self.graph.arguments:
            part, _, layer = argument.name.partition(".")
            if argument.name == "ids":
                names[argument] = IDS
            elif argument.name == "positions":
                names[argument] = POSITIONS
            elif part in ("past_k", "past_v"):
                kv_heads, _, head_dim = argument.tensor.shape
                assert isinstance(kv_heads, int) and isinstance(head_dim, int)
                name = f"past_key_values.{layer}.{'key' if part == 'past_k' else 'value'}"
                names[argument] = w.input(name, "FLOAT", ("batch", kv_heads, "past", head_dim))
            else:
                reason = f"the step takes %{argument.name}, which has no place among the inputs of a text model"
                raise LlamacError("LLC0932", argument.name, reason, "export a text model")

    def _declare_outputs(self) -> None:
        """Logits, and what each layer hands on."""
        logits, *states = self.graph.outputs
        pasts = [a for a in self.graph.arguments if a.name.startswith("past_")]
        vocab = logits.tensor.shape[1]
        assert isinstance(vocab, int) and len(pasts) == len(states)
        rows: str | int = "tokens" if self.settings.logits == "all" else 1
        self.writer.output(LOGITS, "FLOAT", ("batch", rows, vocab))
        self._wanted[logits] = LOGITS
        for state, past in zip(states, pasts, strict=True):
            kv_heads, _, head_dim = state.tensor.shape
            assert isinstance(kv_heads, int) and isinstance(head_dim, int)
            name = self._names[past].replace("past_key_values", "present")
            self.writer.output(name, "FLOAT", ("batch", kv_heads, "total", head_dim))
            self._wanted[state] = name


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

"""One C function being written: where its values lie, and the barriers between its kernel calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamac.analysis.memory import EXTERNAL, placement, strips, value_bytes
from llamac.errors import LlamacError
from llamac.ir.dims import Dim, evaluate
from llamac.ir.graph import Graph, Op, Value, Weight
from llamac.ir.printer import print_op
from llamac.ir.types import TensorType

from .hazards import Hazards, Region

if TYPE_CHECKING:
    from .codegen import Generator


@dataclass
class Place:
    """Where a value lies: a C pointer expression of its type, the row stride in elements, and the memory it touches."""

    pointer: str
    stride: int
    region: Region | None


@dataclass
class Frame:
    """What the methods of `emitters.FunctionEmitter` write into: lines, places of values, accesses since a barrier."""

    generator: Generator
    graph: Graph
    lines: list[str] = field(default_factory=list)
    hazards: Hazards = field(default_factory=Hazards)
    places: dict[Value, Place] = field(default_factory=dict)

    def run(self) -> str:
        """The text of the whole function."""
        self.is_step = self.graph.name == "step"
        self.strips = strips(self.graph)
        self.weights = [a for a in self.graph.arguments if not self.is_step and self._is_weight(a)]
        self.graph.rename_values()
        for index, op in enumerate(self.graph.ops):
            self.lines.append(f"  /* {comment(op)} */")
            getattr(self, f"emit_{op.opcode}", self._unknown)(op)
            if self.generator.trace and op.opcode != "call":
                self._trace(index, op)
        return "\n".join([*self._head(), *self.lines, "}", ""])

    def _trace(self, index: int, op: Op) -> None:
        """Hand out the results of an op once every thread has written its part, and before any goes on."""
        layer = "NO_LAYER" if self.is_step else "layer"
        calls = [
            f'  llamac_trace(th, "{self.graph.name}", {index}, {number}, {layer}, {self.places[value].pointer}, '
            f"{self.places[value].stride});"
            for number, value in enumerate(op.results)
            if isinstance(value.type, TensorType)
        ]
        self.lines += ["  llamac_barrier(th);", *calls, "  llamac_barrier(th);"]

    def _unknown(self, op: Op) -> None:
        raise LlamacError("LLC0605", op.location, f"the CPU backend has no code for {op.opcode}")

    def _is_weight(self, argument: Value) -> bool:
        index = self.graph.arguments.index(argument)
        calls = [op for op in self.generator.module.step.ops if op.attributes.get("callee") == self.graph.name]
        return all(isinstance(op.operands[index], Weight) for op in calls)

    def _head(self) -> list[str]:
        if self.is_step:
            return ["static void step(const llamac_thread *th, void *argument)\n{\n  const step_args *s = argument;"]
        tensors = [a for a in self.graph.arguments[2:] if a not in self.weights and self._is_computed(a)]
        extra = "".join(f", const float *{identifier(a)}" for a in tensors)
        return [
            f"static __attribute__((noinline)) void {self.graph.name}(const llamac_thread *th, const step_args *s, "
            f"uint32_t layer, const uint64_t *w,\n    float *hidden{extra})\n{{"
        ]

    def _is_computed(self, argument: Value) -> bool:
        return isinstance(argument.type, TensorType) and argument.type.dtype.is_float

    # Where things are.

    def place(self, value: Value) -> Place:
        if value not in self.places:
            self.places[value] = self._argument(value)
        return self.places[value]

    def _argument(self, value: Value) -> Place:
        width = value.tensor.shape[-1]
        stride = width if isinstance(width, int) else 0
        if value in self.graph.arguments and not self.is_step:
            index = self.graph.arguments.index(value)
            if index == 0:
                return Place("hidden", stride, Region("hidden"))
            if self._is_computed(value):
                return Place(identifier(value), stride, None)
        return Place(f"s->{value.name}", stride, None)

    def output(self, op: Op, index: int = 0) -> Place:
        """The place of a result, as `plan-memory` chose it."""
        value, offset = op.results[index], placement(op)[index]
        width = value.tensor.shape[-1] if value.tensor.rank > 1 else 1
        assert isinstance(width, int)
        if offset == EXTERNAL:
            place = Place("s->logits", width, Region("logits"))
        elif offset < 0:
            place = Place("hidden", width, Region("hidden"))
        else:
            place = self._in_arena(value, offset, width)
        self.places[value] = place
        return place

    def _in_arena(self, value: Value, offset: int, width: int) -> Place:
        tokens = self.generator.limits.max_tokens
        ctype = {"i8": "int8_t", "i32": "int32_t"}.get(value.tensor.dtype.name, "float")
        whole = self.strips.get(value)
        if whole is None:
            pointer = self._name(value, ctype, f"s->arena + {offset}")
            return Place(pointer, width, Region("arena", offset, value_bytes(value, tokens)))
        assert whole.producer is not None
        column, stride = 0, whole.tensor.shape[-1]
        for part in whole.producer.operands:
            if part is value:
                break
            part_width = part.tensor.shape[-1]
            assert isinstance(part_width, int)
            column += part_width
        assert isinstance(stride, int)
        # Strips of one buffer are written side by side: what overlaps is the column range.
        region = Region("arena", offset, value_bytes(whole, tokens), (column, column + width))
        pointer = self._name(value, ctype, f"s->arena + {offset + column * 4}")
        return Place(pointer, stride, region)

    def _name(self, value: Value, ctype: str, address: str) -> str:
        """A C variable for the memory of a value, under the value's own number."""
        self.lines.append(f"  {ctype} *const v{value.name} = ({ctype} *)({address});")
        return f"v{value.name}"

    def rows(self, value: Value) -> str:
        dim = value.tensor.shape[0]
        if isinstance(dim, Dim) and str(dim) == "R":
            return "s->logit_count"
        slots = evaluate(dim, {"T": 1})
        return "s->tokens" if slots == 1 else f"s->tokens * {slots}"

    def quantized(self, places: list[Place]) -> str:
        """Three places as one quantized activation."""
        return f"(llamac_quantized){{{', '.join(p.pointer for p in places)}}}"

    def weight(self, value: Value) -> str:
        if isinstance(value, Weight):
            return f"s->weights + UINT64_C({self.generator.offset(value)})"
        return f"s->weights + w[{self.weights.index(value)}]"

    def call(self, text: str, reads: list[Value], writes: list[Place], extra: tuple[Region, ...] = ()) -> None:
        """Emit one kernel call, with a barrier in front when it touches what an earlier one wrote or still reads."""
        read = [r for v in reads if (r := self.place(v).region) is not None]
        written = [p.region for p in writes if p.region is not None]
        if self.hazards.conflicts(read, [*written, *extra]):
            self.lines.append("  llamac_barrier(th);")
            self.hazards.clear()
        self.hazards.add(read, [*written, *extra])
        self.lines.append(f"  {text}")


def identifier(value: Value) -> str:
    """The C name of a computed argument."""
    return "in_" + "".join(c if c.isalnum() else "_" for c in value.name)


def comment(op: Op) -> str:
    """The op as it prints, fit for a C comment."""
    text = print_op(op)
    text = text if len(text) < 200 else text[:197] + "..."
    return text.replace("*/", "* /")

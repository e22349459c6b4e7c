"""One C function being written: where its values lie, and the barriers between its kernel calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamac.analysis.memory import EXTERNAL, placement, strips, value_bytes
from llamac.errors import LlamacError
from llamac.ir.dims import Dim, evaluate
from llamac.ir.dtypes import F32
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.printer import print_op
from llamac.ir.types import CacheType, TensorType

from .hazards import Hazards, Region
from .op_table import describe

if TYPE_CHECKING:
    from .codegen import Generator


_C_TYPES = {"i8": "int8_t", "i32": "int32_t"}
"""Element type -> that of a C pointer; every other one is a float."""


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
    module: Module
    graph: Graph
    lines: list[str] = field(default_factory=list)
    hazards: Hazards = field(default_factory=Hazards)
    places: dict[Value, Place] = field(default_factory=dict)

    def run(self) -> str:
        """The text of the whole function."""
        self.is_main = self.graph in self.module.entries
        self.strips = strips(self.graph)
        self.weights = [a for a in self.graph.arguments if not self.is_main and self._is_weight(a)]
        self.graph.rename_values()
        for index, op in enumerate(self.graph.ops):
            before = len(self.lines)
            self.lines.append(f"  /* {comment(op)} */")
            getattr(self, f"emit_{op.opcode}", self._unknown)(op)
            self._profile(op, self.lines[before:])
            if self.generator.trace and op.opcode != "call" and self.arguments == "step_args":
                self._trace(index, op)
        return "\n".join([*self._head(), *self.lines, "}", ""])

    def _trace(self, index: int, op: Op) -> None:
        """Hand out the results of an op once every thread has written its part, and before any goes on."""
        layer = "NO_LAYER" if self.is_main else "layer"
        calls = [
            f'  llamac_trace(th, "{self.graph.name}", {index}, {number}, {layer}, {self.places[value].pointer}, '
            f"{self.places[value].stride});"
            for number, value in enumerate(op.results)
            if isinstance(value.type, TensorType)
        ]
        self.lines += ["  llamac_barrier(th);", *calls, "  llamac_barrier(th);"]

    def _profile(self, op: Op, lines: list[str]) -> None:
        """Take the time after an op that has code of its own, and describe it for whoever reads the times."""
        if op.opcode == "call" or not any("(th, " in line for line in lines):
            return
        caches = [v.type for v in op.operands if isinstance(v.type, CacheType)]
        cache = self.generator.group(caches[0]) if caches and self.arguments == "step_args" else 0
        self.lines.append(f"  llamac_op_done(th, s->profile, {len(self.generator.profiled)});")
        self.generator.profiled.append(describe(self.graph, op, self.weights, cache))

    def barrier(self) -> None:
        """Everything before this has happened, on every thread."""
        self.lines.append("  llamac_op_barrier(th, s->profile);")
        self.hazards.clear()

    def _unknown(self, op: Op) -> None:
        raise LlamacError("LLC0605", op.location, f"the CPU backend has no code for {op.opcode}")

    def _is_weight(self, argument: Value) -> bool:
        index = self.graph.arguments.index(argument)
        calls = [op for op in self.module.main.ops if op.attributes.get("callee") == self.graph.name]
        return all(isinstance(op.operands[index], Weight) for op in calls)

    def _head(self) -> list[str]:
        if self.is_main:
            head = f"static void {self.graph.name}(const llamac_thread *th, void *argument)"
            return [f"{head}\n{{\n  const {self.arguments} *s = argument;"]
        given = self.graph.arguments[len(self.graph.outputs) :]
        tensors = [a for a in given if a not in self.weights and self._is_computed(a)]
        extra = "".join(f", const {_C_TYPES.get(a.tensor.dtype.name, 'float')} *{identifier(a)}" for a in tensors)
        return [
            f"static __attribute__((noinline)) void {self.graph.name}(const llamac_thread *th, "
            f"const {self.arguments} *s, uint32_t layer, const uint64_t *w,\n    float *hidden{extra})\n{{"
        ]

    def _is_computed(self, argument: Value) -> bool:
        """Whether a function is handed this argument, rather than finding it among those of the main function."""
        if not isinstance(argument.type, TensorType) or argument.type.dtype.is_float:
            return isinstance(argument.type, TensorType)
        calls = [op for op in self.module.main.ops if op.opcode == "call"]
        callees = [self.module.graphs[str(op.attributes["callee"])].arguments for op in calls]
        given = [op.operands[a.index(argument)] for op, a in zip(calls, callees, strict=True) if argument in a]
        return any(value.producer is not None for value in given)

    # Where things are.

    @property
    def arguments(self) -> str:
        """The C struct that the main function of this module is called with."""
        return "step_args" if self.module.main.name == "step" else "image_args"

    def place(self, value: Value) -> Place:
        if value not in self.places:
            is_row = isinstance(value, Weight) or value in self.weights
            self.places[value] = self._row_of_weights(value) if is_row else self._argument(value)
        return self.places[value]

    def _row_of_weights(self, value: Value) -> Place:
        """An f32 weight that is added as it is; one of rank 1 is the same for every row."""
        if value.tensor.dtype is not F32:
            raise LlamacError("LLC0605", value.name, f"the kernels add f32 weights, not {value.tensor.dtype}")
        width = value.tensor.shape[1] if value.tensor.rank == 2 else 0
        assert isinstance(width, int)
        return Place(f"(const float *)({self.weight(value)})", width, None)

    def _argument(self, value: Value) -> Place:
        width = value.tensor.shape[-1]
        stride = width if isinstance(width, int) else 0
        if value in self.graph.arguments and not self.is_main:
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
            place = self._external(value, width)
        elif offset < 0:
            place = Place("hidden", width, Region("hidden"))
        else:
            place = self._in_arena(value, offset, width)
        self.places[value] = place
        return place

    def _external(self, value: Value, width: int) -> Place:
        """In memory of the caller: all of the logits, or the columns of this rank where those of others join them."""
        name = "logits" if self.arguments == "step_args" else "embeddings"
        joined = next((user for user in value.users if user.opcode == "all_gather"), None)
        if joined is None:
            return Place(f"s->{name}", width, Region(name))
        whole = joined.result.tensor.shape[1]
        assert isinstance(whole, int)
        return Place(f"s->{name} + (size_t)s->group->rank * {width}", whole, Region(name))

    def _in_arena(self, value: Value, offset: int, width: int) -> Place:
        tokens = self.generator.limits.max_tokens
        ctype = _C_TYPES.get(value.tensor.dtype.name, "float")
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
        if isinstance(dim, int):
            return str(dim)
        if str(dim) == "M":
            return "s->vision_tokens"
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
            self.barrier()
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

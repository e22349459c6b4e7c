"""Generates readable C from a kernel-level module: one function a kernel shape, one a distinct layer, one step.

Every thread of the pool runs the same step function; kernels split their work by thread number, and a barrier stands
between an op and the first later op that touches the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.analysis.memory import EXTERNAL, placement, strips, value_bytes
from llamac.analysis.weight_plan import PlacedWeight
from llamac.errors import LlamacError
from llamac.ir.dims import Dim
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.layouts import WeightFormat, format_of
from llamac.ir.printer import print_op
from llamac.ir.types import TensorType

from . import abi
from .hazards import Hazards, Region
from .toolchain import kernel_source

LARGEST_HEAD = 256
"""LLAMAC_MOST_HEAD_DIM of the kernel library."""

_C_TYPES = {"f32": "LLAMAC_F32", "f16": "LLAMAC_F16", "bf16": "LLAMAC_BF16", "e4m3fn": "LLAMAC_E4M3FN"}


@dataclass(frozen=True)
class Limits:
    """The sizes that the step function checks its input against."""

    vocab: int
    context: int
    max_tokens: int
    arena_bytes: int
    weight_bytes: int


def generate(module: Module, placed: list[PlacedWeight], limits: Limits, title: str, trace: bool = False) -> str:
    """The C source of one self-contained code member; with `trace` it hands out every intermediate value."""
    return _Generator(module, placed, limits, title, trace).run()


@dataclass
class _Place:
    """Where a value lies: a C pointer expression of its type, the row stride in elements, and the memory it touches."""

    pointer: str
    stride: int
    region: Region | None


@dataclass
class _Generator:
    module: Module
    placed: list[PlacedWeight]
    limits: Limits
    title: str
    trace: bool = False
    kernels: dict[str, str] = field(default_factory=dict)

    def run(self) -> str:
        self.cache = self.module.step.argument("cache").cache
        if self.cache.head_dim > LARGEST_HEAD:
            reason = f"heads of {self.cache.head_dim} are wider than the attention kernel's {LARGEST_HEAD}"
            raise LlamacError("LLC0605", "attention", reason, "this architecture needs another backend")
        bodies = []
        for name, graph in self.module.graphs.items():
            if name != "step":
                bodies.append(self.function(graph))
        step = self.function(self.module.step)
        parts = [
            abi.banner(self.title),
            kernel_source(),
            abi.declarations(self.limits, self.cache),
            *([abi.trace()] if self.trace else []),
            "/* Kernels of this model: shapes and formats are constants, so the compiler specializes each. */\n",
            *self.kernels.values(),
            *bodies,
            step,
            abi.exports(),
        ]
        return "\n".join(parts)

    def function(self, graph: Graph) -> str:
        return _Function(self, graph).run()

    def offset(self, weight: Weight) -> int:
        if not hasattr(self, "_offsets"):
            self._offsets = {p.weight: p.offset for p in self.placed}
        return self._offsets[weight]

    def linear(self, op: Op) -> str:
        """The name of the function for this linear's shape and format."""
        fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
        name = f"linear_{fmt.name}_{rows}x{columns}"
        if name not in self.kernels:
            x = "const float *x, size_t ldx" if fmt.is_dense else "llamac_quantized x"
            given = "x, ldx" if fmt.is_dense else "x"
            call = "llamac_linear_dense" if fmt.is_dense else "llamac_linear_grouped"
            self.kernels[name] = (
                f"static __attribute__((noinline)) void {name}(const llamac_thread *th, float *y, size_t ldy, {x}, "
                f"uint32_t rows,\n    const uint8_t *w, const float *residual)\n{{\n"
                f"  {call}(th, y, ldy, {given}, rows, w, {rows}, {columns}, {c_format(fmt)}, residual);\n}}\n"
            )
        return name

    def attention(self, op: Op) -> str:
        """The name of the attention function for this head count and scale."""
        heads, scale = op.attributes["heads"], op.attributes["scale"]
        name = f"attention_{heads}x{self.cache.head_dim}"
        assert isinstance(scale, float)
        body = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, const step_args *s, float *out, "
            f"size_t ld_out,\n    const float *q, size_t ldq, uint32_t layer)\n{{\n"
            f"  llamac_attention(th, out, ld_out, q, ldq, s->tokens, cache_of(s), layer, {heads}, "
            f"{self.cache.kv_heads}, {self.cache.head_dim},\n      {_C_TYPES[self.cache.dtype.name]}, "
            f"{c_float(scale)}, s->positions, s->sequence_of_token);\n}}\n"
        )
        if self.kernels.setdefault(name, body) != body:
            raise LlamacError("LLC0605", op.location, "layers scale their attention differently")
        return name


def c_format(fmt: WeightFormat) -> str:
    """The format as the kernel library's literal."""
    if fmt.is_dense:
        return _C_TYPES[fmt.quants.name]
    assert fmt.scale is not None
    signed = int(fmt.quants.name.startswith("i"))
    minimum = fmt.minimum.bits if fmt.minimum else 0
    return f"(llamac_grouped){{{fmt.quants.bits}, {signed}, {fmt.group}, {fmt.scale.bits}, {minimum}}}"


def c_float(value: float) -> str:
    """An f32 literal with every bit, by way of the nearest double."""
    return f"(float){float(value).hex()}"


@dataclass
class _Function:
    generator: _Generator
    graph: Graph
    lines: list[str] = field(default_factory=list)
    hazards: Hazards = field(default_factory=Hazards)
    places: dict[Value, _Place] = field(default_factory=dict)

    def run(self) -> str:
        self.is_step = self.graph.name == "step"
        self.strips = strips(self.graph)
        self.weights = [a for a in self.graph.arguments if not self.is_step and self._is_weight(a)]
        self.graph.rename_values()
        for index, op in enumerate(self.graph.ops):
            self.lines.append(f"  /* {_comment(op)} */")
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
        extra = "".join(f", const float *{_identifier(a)}" for a in tensors)
        return [
            f"static __attribute__((noinline)) void {self.graph.name}(const llamac_thread *th, const step_args *s, "
            f"uint32_t layer, const uint64_t *w,\n    float *hidden{extra})\n{{"
        ]

    def _is_computed(self, argument: Value) -> bool:
        return isinstance(argument.type, TensorType) and argument.type.dtype.is_float

    # Where things are.

    def place(self, value: Value) -> _Place:
        if value not in self.places:
            self.places[value] = self._argument(value)
        return self.places[value]

    def _argument(self, value: Value) -> _Place:
        width = value.tensor.shape[-1]
        stride = width if isinstance(width, int) else 0
        if value in self.graph.arguments and not self.is_step:
            index = self.graph.arguments.index(value)
            if index == 0:
                return _Place("hidden", stride, Region("hidden"))
            if self._is_computed(value):
                return _Place(_identifier(value), stride, None)
        return _Place(f"s->{value.name}", stride, None)

    def output(self, op: Op, index: int = 0) -> _Place:
        """The place of a result, as `plan-memory` chose it."""
        value, offset = op.results[index], placement(op)[index]
        width = value.tensor.shape[-1]
        assert isinstance(width, int)
        if offset == EXTERNAL:
            place = _Place("s->logits", width, Region("logits"))
        elif offset < 0:
            place = _Place("hidden", width, Region("hidden"))
        else:
            place = self._in_arena(value, offset, width)
        self.places[value] = place
        return place

    def _in_arena(self, value: Value, offset: int, width: int) -> _Place:
        tokens = self.generator.limits.max_tokens
        ctype = {"i8": "int8_t", "i32": "int32_t"}.get(value.tensor.dtype.name, "float")
        whole = self.strips.get(value)
        if whole is None:
            pointer = self._name(value, ctype, f"s->arena + {offset}")
            return _Place(pointer, width, Region("arena", offset, value_bytes(value, tokens)))
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
        return _Place(pointer, stride, region)

    def _name(self, value: Value, ctype: str, address: str) -> str:
        """A C variable for the memory of a value, under the value's own number."""
        self.lines.append(f"  {ctype} *const v{value.name} = ({ctype} *)({address});")
        return f"v{value.name}"

    def rows(self, value: Value) -> str:
        dim = value.tensor.shape[0]
        return "s->logit_count" if isinstance(dim, Dim) and str(dim) == "R" else "s->tokens"

    def weight(self, value: Value) -> str:
        if isinstance(value, Weight):
            return f"s->weights + UINT64_C({self.generator.offset(value)})"
        return f"s->weights + w[{self.weights.index(value)}]"

    def call(self, text: str, reads: list[Value], writes: list[_Place], extra: tuple[Region, ...] = ()) -> None:
        """Emit one kernel call, with a barrier in front when it touches what an earlier one wrote or still reads."""
        read = [r for v in reads if (r := self.place(v).region) is not None]
        written = [p.region for p in writes if p.region is not None]
        if self.hazards.conflicts(read, [*written, *extra]):
            self.lines.append("  llamac_barrier(th);")
            self.hazards.clear()
        self.hazards.add(read, [*written, *extra])
        self.lines.append(f"  {text}")

    # One method an op.

    def emit_embed_rows(self, op: Op) -> None:
        fmt, out = format_of(str(op.attributes["format"])), self.output(op)
        name = "llamac_embedding_dense" if fmt.is_dense else "llamac_embedding_grouped"
        self.call(
            f"{name}(th, {out.pointer}, {out.stride}, s->token_ids, s->tokens, {self.weight(op.operands[1])}, "
            f"{op.attributes['rows']}, {op.attributes['columns']}, {c_format(fmt)});",
            [],
            [out],
        )

    def emit_rms_norm(self, op: Op) -> None:
        x, out, eps = self.place(op.operands[0]), self.output(op), op.attributes["eps"]
        assert isinstance(eps, float)
        self.call(
            f"llamac_rms_norm(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {self.rows(op.result)}, "
            f"{op.result.tensor.shape[-1]}, (const float *)({self.weight(op.operands[1])}), {c_float(eps)});",
            [op.operands[0]],
            [out],
        )

    def emit_quantize_rows(self, op: Op) -> None:
        x = self.place(op.operands[0])
        outs = [self.output(op, i) for i in range(3)]
        self.call(
            f"llamac_quantize_rows(th, {self._quantized(outs)}, {x.pointer}, {x.stride}, {self.rows(op.results[0])}, "
            f"{op.operands[0].tensor.shape[-1]}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

    def emit_rms_norm_quantized(self, op: Op) -> None:
        x, eps = self.place(op.operands[0]), op.attributes["eps"]
        outs = [self.output(op, i) for i in range(3)]
        assert isinstance(eps, float)
        self.call(
            f"llamac_rms_norm_quantize(th, {self._quantized(outs)}, {x.pointer}, {x.stride}, "
            f"{self.rows(op.results[0])}, {op.operands[0].tensor.shape[-1]}, "
            f"(const float *)({self.weight(op.operands[1])}), {c_float(eps)}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

    def emit_swiglu_quantized(self, op: Op) -> None:
        x = self.place(op.operands[0])
        outs = [self.output(op, i) for i in range(3)]
        self.call(
            f"llamac_swiglu_quantize(th, {self._quantized(outs)}, {x.pointer}, {x.stride}, "
            f"{self.rows(op.results[0])}, {x.stride // 2}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

    def _quantized(self, places: list[_Place]) -> str:
        return f"(llamac_quantized){{{', '.join(p.pointer for p in places)}}}"

    def _group(self, quants: Value) -> int:
        """The weight group that these activations were quantized for: it decides their padding and blocks."""
        (group, *others) = {format_of(str(u.attributes["format"])).group for u in quants.users}
        if others:
            raise LlamacError("LLC0605", "quantize_rows", "one quantized activation is used with two group sizes")
        return group

    def emit_linear_dense(self, op: Op) -> None:
        x, weight, *residual = op.operands
        self._linear(op, f"{self.place(x).pointer}, {self.place(x).stride}", [x], weight, residual)

    def emit_linear_grouped(self, op: Op) -> None:
        *x, weight = op.operands[:4]
        self._linear(op, self._quantized([self.place(v) for v in x]), list(x), weight, list(op.operands[4:]))

    def _linear(self, op: Op, x: str, reads: list[Value], weight: Value, residual: list[Value]) -> None:
        out = self.output(op)
        added = self.place(residual[0]).pointer if residual else "NULL"
        if residual and self.place(residual[0]).stride != out.stride:
            raise LlamacError("LLC0605", op.location, "the residual has another row stride than the result")
        self.call(
            f"{self.generator.linear(op)}(th, {out.pointer}, {out.stride}, {x}, {self.rows(op.result)}, "
            f"{self.weight(weight)}, {added});",
            [*reads, *residual],
            [out],
        )

    def emit_concat(self, op: Op) -> None:
        # The parts were written in place, as strips of this buffer.
        width = op.result.tensor.shape[-1]
        assert isinstance(width, int)
        offset = placement(op)[0]
        region = Region("arena", offset, value_bytes(op.result, self.generator.limits.max_tokens))
        pointer = self._name(op.result, "float", f"s->arena + {offset}")
        self.places[op.result] = _Place(pointer, width, region)

    def emit_rope_angles(self, op: Op) -> None:
        cos, sin = self.output(op, 0), self.output(op, 1)
        self.call(
            f"llamac_rope_angles(th, {cos.pointer}, {sin.pointer}, s->positions, s->tokens, "
            f"(const float *)({self.weight(op.operands[1])}), {cos.stride});",
            [],
            [cos, sin],
        )

    def emit_rope_append(self, op: Op) -> None:
        qkv, cos, sin = (self.place(v) for v in op.operands[1:4])
        cache, heads, layer = op.operands[0].cache, op.attributes["heads"], op.attributes["layer"]
        assert isinstance(heads, int)
        if placement(op)[1] != self._offset_of(op.operands[1]):
            raise LlamacError("LLC0605", op.location, "q must be rotated in place")
        h, q_width, k_width = cache.head_dim, heads * cache.head_dim, cache.kv_heads * cache.head_dim
        self.call(
            f"llamac_rope_rows(th, {qkv.pointer}, {qkv.stride}, s->tokens, {heads}, {h}, "
            f"{cos.pointer}, {sin.pointer});\n"
            f"  llamac_kv_append(th, cache_of(s), {layer}, {cache.kv_heads}, {h}, {_C_TYPES[cache.dtype.name]}, "
            f"{qkv.pointer} + {q_width}, {qkv.stride},\n      {qkv.pointer} + {q_width + k_width}, {qkv.stride}, "
            f"s->tokens, s->positions, s->sequence_of_token, {cos.pointer}, {sin.pointer});",
            list(op.operands[1:4]),
            [qkv],
            (Region("cache"),),
        )
        self.places[op.results[1]] = qkv

    def _offset_of(self, value: Value) -> int | None:
        producer = value.producer
        return placement(producer)[producer.results.index(value)] if producer is not None else None

    def emit_attend(self, op: Op) -> None:
        q, out, layer = self.place(op.operands[0]), self.output(op), op.attributes["layer"]
        if self.hazards.conflicts([Region("cache")], []):
            self.lines.append("  llamac_barrier(th);")
            self.hazards.clear()
        self.call(
            f"{self.generator.attention(op)}(th, s, {out.pointer}, {out.stride}, {q.pointer}, {q.stride}, {layer});",
            [op.operands[0]],
            [out],
        )
        self.hazards.add([Region("cache")], [])

    def emit_swiglu(self, op: Op) -> None:
        x, out = self.place(op.operands[0]), self.output(op)
        if len(op.operands) != 1:
            raise LlamacError("LLC0605", op.location, "gate and up must be joined before code is generated")
        self.call(
            f"llamac_swiglu(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {self.rows(op.result)}, "
            f"{op.result.tensor.shape[-1]});",
            [op.operands[0]],
            [out],
        )

    def emit_add(self, op: Op) -> None:
        a, b, out = self.place(op.operands[0]), self.place(op.operands[1]), self.output(op)
        self.call(
            f"llamac_add(th, {out.pointer}, {out.stride}, {a.pointer}, {a.stride}, {b.pointer}, {b.stride}, "
            f"{self.rows(op.result)}, {op.result.tensor.shape[-1]});",
            list(op.operands),
            [out],
        )

    def emit_select_rows(self, op: Op) -> None:
        x, out = self.place(op.operands[0]), self.output(op)
        self.call(
            f"llamac_gather_rows(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, s->logit_rows, "
            f"s->logit_count, {op.result.tensor.shape[-1]});",
            [op.operands[0]],
            [out],
        )

    def emit_call(self, op: Op) -> None:
        callee = self.generator.module.graphs[str(op.attributes["callee"])]
        weights = [v for v in op.operands if isinstance(v, Weight)]
        offsets = ", ".join(f"UINT64_C({self.generator.offset(w)})" for w in weights)
        hidden = self.place(op.operands[0])
        extra = "".join(
            f", {self.place(v).pointer}"
            for v, a in zip(op.operands[2:], callee.arguments[2:], strict=True)
            if not isinstance(v, Weight) and self._is_computed(a)
        )
        layer = op.attributes["layer"]
        self.lines += [
            "  llamac_barrier(th);",
            f"  {{ static const uint64_t w[] = {{{offsets}}};",
            f"    {callee.name}(th, s, {layer}, w, {hidden.pointer}{extra}); }}",
        ]
        self.places[op.results[0]] = hidden
        self.hazards = Hazards(everything=True)


def _identifier(value: Value) -> str:
    return "in_" + "".join(c if c.isalnum() else "_" for c in value.name)


def _comment(op: Op) -> str:
    text = print_op(op)
    text = text if len(text) < 200 else text[:197] + "..."
    return text.replace("*/", "* /")

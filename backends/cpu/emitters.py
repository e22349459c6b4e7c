"""The kernel calls of every op: one method an op, named after it."""

from __future__ import annotations

from llamac.analysis.memory import placement, value_bytes
from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Op, Value, Weight
from llamac.ir.layouts import format_of

from .frame import Place
from .hazards import Hazards, Region
from .head_emitters import HeadEmitters
from .literals import c_float, c_format
from .routing_emitters import RoutingEmitters
from .tile_emitters import TileEmitters


class FunctionEmitter(TileEmitters, RoutingEmitters, HeadEmitters):
    """A C function, op by op."""

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
            f"llamac_quantize_rows(th, {self.quantized(outs)}, {x.pointer}, {x.stride}, {self.rows(op.results[0])}, "
            f"{op.operands[0].tensor.shape[-1]}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

    def emit_rms_norm_quantized(self, op: Op) -> None:
        x, eps = self.place(op.operands[0]), op.attributes["eps"]
        outs = [self.output(op, i) for i in range(3)]
        assert isinstance(eps, float)
        self.call(
            f"llamac_rms_norm_quantize(th, {self.quantized(outs)}, {x.pointer}, {x.stride}, "
            f"{self.rows(op.results[0])}, {op.operands[0].tensor.shape[-1]}, "
            f"(const float *)({self.weight(op.operands[1])}), {c_float(eps)}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

    def emit_swiglu_quantized(self, op: Op) -> None:
        x = self.place(op.operands[0])
        outs = [self.output(op, i) for i in range(3)]
        self.call(
            f"llamac_swiglu_quantize(th, {self.quantized(outs)}, {x.pointer}, {x.stride}, "
            f"{self.rows(op.results[0])}, {x.stride // 2}, {self._group(op.results[0])});",
            [op.operands[0]],
            outs,
        )

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
        self._linear(op, self.quantized([self.place(v) for v in x]), list(x), weight, list(op.operands[4:]))

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

    def emit_gated_linear_dense(self, op: Op) -> None:
        x, out = self.place(op.operands[0]), self.output(op)
        self.call(
            f"{self.generator.gated_linear(op)}(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, "
            f"{self.rows(op.result)}, {self.weight(op.operands[1])});",
            [op.operands[0]],
            [out],
        )

    def emit_gated_linear_grouped(self, op: Op) -> None:
        *x, weight = op.operands
        outs = [self.output(op, i) for i in range(3)]
        self.call(
            f"{self.generator.gated_linear(op, self._group(op.results[0]))}(th, {self.quantized(outs)}, "
            f"{self.quantized([self.place(v) for v in x])}, {self.rows(op.results[0])}, {self.weight(weight)});",
            list(x),
            outs,
        )

    def emit_concat(self, op: Op) -> None:
        # The parts were written in place, as strips of this buffer.
        width = op.result.tensor.shape[-1]
        assert isinstance(width, int)
        offset = placement(op)[0]
        region = Region("arena", offset, value_bytes(op.result, self.generator.limits.max_tokens))
        pointer = self._name(op.result, "float", f"s->arena + {offset}")
        self.places[op.result] = Place(pointer, width, region)

    def emit_rope_angles(self, op: Op) -> None:
        cos, sin = self.output(op, 0), self.output(op, 1)
        self.call(
            f"llamac_rope_angles(th, {cos.pointer}, {sin.pointer}, s->positions, s->tokens, "
            f"(const float *)({self.weight(op.operands[1])}), {cos.stride});",
            [],
            [cos, sin],
        )

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

    def emit_all_reduce(self, op: Op) -> None:
        x, *residual = (self.place(v) for v in op.operands)
        out, width = self.output(op), op.result.tensor.shape[-1]
        if {p.stride for p in (x, *residual, out)} != {width}:
            raise LlamacError("LLC0605", op.location, "rows that ranks add must lie one behind the other")
        added = residual[0].pointer if residual else "NULL"
        self.call(
            f"llamac_meet(th, s->group, 0, {x.pointer}, {added}, {out.pointer}, {self.rows(op.result)}, {width});",
            list(op.operands),
            [out],
        )

    def emit_all_gather(self, op: Op) -> None:
        x, out = op.operands[0], self.output(op)
        if not self.place(x).pointer.startswith(out.pointer):
            raise LlamacError("LLC0605", op.location, "ranks join columns of the logits only")
        rows, width = self.rows(op.result), x.tensor.shape[-1]
        text = f"llamac_meet(th, s->group, 1, {out.pointer}, NULL, {out.pointer}, {rows}, {width});"
        self.call(text, [x], [out])

    def emit_gated_add(self, op: Op) -> None:
        x, residual, out = self.place(op.operands[0]), self.place(op.operands[1]), self.output(op)
        ranges = "1, s->vision_start, s->vision_stop" if len(op.operands) > 3 else "0, NULL, NULL"
        self.call(
            f"llamac_gated_add(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {residual.pointer}, "
            f"{residual.stride}, {self.rows(op.result)}, {op.result.tensor.shape[-1]}, "
            f"(const float *)({self.weight(op.operands[2])}), {ranges});",
            list(op.operands[:2]),
            [out],
        )

    def emit_merge_rows(self, op: Op) -> None:
        x, image_rows = op.operands[0], op.operands[2]
        if x.producer is None or x.producer.opcode != "embed_rows" or image_rows.name != "image_rows":
            raise LlamacError("LLC0605", op.location, "pictures come in where tokens are embedded, and nowhere else")
        place = self.in_place(op, x, op.result)
        # No barrier: every thread writes over what it has itself embedded.
        self.lines.append(
            f"  llamac_merge_rows(th, {place.pointer}, {place.stride}, s->tokens, {op.result.tensor.shape[-1]}, "
            "s->image_rows, s->image_embeddings);"
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
        callee = self.module.graphs[str(op.attributes["callee"])]
        weights = [v for v in op.operands if isinstance(v, Weight)]
        offsets = ", ".join(f"UINT64_C({self.generator.offset(w)})" for w in weights)
        hidden = self.place(op.operands[0])
        carried = len(callee.outputs)
        extra = "".join(
            f", {self.place(v).pointer}"
            for v, a in zip(op.operands[carried:], callee.arguments[carried:], strict=True)
            if not isinstance(v, Weight) and self._is_computed(a)
        )
        layer = op.attributes["layer"]
        seen = "if (s->vision_start) " if only_adds_what_is_seen(callee) and not self.generator.trace else ""
        self.lines += [
            "  llamac_op_barrier(th, s->profile);",
            f"  {seen}{{ static const uint64_t w[] = {{{offsets}}};",
            f"    {callee.name}(th, s, {layer}, w, {hidden.pointer}{extra}); }}",
        ]
        self.places[op.results[0]] = hidden
        self.hazards = Hazards(everything=True)


def only_adds_what_is_seen(graph: Graph) -> bool:
    """Whether an outlined layer leaves every row that sees no vision token as it is: without any it need not run."""
    value: Value = graph.outputs[0]
    while value.producer is not None and value.producer.opcode == "gated_add" and len(value.producer.operands) > 3:
        value = value.producer.operands[1]
    return len(graph.outputs) == 1 and value is graph.arguments[0]

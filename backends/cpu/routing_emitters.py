"""The kernel calls of mixtures of experts."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.graph import Op, Value
from llamac.ir.layouts import format_of

from .frame import Frame


class RoutingEmitters(Frame):
    """Routing, the movement of rows to their experts and back, and the products in between."""

    def emit_route(self, op: Op) -> None:
        logits, outs = self.place(op.operands[0]), [self.output(op, i) for i in range(4)]
        experts = op.operands[0].tensor.shape[1]
        cache = op.attributes["cache"]
        assert isinstance(cache, int)
        before = sum(c.layers for c in self.generator.caches[:cache])
        counted = f"s->expert_counts + (size_t)({before} + {op.attributes['layer']}) * EXPERTS"
        self.call(
            f"llamac_route(th, {', '.join(p.pointer for p in outs)}, {counted}, {logits.pointer}, "
            f"{logits.stride}, {self.rows(op.operands[0])}, {experts}, {op.attributes['top_k']});",
            [op.operands[0]],
            outs,
        )

    def emit_gather_routed(self, op: Op) -> None:
        x, order, scores = map(self.place, op.operands)
        out = self.output(op)
        self.call(
            f"llamac_gather_routed(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {order.pointer}, "
            f"{scores.pointer}, {self.rows(op.result)}, {op.result.tensor.shape[1]}, {op.attributes['top_k']});",
            list(op.operands),
            [out],
        )

    def emit_scatter_routed(self, op: Op) -> None:
        routed, place, base = map(self.place, op.operands)
        out = self.output(op)
        self.call(
            f"llamac_scatter_routed(th, {out.pointer}, {out.stride}, {routed.pointer}, {routed.stride}, "
            f"{place.pointer}, {base.pointer}, {base.stride}, {self.rows(op.result)}, {op.result.tensor.shape[1]}, "
            f"{op.attributes['top_k']});",
            list(op.operands),
            [out],
        )

    def emit_expert_linear_dense(self, op: Op) -> None:
        x, weight, offsets = op.operands
        self._experts(op, f"{self.place(x).pointer}, {self.place(x).stride}", [x, offsets], weight, offsets)

    def emit_expert_linear_grouped(self, op: Op) -> None:
        *x, weight, offsets = op.operands
        self._experts(op, self.quantized([self.place(v) for v in x]), [*x, offsets], weight, offsets)

    def _experts(self, op: Op, x: str, reads: list[Value], weight: Value, offsets: Value) -> None:
        out = self.output(op)
        if not format_of(str(op.attributes["format"])).is_dense and len(reads) != 4:
            raise LlamacError("LLC0605", op.location, "grouped experts need quantized rows")
        self.call(
            f"{self.generator.expert_linear(op)}(th, {out.pointer}, {out.stride}, {x}, "
            f"{self.place(offsets).pointer}, {self.weight(weight)});",
            reads,
            [out],
        )

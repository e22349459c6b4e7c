"""The kernel calls of the head that ranks the logits while it computes them."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.graph import Op, Value
from llamac.ir.layouts import format_of

from .frame import Frame, Place
from .hazards import Region
from .literals import c_format

LONGEST_LIST = 64
"""LLAMAC_MOST_TOP of the kernel library."""

_RESULTS = ("logits", "best.ids", "best.values", "best.sums")


class HeadEmitters(Frame):
    """Logits, the best of them and their sum, for the caller of `llamac_step_top`."""

    def emit_head_dense(self, op: Op) -> None:
        x, weight, _ = op.operands
        place = self.place(x)
        self._ranking_head(op, f"(llamac_head_input){{.rows = {place.pointer}, .ld = {place.stride}}}", [x], weight)

    def emit_head_grouped(self, op: Op) -> None:
        *x, weight, _ = op.operands
        quantized = self.quantized([self.place(value) for value in x])
        self._ranking_head(op, f"(llamac_head_input){{.quantized = {quantized}}}", x, weight)

    def _ranking_head(self, op: Op, x: str, reads: list[Value], weight: Value) -> None:
        count, rows = op.attributes["count"], self.rows(op.results[0])
        assert isinstance(count, int)
        if count > LONGEST_LIST:
            raise LlamacError("LLC0605", op.location, f"the kernels rank {LONGEST_LIST} logits of a row, not {count}")
        places = []
        for value, name in zip(op.results, _RESULTS, strict=True):
            width = value.tensor.shape[-1] if value.tensor.rank > 1 else 1
            assert isinstance(width, int)
            places.append(Place(f"s->{name}", width, Region(name)))
            self.places[value] = places[-1]
        self.call(f"{self._ranking_kernel(op)}(th, s, {x}, {rows}, {self.weight(weight)});", reads, places)

    def _ranking_kernel(self, op: Op) -> str:
        """The name of the function for the shape and format of the head."""
        fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
        name = f"head_{fmt.name}_{rows}x{columns}"
        form = f"1, {c_format(fmt)}, (llamac_grouped){{0}}" if fmt.is_dense else f"0, LLAMAC_F32, {c_format(fmt)}"
        self.generator.kernels[name] = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, const step_args *s, "
            f"llamac_head_input x,\n    uint32_t rows, const uint8_t *w)\n{{\n"
            f"  llamac_head(th, s->logits, s->best, s->head, x, rows, w, {rows}, {columns}, {form});\n}}\n"
        )
        return name

"""The kernel calls of attention: what is done to joined q, k and v rows, and reading the cache."""

from __future__ import annotations

from llamac.analysis.memory import placement
from llamac.errors import LlamacError
from llamac.ir.graph import Op, Value
from llamac.ir.types import CacheType

from .frame import Frame, Place
from .hazards import Region
from .literals import C_TYPES, c_float


class AttentionEmitters(Frame):
    """Norm, temperature and rotation of heads in place, the cache's new rows, and attention over it."""

    def emit_norm_heads(self, op: Op) -> None:
        qkv, eps = self.in_place(op, op.operands[0], op.results[0]), op.attributes["eps"]
        assert isinstance(eps, float)
        weight = f"(const float *)({self.weight(op.operands[1])})" if len(op.operands) > 1 else "NULL"
        self.call(
            f"llamac_norm_heads(th, {qkv.pointer}, {qkv.stride}, {self.rows(op.result)}, {op.attributes['heads']}, "
            f"{op.attributes['head_dim']}, {weight}, {c_float(eps)});",
            [op.operands[0]],
            [qkv],
        )

    def emit_temper_heads(self, op: Op) -> None:
        qkv = self.in_place(op, op.operands[0], op.results[0])
        floor, scale = op.attributes["floor"], op.attributes["scale"]
        assert isinstance(floor, float) and isinstance(scale, float)
        self.call(
            f"llamac_temper_heads(th, {qkv.pointer}, {qkv.stride}, s->positions, s->tokens, {op.attributes['heads']}, "
            f"{op.attributes['head_dim']}, {c_float(floor)}, {c_float(scale)});",
            [op.operands[0]],
            [qkv],
        )

    def emit_rope_append(self, op: Op) -> None:
        qkv, cos, sin = self.in_place(op, op.operands[1], op.results[1]), *map(self.place, op.operands[2:4])
        cache, heads = op.operands[0].cache, op.attributes["heads"]
        rotate = (
            f"llamac_rope_rows(th, {qkv.pointer}, {qkv.stride}, s->tokens, {heads}, {cache.head_dim}, "
            f"{cos.pointer}, {sin.pointer});\n  "
        )
        append = self._append(op, qkv, f"{cos.pointer}, {sin.pointer}")
        self.call(rotate + append, list(op.operands[1:4]), [qkv], (self._region(cache),))

    def emit_append(self, op: Op) -> None:
        qkv = self.in_place(op, op.operands[1], op.results[1])
        append = self._append(op, qkv, "NULL, NULL")
        self.call(append, [op.operands[1]], [], (self._region(op.operands[0].cache),))

    def _append(self, op: Op, qkv: Place, tables: str) -> str:
        cache, heads, layer = op.operands[0].cache, op.attributes["heads"], op.attributes["layer"]
        assert isinstance(heads, int)
        h, q_width, k_width = cache.head_dim, heads * cache.head_dim, cache.kv_heads * cache.head_dim
        return (
            f"llamac_kv_append(th, cache_of(s, {self.generator.group(cache)}), {layer}, {cache.kv_heads}, {h}, "
            f"{C_TYPES[cache.dtype.name]}, {qkv.pointer} + {q_width}, {qkv.stride},\n"
            f"      {qkv.pointer} + {q_width + k_width}, {qkv.stride}, s->tokens, s->positions, "
            f"s->sequence_of_token, {tables});"
        )

    def emit_qkv_dense(self, op: Op) -> None:
        x = op.operands[1]
        self._qkv(op, f"{self.place(x).pointer}, {self.place(x).stride}", [x], list(op.operands[2:]))

    def emit_qkv_grouped(self, op: Op) -> None:
        x = list(op.operands[1:4])
        self._qkv(op, self.quantized([self.place(v) for v in x]), x, list(op.operands[4:]))

    def _qkv(self, op: Op, x: str, reads: list[Value], rest: list[Value]) -> None:
        weight, angles, out = rest[0], rest[4:], self.output(op, 1)
        tables = ", ".join(self.place(v).pointer for v in angles) or "NULL, NULL"
        self.call(
            f"{self.generator.qkv(op)}(th, s, {out.pointer}, {out.stride}, {x}, {self.weight(weight)}, {tables}, "
            f"{op.attributes['layer']});",
            [*reads, *angles],
            [out],
            (self._region(op.operands[0].cache),),
        )

    def in_place(self, op: Op, value: Value, result: Value) -> Place:
        """The place of joined rows, which `result` keeps."""
        place, offset = self.place(value), placement(op)[op.results.index(result)]
        if offset != self._offset_of(value):
            raise LlamacError("LLC0605", op.location, f"{op.opcode} must work in place")
        self.places[result] = place
        return place

    def _offset_of(self, value: Value) -> int | None:
        producer = value.producer
        return placement(producer)[producer.results.index(value)] if producer is not None else None

    def _region(self, cache: CacheType) -> Region:
        return Region(f"cache {self.generator.group(cache)}")

    def emit_attend(self, op: Op) -> None:
        q, out, layer = self.place(op.operands[0]), self.output(op), op.attributes["layer"]
        region = self._region(op.operands[1].cache)
        if self.hazards.conflicts([region], []):
            self.barrier()
        self.call(
            f"{self.generator.attention(op)}(th, s, {out.pointer}, {out.stride}, {q.pointer}, {q.stride}, {layer});",
            [op.operands[0]],
            [out],
        )
        self.hazards.add([region], [])

    def emit_attend_range(self, op: Op) -> None:
        q, out, layer = self.place(op.operands[0]), self.output(op), op.attributes["layer"]
        self.call(
            f"{self.generator.attention_range(op)}(th, s, {out.pointer}, {out.stride}, {q.pointer}, {q.stride}, "
            f"{layer});",
            [op.operands[0]],
            [out],
        )

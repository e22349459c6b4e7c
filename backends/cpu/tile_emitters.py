"""The kernel calls of pictures that are several tiles: places, padding, and the cache of vision tokens."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.graph import Op

from .encoder_emitters import EncoderEmitters
from .hazards import Region
from .literals import C_TYPES


class TileEmitters(EncoderEmitters):
    """What tiles add, where padding is, and where vision tokens go."""

    def emit_lookup_row(self, op: Op) -> None:
        out, index = self.output(op), self.place(op.operands[1])
        self.call(
            f"llamac_lookup_row(th, {out.pointer}, (const int32_t *)({self.weight(op.operands[0])}), {index.pointer}, "
            f"{op.result.tensor.shape[0]});",
            [],
            [out],
        )

    def emit_tile_rows(self, op: Op) -> None:
        out, shape = self.output(op), self.place(op.operands[0])
        self.call(f"llamac_tile_rows(th, {out.pointer}, {shape.pointer}, {op.attributes['tiles']});", [], [out])

    def emit_add_places(self, op: Op) -> None:
        x, gate, out = self.place(op.operands[0]), self.place(op.operands[2]), self.output(op)
        table, index = op.operands[1], op.operands[3:]
        tiles, rows = op.attributes["tiles"], op.result.tensor.shape[0]
        assert isinstance(tiles, int) and isinstance(rows, int)
        self.call(
            f"llamac_add_places(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {tiles}, {rows // tiles}, "
            f"{op.result.tensor.shape[1]},\n      {self.weight(table)}, {C_TYPES[table.tensor.dtype.name]}, "
            f"{op.attributes['each']}, {gate.pointer}, {int(bool(op.attributes['complement']))}, "
            f"{self._optional(index)});",
            [op.operands[0], *index],
            [out],
        )

    def emit_pad_tiles(self, op: Op) -> None:
        x, out = self.place(op.operands[0]), self.output(op)
        tiles, rows = op.attributes["tiles"], op.operands[0].tensor.shape[0]
        assert isinstance(tiles, int) and isinstance(rows, int)
        self.call(
            f"llamac_pad_tiles(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {tiles}, {rows // tiles}, "
            f"{op.attributes['padded']}, {op.result.tensor.shape[1]});",
            [op.operands[0]],
            [out],
        )

    def emit_order_tokens(self, op: Op) -> None:
        order, real, slots = self.output(op, 0), self.output(op, 1), self.place(op.operands[0])
        self.call(
            f"llamac_order_tokens(th, {order.pointer}, {real.pointer}, {slots.pointer}, "
            f"{op.operands[0].tensor.shape[0]}, {op.attributes['tokens']}, {op.attributes['padded']});",
            [op.operands[0]],
            [order, real],
        )

    def emit_take_rows(self, op: Op) -> None:
        # The first rows lie where they are.
        self.in_place(op, op.operands[0], op.result)

    def emit_append_tokens(self, op: Op) -> None:
        kv, cache = self.place(op.operands[1]), op.operands[0].cache
        if op.operands[2] is not self.graph.argument("positions"):
            raise LlamacError("LLC0605", op.location, "the positions are not those of the picture")
        width = cache.kv_heads * cache.head_dim
        self.call(
            f"llamac_kv_append(th, s->cross, {op.attributes['layer']}, {cache.kv_heads}, {cache.head_dim}, "
            f"{C_TYPES[cache.dtype.name]}, {kv.pointer}, {kv.stride},\n      {kv.pointer} + {width}, {kv.stride}, "
            f"{self.rows(op.operands[1])}, s->positions, NULL, NULL, NULL);",
            [op.operands[1]],
            [],
            (Region("cache cross"),),
        )

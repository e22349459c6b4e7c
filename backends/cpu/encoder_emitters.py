"""The kernel calls of image encoders."""

from __future__ import annotations

import math

from llamac.errors import LlamacError
from llamac.ir.graph import Op, Value
from llamac.ir.layouts import format_of

from .attention_emitters import AttentionEmitters
from .frame import Place
from .literals import c_float, c_format

MOST_AXES = 8
"""LLAMAC_MOST_AXES of the kernel library."""


class EncoderEmitters(AttentionEmitters):
    """Norms, activations, copies and attention of tokens that all see one another."""

    def emit_layer_norm(self, op: Op) -> None:
        x, weight, bias = map(self.place, op.operands)
        out, eps = self.output(op), op.attributes["eps"]
        assert isinstance(eps, float)
        self.call(
            f"llamac_layer_norm(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {self.rows(op.result)}, "
            f"{op.result.tensor.shape[-1]}, {weight.pointer}, {bias.pointer}, {c_float(eps)});",
            [op.operands[0]],
            [out],
        )

    def emit_gelu(self, op: Op) -> None:
        x, out = self.place(op.operands[0]), self.output(op)
        self.call(
            f"llamac_gelu(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {self.rows(op.result)}, "
            f"{op.result.tensor.shape[-1]});",
            [op.operands[0]],
            [out],
        )

    def emit_linear_biased(self, op: Op) -> None:
        x, weight, bias, *residual = op.operands
        from_x, row, out = self.place(x), self.place(bias), self.output(op)
        added = self.place(residual[0]) if residual else None
        if added is not None and added.stride != out.stride:
            raise LlamacError("LLC0605", op.location, "the residual has another row stride than the result")
        self.call(
            f"{self.generator.linear_biased(op)}(th, {out.pointer}, {out.stride}, {from_x.pointer}, {from_x.stride}, "
            f"{self.rows(op.result)}, {self.weight(weight)}, {row.pointer}, {added.pointer if added else 'NULL'});",
            [x, *residual],
            [out],
        )

    def emit_cos_sin(self, op: Op) -> None:
        cos, sin, angles = self.output(op, 0), self.output(op, 1), self.place(op.operands[0])
        count = math.prod(d for d in op.results[0].tensor.shape if isinstance(d, int))
        self.call(f"llamac_cos_sin(th, {cos.pointer}, {sin.pointer}, {angles.pointer}, {count});", [], [cos, sin])

    def emit_rope_pairs(self, op: Op) -> None:
        qkv, cos, sin = self.in_place(op, op.operands[0], op.results[0]), *map(self.place, op.operands[1:])
        heads, width = op.attributes["heads"], op.attributes["head_dim"]
        assert isinstance(heads, int)
        self.call(
            f"llamac_rope_pairs(th, {qkv.pointer}, {qkv.stride}, {self.rows(op.result)}, {2 * heads}, {width}, "
            f"{cos.pointer}, {sin.pointer});",
            list(op.operands),
            [qkv],
        )

    def emit_token_pages(self, op: Op) -> None:
        qkv, out = self.place(op.operands[0]), self.output(op)
        order = self._optional(op.operands[1:2])
        self.call(
            f"llamac_token_pages(th, {out.pointer}, {qkv.pointer}, {qkv.stride}, {self.rows(op.operands[0])}, "
            f"{op.attributes['heads']}, {op.attributes['head_dim']}, {order});",
            list(op.operands),
            [out],
        )

    def emit_attend_tokens(self, op: Op) -> None:
        qkv, pages, out = self.place(op.operands[0]), self.place(op.operands[1]), self.output(op)
        order, real = self._optional(op.operands[2:3]), self._optional(op.operands[3:4])
        self.call(
            f"{self.generator.attend_tokens(op)}(th, {out.pointer}, {out.stride}, {qkv.pointer}, {qkv.stride}, "
            f"{pages.pointer}, {order}, {real});",
            list(op.operands),
            [out],
        )

    def _optional(self, operands: tuple[Value, ...]) -> str:
        return self.place(operands[0]).pointer if operands else "NULL"

    def emit_add_class_token(self, op: Op) -> None:
        x, token, out = self.place(op.operands[0]), self.place(op.operands[1]), self.output(op)
        tiles, rows = op.attributes["tiles"], op.operands[0].tensor.shape[0]
        assert isinstance(tiles, int) and isinstance(rows, int)
        self.call(
            f"llamac_class_token(th, {out.pointer}, {out.stride}, {x.pointer}, {x.stride}, {token.pointer}, {tiles}, "
            f"{rows // tiles}, {op.result.tensor.shape[1]}, {int(op.attributes['place'] == 'first')});",
            [op.operands[0]],
            [out],
        )

    def emit_rearrange(self, op: Op) -> None:
        x, out, columns = self.place(op.operands[0]), self.output(op), op.attributes["columns"]
        self._check_dense(op, x)
        assert isinstance(columns, int)
        view = self._view(op, columns)
        self.call(
            f"llamac_rearrange(th, {out.pointer}, {out.stride}, {columns}, {x.pointer} + {op.attributes['offset']}, "
            f"{view});",
            [op.operands[0]],
            [out],
        )

    def _check_dense(self, op: Op, x: Place) -> None:
        """The view counts elements as if no row had another behind it in memory."""
        if x.stride != op.operands[0].tensor.shape[-1]:
            raise LlamacError("LLC0605", op.location, "what is rearranged is a strip of another value")

    def _view(self, op: Op, columns: int) -> str:
        """The view as a C literal, its last axis cut so that rows of the result hold whole runs along it."""
        lengths, strides = ([int(str(v)) for v in _items(op, name)] for name in ("shape", "strides"))
        run = math.gcd(lengths[-1], columns)
        if run != lengths[-1]:
            lengths[-1:] = [lengths[-1] // run, run]
            strides[-1:] = [strides[-1] * run, strides[-1]]
        if len(lengths) > MOST_AXES:
            raise LlamacError("LLC0605", op.location, f"a view of {len(lengths)} axes, the kernel has {MOST_AXES}")
        return (
            f"(llamac_view){{{len(lengths)}, {{{', '.join(map(str, lengths))}}}, {{{', '.join(map(str, strides))}}}}}"
        )


def _items(op: Op, name: str) -> tuple[object, ...]:
    found = op.attributes[name]
    assert isinstance(found, tuple)
    return found


def biased_function(op: Op, name: str) -> str:
    """The function `name` for the shape and format of a linear with a bias."""
    fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
    return (
        f"static __attribute__((noinline)) void {name}(const llamac_thread *th, float *y, size_t ldy, const float *x, "
        f"size_t ldx,\n    uint32_t rows, const uint8_t *w, const float *bias, const float *residual)\n{{\n"
        f"  llamac_linear_biased(th, y, ldy, x, ldx, rows, w, {rows}, {columns}, {c_format(fmt)}, bias,\n"
        "      residual);\n}\n"
    )


def attention_function(op: Op, name: str) -> str:
    """The function `name` for the heads and scale of attention to all tokens."""
    scale = op.attributes["scale"]
    assert isinstance(scale, float)
    return (
        f"static __attribute__((noinline)) void {name}(const llamac_thread *th, float *out, size_t ld_out,\n"
        "    const float *qkv, size_t ld, float *pages, const int32_t *order, const int32_t *real)\n{\n"
        f"  llamac_attend_tokens(th, out, ld_out, qkv, ld, pages, {op.result.tensor.shape[0]}, "
        f"{op.attributes['heads']}, {op.attributes['head_dim']},\n      {c_float(scale)}, order, real);\n}}\n"
    )

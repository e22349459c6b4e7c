"""Makes an image encoder, over weights in rows, out of kernels that a GPU has.

Before: `add(linear_rows16 %x, @w; @bias)`, then perhaps `gelu`, or `add` of a residual; `layer_norm`;
        `attend_tokens %y, token_pages(%y)`, %y perhaps `rope_pairs`, padding last in `order_tokens %slots`
After:  `linear_image_rows16 %x, @w, @bias {gelu, dtype, operands = "x weight bias"}`, `layer_norm_rows {dtype}`,
        `attend_image_rows %y, %slots {dtype}` of `rope_image_rows`

Keys and values need no pages: the attention reads them where the projection left them, and tells padding by its place.
What only products and the attention read is made in the type that they multiply. Must not fire on a text model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.errors import LlamacError
from llamac.ir.dtypes import F32, DType
from llamac.ir.graph import Attribute, Module, Op, Value, Weight
from llamac.ir.layouts import format_of
from llamac.ir.levels import LOWERING
from llamac.ir.row_layouts import between_type
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter

from .take_one_tile import GRAPH


@dataclass(frozen=True)
class LowerImageRows(Pass):
    """Products, norms and attention of an encoder -> its kernels over rows."""

    name = "lower-image-rows"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts = {"product": 0, "norm": 0, "attention": 0}
        if GRAPH not in module.graphs:
            return PassResult(counts)
        lowering = _Lowering(Rewriter(module, module.graphs[GRAPH]))
        # From the end on: what a result is read by says in which type it is made.
        for op in reversed(list(lowering.rewriter.graph.ops)):
            if op.opcode == "linear_rows16":
                lowering.product(op)
                counts["product"] += 1
            elif op.opcode == "layer_norm":
                lowering.norm(op)
                counts["norm"] += 1
            elif op.opcode == "attend_tokens":
                lowering.attention(op)
                counts["attention"] += 1
        lowering.rewriter.finish()
        return PassResult(counts)


@dataclass
class _Lowering:
    """The rewriting of one graph; `gone` are ops that have been replaced and still name their operands."""

    rewriter: Rewriter
    gone: set[Op] = field(default_factory=set)

    def norm(self, op: Op) -> None:
        self.rewriter.at(op)
        kind = self.read_as(op.result)
        made = self.rewriter.op("layer_norm_rows", *op.operands, **op.attributes, dtype=kind)
        self.replace(op.result, made, op)

    def product(self, linear: Op) -> None:
        """The product with its bias, and with the gelu or the addition behind it."""
        chain, operands, names = [linear], list(linear.operands), "x weight"
        add = self.only_user(linear.result, "add")
        if add is not None and isinstance(add.operands[1], Weight) and add.operands[1].tensor.rank == 1:
            operands.append(add.operands[1])
            names += " bias"
            chain.append(add)
        last = chain[-1].result
        gelu, residual = self.only_user(last, "gelu"), self.only_user(last, "add")
        if gelu is not None:
            chain.append(gelu)
        elif residual is not None and all(v.type == last.type and not isinstance(v, Weight) for v in residual.operands):
            operands.append(residual.operands[residual.operands[0] is last])
            names += " residual"
            chain.append(residual)
        self.rewriter.at(chain[-1])
        shape: dict[str, Attribute] = {name: linear.attributes[name] for name in ("format", "rows", "columns")}
        kind = F32 if names.endswith("residual") else self.read_as(chain[-1].result)
        made = self.rewriter.op(
            "linear_image_rows16", *operands, **shape, operands=names, gelu=gelu is not None, dtype=kind
        )
        self.replace(chain[-1].result, made, *chain)

    def attention(self, op: Op) -> None:
        """Attention over rows, without the pages of keys and values."""
        qkv, pages, *order = op.operands
        if pages.producer is None or pages.producer.opcode != "token_pages" or pages.producer.operands[0] is not qkv:
            raise LlamacError("LLC0505", op.location, "k and v are not the pages of the rows that q is in")
        heads: dict[str, Attribute] = {name: op.attributes[name] for name in ("heads", "head_dim")}
        attributes: dict[str, Attribute] = {"scale": op.attributes["scale"]}
        slots, replaced, kind, rope = [], [op, pages.producer], self.read_as(op.result), qkv.producer
        if order:
            ordered = order[0].producer
            if ordered is None or ordered.opcode != "order_tokens":
                raise LlamacError("LLC0505", op.location, "the order is not that of padding behind tokens")
            slots = list(ordered.operands)
            attributes |= {name: ordered.attributes[name] for name in ("tokens", "padded")}
        self.rewriter.at(op)
        if rope is not None and rope.opcode == "rope_pairs":
            qkv = self.rewriter.op("rope_image_rows", *rope.operands, **heads, dtype=kind)
            replaced.append(rope)
        made = self.rewriter.op("attend_image_rows", qkv, *slots, **heads, **attributes, dtype=kind)
        self.replace(op.result, made, *replaced)

    def replace(self, old: Value, new: Value, *replaced: Op) -> None:
        """Use `new` for `old`; the ops that made it are gone."""
        self.rewriter.replace(old, new)
        self.gone.update(replaced)

    def users(self, value: Value) -> list[Op]:
        """The ops that read a value and stay."""
        return [user for user in value.users if user not in self.gone]

    def only_user(self, value: Value, opcode: str) -> Op | None:
        """The op of this kind that alone reads `value`."""
        users = self.users(value)
        if len(users) != 1 or value in self.rewriter.graph.outputs or users[0].operands.count(value) != 1:
            return None
        return users[0] if users[0].opcode == opcode else None

    def read_as(self, value: Value) -> DType:
        """The type that a value is made in: that of products, where only products and attention read it."""
        formats = {self._format(user, value) for user in self.users(value)}
        if len(formats) != 1 or None in formats or value in self.rewriter.graph.outputs:
            return F32
        return between_type(format_of(str(formats.pop())))

    def _format(self, user: Op, value: Value) -> str | None:
        """The format of a product that multiplies `value`; for attention, of the product that follows it."""
        if user.opcode == "linear_image_rows16" and user.operands[0] is value and user.operands.count(value) == 1:
            return str(user.attributes["format"])
        if user.opcode == "attend_image_rows":
            found = {self._format(product, user.result) for product in self.users(user.result)}
            return found.pop() if len(found) == 1 else None
        return None

"""Minima of integers beside a product or a lookup: llamac's own exports keep them apart, exactly.

    x W + sums(x) M        W: integers around their middle, M: minima + middle * scales, sums: of x over the groups
    (q[ids] - middle) * scales[ids] + M[ids]

Both are one matrix of integers, scales and minima. The steps are followed as what they are for, and refused otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from .call import Call, Found, GroupSums, LastToken, Minima, MinimaProduct, Product
from .known import Literal, Ramp, the_number
from .packed import Packed, is_float
from .stored import Stored


def group_sums(call: Call) -> GroupSums | None:
    """The sum over a last axis that a reshape has split off; None for another sum."""
    found = call.raw(0)
    if isinstance(found, Literal | Ramp):
        return None
    if isinstance(found, LastToken):
        return _sums_of_last(call, found)
    x = call.value(found)
    if x.producer is None or x.producer.opcode != "reshape" or call.axes(1, x.tensor.rank) != [x.tensor.rank - 1]:
        return None
    whole, group = x.producer.operands[0], x.tensor.shape[-1]
    columns = whole.tensor.shape[-1]
    if not isinstance(group, int) or not isinstance(columns, int) or call.attribute("keepdims", 1):
        return None
    split = (*whole.tensor.shape[:-1], columns // group, group)
    return GroupSums(whole, group) if x.tensor.shape == split else None


def _sums_of_last(call: Call, found: LastToken) -> GroupSums | None:
    axes, tokens = call.axes(1, len(found.shape)), found.tokens
    if axes != [len(found.shape) - 1] or call.attribute("keepdims", 1) or isinstance(tokens, Product):
        return None
    group, columns = found.shape[-1], tokens.tensor.shape[-1]
    if not isinstance(group, int) or not isinstance(columns, int) or found.shape[-2:-1] != (columns // group,):
        return None
    return GroupSums(tokens, group)


def product_with_minima(call: Call, sums: GroupSums, found: Found) -> MinimaProduct:
    """Sums times minima [groups, outputs]."""
    if not isinstance(found, Minima | Stored) or (isinstance(found, Stored) and len(found.shape) != 2):
        raise call.unsupported("sums over groups are multiplied with what holds no minima")
    return MinimaProduct(sums, found)


def scaled(call: Call) -> Minima | None:
    """Stored scales times a number."""
    for a, b in ((call.raw(0), call.raw(1)), (call.raw(1), call.raw(0))):
        number = the_number(b) if isinstance(b, Literal | Ramp) else None
        if isinstance(a, Stored) and len(a.shape) == 2 and is_float(a) and isinstance(number, int | float):
            return Minima(a, float(number))
    return None


def added(call: Call) -> Minima | Product | LastToken | None:
    """Minima besides multiples of the scales; a product with the one of its minima. None for any other sum."""
    for a, b in ((call.raw(0), call.raw(1)), (call.raw(1), call.raw(0))):
        if isinstance(a, Minima) and isinstance(b, Stored) and a.minima is None and a.scales.seen == b.seen:
            return replace(a, minima=b)
        if isinstance(a, LastToken) and isinstance(a.tokens, Product) and isinstance(b, MinimaProduct):
            return replace(a, tokens=_joined(call, a.tokens, b))
        if isinstance(a, Product) and isinstance(b, MinimaProduct):
            return _joined(call, a, b)
    return None


def _joined(call: Call, product: Product, rest: MinimaProduct) -> Product:
    packed, sums = product.matrix.source, rest.sums
    minima = rest.minima.turned()
    if (
        product.made is not None
        or not isinstance(packed, Packed)
        or not product.matrix.is_whole
        or product.x is not sums.x
        or packed.group != sums.group
    ):
        raise call.unsupported("minima are added to what is not the product with their integers")
    return replace(product, matrix=call.matrix(with_minima(call, packed, minima)))


def with_minima(call: Call, packed: Packed, minima: Minima | Stored) -> Packed:
    """The matrix with its minima; multiples of scales must be of its own."""
    if packed.minima is not None:
        raise call.unsupported("minima are added twice")
    if isinstance(minima, Stored):
        return replace(packed, minima=minima)
    scales = packed.scales
    if not isinstance(scales, Stored) or _place(scales) != _place(minima.scales):
        raise call.unsupported("multiples of other scales than those of the integers are added")
    return replace(packed, minima=minima.minima, factor=minima.factor)


def _place(stored: Stored) -> tuple[object, ...]:
    return stored.file, stored.offset, stored.held, stored.seen, stored.type

"""MatMulNBits, GatherBlockQuantized and DequantizeLinear: what each says of a matrix of integers."""

from __future__ import annotations

from dataclasses import replace

from llamac.errors import LlamacError

from .call import Call, Found, Importer, Rows
from .known import Literal, Ramp, the_number
from .packed import INTEGERS, Packed, as_integers, group_of, is_float, one_number
from .proto import FLOAT8, NIBBLES, UINT8
from .stored import Stored


def _product_of_bits(call: Call) -> Found:
    rows, columns = call.attribute("N", 0), call.attribute("K", 0)
    if call.attribute("weight_prepacked", 0):
        raise call.unsupported("integers packed for one processor")
    if call.has(4) or call.has(5):
        raise call.unsupported("an order of groups, or a bias")
    if call.attribute("accuracy_level", 0) == 4:
        reason = "ONNX Runtime may round activations to 8 bits there; here that follows --quantize"
        call.around.note("MatMulNBits", "accuracy_level 4 is not kept", reason)
    return call.product(call.raw(0), _blocks(call, call.raw(1), rows, columns))


def _look_up_bits(call: Call) -> Found:
    """GatherBlockQuantized: rows of a table of integers."""
    quants, bits = call.raw(0), call.attribute("bits", 4)
    if not isinstance(quants, Stored) or len(quants.shape) not in (2, 3):
        raise call.unsupported("integers that are not stored as a table")
    call.expect("gather_axis", 0)
    call.expect("quantize_axis", 1, len(quants.shape) - 1)
    each = 1 if quants.type in NIBBLES or bits == 8 else 2
    columns = quants.count // max(quants.shape[0], 1) * each
    table = _blocks(call, quants, quants.shape[0], columns)
    ids = call.tensor(1)
    return Rows(table, ids, (*ids.tensor.shape, columns))


def _blocks(call: Call, quants: Found, rows: int, columns: int) -> Packed:
    """Integers in blocks along the rows; zero is the middle of packed ones where no point is given."""
    bits, group = call.attribute("bits", 4), call.attribute("block_size", 128)
    if bits not in (4, 8) or group < 16 or group & (group - 1) or rows < 1 or columns < 1:
        raise call.unsupported(f"{bits} bits in blocks of {group}, {rows} x {columns}")
    if not isinstance(quants, Stored):
        raise call.unsupported("its integers are not stored")
    groups = -(-columns // group)
    is_padded = call.node.op == "MatMulNBits"
    kept = as_integers(quants, bits, (rows, groups * group if is_padded else columns))
    scales = _matrix_of(call, call.raw(2), rows, groups)
    if not is_float(scales):
        raise call.unsupported("scales that are no floats")
    zeros: Stored | float = float(1 << (bits - 1)) if quants.type == UINT8 else 0.0
    if call.has(3):
        zeros = _zero_points(call, call.raw(3), bits, rows, groups)
    return Packed(kept, scales, (rows, columns), group_of(group, columns), zeros)


def _matrix_of(call: Call, found: Found, rows: int, groups: int) -> Stored:
    """A stored part with a number for each group, however its shape is written."""
    if not isinstance(found, Stored) or found.transposed or found.count != rows * groups:
        count = found.count if isinstance(found, Stored) else "no stored"
        raise call.unsupported(f"{count} scales or zero points for {rows} rows of {groups} groups")
    return replace(found, shape=(rows, groups))


def _zero_points(call: Call, found: Found, bits: int, rows: int, groups: int) -> Stored | float:
    """Floats, integers one a byte, or of 4 bits two a byte, each row a whole number of bytes."""
    if isinstance(found, Literal | Ramp):
        return _number(call, found)
    if isinstance(found, Stored) and found.type == UINT8 and bits == 4:
        width = 2 * -(-groups // 2)
        return one_number(as_integers(found, bits, (rows, width)), groups)
    return one_number(_matrix_of(call, found, rows, groups), groups)


def _number(call: Call, found: Literal | Ramp) -> float:
    number = the_number(found)
    if not isinstance(number, int | float):
        raise call.unsupported("scales or zero points that are not stored")
    return float(number)


# DequantizeLinear.


def _dequantize(call: Call) -> Found:
    """A stored matrix of integers or of fp8; scales of everything, of an axis, or of blocks along an axis."""
    quants = call.raw(0)
    if not isinstance(quants, Stored):
        raise call.unsupported("it does not read stored integers")
    if len(quants.shape) != 2 or quants.type not in (*INTEGERS, FLOAT8):
        raise call.unsupported(f"a tensor of shape {list(quants.shape)[:8]}, expected a matrix of integers")
    axis, block = call.axis(2, 1), call.attribute("block_size", 0)
    if block < 0:
        raise call.unsupported(f"block_size {block}")
    scales = _of_axis(call, 1, quants.seen, axis, block)
    zeros = _of_axis(call, 2, quants.seen, axis, block) if call.has(2) else 0.0
    if isinstance(scales, Stored) and not is_float(scales):
        raise call.unsupported("scales that are no floats")
    if isinstance(zeros, Stored):
        zeros = one_number(zeros, zeros.seen[1])
    rows, columns = quants.seen
    group = group_of(block, quants.seen[axis])
    return Packed(quants, scales, (rows, columns), group, zeros)


def _of_axis(call: Call, index: int, shape: tuple[int, ...], axis: int, block: int) -> Stored | float:
    """Scales or zero points as a matrix that is seen as the quants are."""
    found = call.raw(index)
    if isinstance(found, Literal | Ramp):
        return _number(call, found)
    wanted = (
        tuple(-(-size // block) if i == axis else size for i, size in enumerate(shape)) if block else (shape[axis],)
    )
    if not isinstance(found, Stored) or found.seen != wanted:
        got = list(found.seen)[:8] if isinstance(found, Stored) else "none that are stored"
        raise call.unsupported(f"scales or zero points of shape {got}, expected {list(wanted)}")
    return found if block else replace(found, shape=(1, shape[1]) if axis == 1 else (shape[0], 1))


def _rounded(call: Call) -> Found:
    """QuantizeLinear: only activations are rounded in a graph."""
    what = f"{call.node.key} ({call.around.opset(call.node.domain)})"
    reason = f"{what}: activations that are rounded by fixed scales, which llamac's own rounding would not follow"
    raise LlamacError("LLC0935", call.node.title, reason, "quantize the weights alone")


DEQUANTIZED: dict[str, Importer] = {
    "com.microsoft.MatMulNBits": _product_of_bits,
    "com.microsoft.GatherBlockQuantized": _look_up_bits,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _rounded,
    "DynamicQuantizeLinear": _rounded,
}
"""Op -> what imports it."""

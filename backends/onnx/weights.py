"""Gives weights their form in an ONNX graph: initializers in the external file, each weight stored once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llamac.ir.dtypes import BF16, E4M3FN, F16, F32, DType
from llamac.ir.graph import Value, Weight

from . import encodings
from .external_data import Encode
from .graph_writer import GraphWriter
from .weight_parts import Grouped, matrix_shape, scaled_fp8

_FLOATS: dict[DType, tuple[str, Any]] = {
    F32: ("FLOAT", np.float32),
    F16: ("FLOAT16", np.float16),
    BF16: ("BFLOAT16", BF16.storage),
    E4M3FN: ("FLOAT8E4M3FN", E4M3FN.storage),
}
Note = Callable[[str, str, str, str], None]
"""(kind, where, what, reason) -> an entry of the ledger."""

Rows = tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """Rows of a matrix as they lie in the file: names of its values, and of scales and minima where it has them.

    form: "floats", "quants" (one for each number) or "blocks" (as MatMulNBits wants them); transposed: [in, out].
    middle: what was taken from unsigned quants so that they are signed; group: the columns that share a scale.
    """

    weight: Weight
    rows: Rows
    form: str
    transposed: bool
    values: str
    scales: str = ""
    minima: str = ""
    group: int = 0
    bits: int = 0
    middle: int = 0


class WeightForms:
    """The weights of one graph. `stored` says how each lies in the file, by the name of its values."""

    def __init__(self, writer: GraphWriter, note: Note) -> None:
        self.writer = writer
        self.stored: dict[str, Stored] = {}
        self._note = note
        self._made: dict[object, Stored] = {}
        self._noted: set[Weight] = set()

    def vector(self, weight: Value) -> str:
        """A vector as f32."""
        assert isinstance(weight, Weight)
        (length,) = weight.tensor.shape
        assert isinstance(length, int)

        def store() -> Stored:
            name = self._place(weight, "", "FLOAT", (length,), (0, 1), encodings.as_float, (1, length), np.float32)
            return Stored(weight, (0, 1), "floats", False, name)

        return self._once(("vector", weight), store).values

    def floats(self, weight: Weight, transposed: bool, rows: Rows | None = None) -> str:
        """A matrix of floats, held in its own dtype, as an f32 value: [out, in], or [in, out] when transposed.

        fp8 is multiplied with its scales in the graph. Integers come here when a kind of graph has no form for their
        groups: they are stored dequantized, which the ledger says.
        """
        rows = rows or (0, matrix_shape(weight)[0])
        stored = self._once(("floats", weight, rows, transposed), lambda: self._floats(weight, transposed, rows))
        return self.writer.once(("as f32", stored.values), lambda: self._as_float(stored))

    def _floats(self, weight: Weight, transposed: bool, rows: Rows) -> Stored:
        fp8 = scaled_fp8(weight)
        if weight.producer is not None and weight.producer.opcode == "dequantize" and fp8 is None:
            self.note(weight, "widened", "stored dequantized, as f32", "this form of ONNX has none for its groups")
        source = fp8.quants if fp8 else weight
        element, dtype = _FLOATS[source.tensor.dtype]
        dims = _turned((rows[1] - rows[0], matrix_shape(weight)[1]), transposed)
        encode = encodings.transposed if transposed else encodings.as_stored
        name = self._place(source, _label(rows, weight), element, dims, rows, encode, dims, dtype, transposed)
        scales = self._part(fp8.scales, transposed, rows, weight) if fp8 else ""
        return Stored(weight, rows, "floats", transposed, name, scales)

    def _as_float(self, stored: Stored) -> str:
        fp8 = scaled_fp8(stored.weight)
        dtype = fp8.dtype if fp8 else stored.weight.tensor.dtype
        if dtype is F32:
            return stored.values
        found = self.writer.op("Cast", stored.values, to=1)
        return self.writer.op("Mul", found, stored.scales) if fp8 else found

    def quants(
        self, weight: Weight, parts: Grouped, transposed: bool, rows: Rows | None = None, is_table: bool = False
    ) -> Stored:
        """A matrix of integers, scales and minima apart: [out, in], or [in, out].

        Unsigned ones are stored as signed, the middle of their range as 0. ONNX looks nothing up in tables of 4 bits,
        and lays an odd number of them nowhere but across rows: such are held in 8 bits, which the ledger says.
        """
        rows = rows or (0, matrix_shape(weight)[0])
        key = ("quants", weight, rows, transposed)
        return self._once(key, lambda: self._quants(weight, parts, transposed, rows, is_table))

    def _quants(self, weight: Weight, parts: Grouped, transposed: bool, rows: Rows, is_table: bool) -> Stored:
        count, columns = rows[1] - rows[0], matrix_shape(weight)[1]
        narrow = parts.bits == 4 and transposed and count % 2 == 0 and not is_table
        if parts.bits == 4 and not narrow:
            self.note(weight, "widened", "its 4-bit integers are held in 8 bits", "ONNX looks up no rows of 4 bits")
        bits, dtype = (4, np.uint8) if narrow else (8, np.int8)
        dims = _turned((count, columns), transposed)
        size = (columns, count // 2) if narrow else dims
        label = _label(rows, weight)

        def encode(block: encodings.Bytes) -> encodings.Bytes:
            signed = encodings.centered(block, parts.bits)
            if not transposed:
                return signed
            return encodings.transposed_nibbles(signed) if narrow else signed.T

        name = self._place(
            parts.quants, label, f"INT{bits}", dims, rows, encode, size, dtype, transposed, 2 if narrow else 1
        )
        return self._with_parts(Stored(weight, rows, "quants", transposed, name, bits=bits), parts)

    def blocks(self, weight: Weight, parts: Grouped, rows: Rows | None = None) -> Stored:
        """A matrix of integers as MatMulNBits wants it: [out, groups, bytes of a group], the middle standing for 0."""
        rows = rows or (0, matrix_shape(weight)[0])

        def store() -> Stored:
            count, groups = rows[1] - rows[0], matrix_shape(parts.scales)[1]
            nbytes = parts.group * parts.bits // 8
            label, size = _label(rows, weight), (count, groups * nbytes)

            def encode(block: encodings.Bytes) -> encodings.Bytes:
                return encodings.blocks(block, parts.bits, parts.group)

            name = self._place(parts.quants, label, "UINT8", (count, groups, nbytes), rows, encode, size, np.uint8)
            return self._with_parts(Stored(weight, rows, "blocks", False, name, bits=parts.bits), parts)

        return self._once(("blocks", weight, rows), store)

    def _with_parts(self, stored: Stored, parts: Grouped) -> Stored:
        found = [
            self._part(part, stored.transposed, stored.rows, stored.weight) if part is not None else ""
            for part in (parts.scales, parts.minima)
        ]
        return replace(stored, scales=found[0], minima=found[1], group=parts.group, middle=parts.middle)

    def _part(self, part: Weight, transposed: bool, rows: Rows, weight: Weight) -> str:
        """Scales or minima of some rows, as f32."""
        dims = _turned((rows[1] - rows[0], matrix_shape(part)[1]), transposed)
        encode = encodings.transposed_float if transposed else encodings.as_float
        return self._place(part, _label(rows, weight), "FLOAT", dims, rows, encode, dims, np.float32, transposed)

    def _place(
        self,
        weight: Weight,
        label: str,
        element: str,
        dims: tuple[int, ...],
        rows: Rows,
        encode: Encode,
        size: tuple[int, int],
        dtype: Any,
        transposed: bool = False,
        packing: int = 1,
    ) -> str:
        data = self.writer.data
        name = f"{weight.name}{label}"
        return self.writer.initializer(
            data.place(name, element, dims, weight, rows, encode, size, np.dtype(dtype), transposed, packing)
        )

    def _once(self, key: object, store: Callable[[], Stored]) -> Stored:
        if key not in self._made:
            made = self._made[key] = store()
            self.stored[made.values] = made
        return self._made[key]

    def note(self, weight: Weight, kind: str, what: str, reason: str) -> None:
        """One ledger entry for a weight, however often it is used."""
        if weight not in self._noted:
            self._noted.add(weight)
            self._note(kind, weight.name, what, reason)


def _label(rows: Rows, weight: Weight) -> str:
    """What tells the tensor of some rows from that of others."""
    return "" if rows == (0, matrix_shape(weight)[0]) else f".rows.{rows[0]}"


def _turned(shape: tuple[int, int], transposed: bool) -> tuple[int, int]:
    return (shape[1], shape[0]) if transposed else shape

"""How quantized checkpoints store a matrix in several tensors: the layouts, as data, and their text form.

A packed weight is a `StoredTensor` with `parts`; its encoding is the text of a `PackedEncoding`, such as
"gptq4-g128-sym-f16". Every part is seen with one row for each output, or for each word of outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .checkpoint import BLOCKS, StoredTensor

WORD = 32
ENCODING = re.compile(
    r"(fp8|int8|ct4|ct8|gptq4|gptq8|gptqv2_4|gptqv2_8|awq4|pairs4|i4|u4|i8|u8)"
    r"-(row|tensor|g\d{1,6})-(sym|asym)-(f16|bf16|f32)"
)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ puts outputs 0 2 4 6 1 3 5 7 into a word, lowest bits first: output r is its integer AWQ_ORDER[r]."""
SPREAD = ("i4", "u4", "i8", "u8")
"""Layouts of integers that a reader has taken apart, one a byte; "asym" has a minimum for each group."""
KERNEL_GROUPS = (16, 32, 64, 128)
"""Group sizes that the packed formats of the compiler have; wider ones are told as several groups of 128."""


@dataclass(frozen=True)
class PackedEncoding:
    """One layout: group is the columns that share a scale, 0 for one scale a row and -1 for one in all.

    layout: "fp8" and "int8" store a value a byte; "ct4", "ct8" (compressed-tensors) and "gptq4", "gptq8" words that
    run along the inputs; "awq4" words that run along the outputs, "pairs4" (ModelOpt) bytes of two outputs. GPTQ's
    first version stores zero points less one, "gptqv2_4" and "gptqv2_8" store them as they are. "i4", "u4", "i8" and
    "u8" are `SPREAD`.
    """

    layout: str
    group: int
    symmetric: bool
    scale: str

    def __str__(self) -> str:
        group = {0: "row", -1: "tensor"}.get(self.group, f"g{self.group}")
        return f"{self.layout}-{group}-{'sym' if self.symmetric else 'asym'}-{self.scale}"

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return 4 if self.layout.endswith("4") else 8

    @property
    def is_gptq(self) -> bool:
        return self.layout.startswith("gptq")

    @property
    def zero_offset(self) -> int:
        """What is added to a stored zero point."""
        return 1 if self.layout in ("gptq4", "gptq8") else 0

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return 1 if self.group <= 0 else -(-columns // self.group)

    def parts(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int], str]]:
        """Part -> its shape and encoding, for a matrix of `rows` outputs and `columns` inputs."""
        groups, each = self.groups(columns), WORD // self.bits
        scale_rows = 1 if self.group == -1 else rows
        found = {"scale": ((scale_rows, groups), self.scale)}
        if self.layout in ("fp8", "int8"):
            found["quants"] = ((rows, columns), "e4m3fn" if self.layout == "fp8" else "i8")
        elif self.layout in SPREAD:
            found["quants"] = ((rows, columns), self.layout)
            if not self.symmetric:
                found["mins"] = ((scale_rows, groups), "f32")
        elif self.layout == "pairs4":
            found["words"] = ((-(-rows // 2), columns), "u8")
        elif self.layout == "awq4":
            found["words"] = ((-(-rows // each), columns), "i32")
        else:
            found["words"] = ((rows, -(-columns // each)), "i32")
        if self.layout == "int8" and not self.symmetric:
            found["zeros"] = ((scale_rows, groups), "i8")
        elif self.is_gptq or (self.layout in ("ct4", "ct8", "awq4") and not self.symmetric):
            found["zeros"] = ((-(-rows // each), groups), "i32")
        return found


def packed_encoding(text: str) -> PackedEncoding | None:
    """The layout that an encoding names, or None for an encoding of plain values or blocks."""
    match = ENCODING.fullmatch(text)
    if match is None:
        return None
    layout, group, symmetry, scale = match.groups()
    size = {"row": 0, "tensor": -1}.get(group)
    return PackedEncoding(layout, int(group[1:]) if size is None else size, symmetry == "sym", scale)


def packed_tensor(
    name: str, shape: tuple[int, ...], encoding: PackedEncoding, parts: Mapping[str, StoredTensor]
) -> StoredTensor:
    """A packed weight; `parts` are named "NAME.PART"."""
    first = next(iter(parts.values()))
    nbytes = sum(part.nbytes for part in parts.values())
    stored = first.stored_name
    return StoredTensor(name, stored, shape, str(encoding), first.file, first.offset, nbytes, (), tuple(parts.values()))


def part_bytes(shape: tuple[int, int], encoding: str) -> int:
    """Bytes of a part."""
    return shape[0] * shape[1] * BLOCKS[encoding][1]

"""Matrices that a graph multiplies with: some rows of a stored one, plain or of integers with scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llamac.errors import LlamacError

from ..checkpoint import StoredTensor
from ..matrix_view import MatrixView, joined
from ..packed_encoding import PackedEncoding, packed_tensor
from .stored import Stored

_WORD_BYTES = 4


@dataclass(frozen=True)
class PackedBits:
    """What MatMulNBits multiplies with: `rows` outputs of `columns` inputs, integers around their middle value.

    quants: uint8 [rows, groups, group bits / 8], low bits first; scales: one for each group.
    """

    quants: Stored
    scales: Stored
    rows: int
    columns: int
    group: int
    bits: int

    @property
    def name(self) -> str:
        return self.quants.name

    @property
    def encoding(self) -> str:
        """The packed encoding that has the same bytes: words that run along the inputs."""
        return str(PackedEncoding(f"ct{self.bits}", self.group, True, self.scales.encoding))

    def views(self) -> Mapping[str, tuple[MatrixView, str]]:
        """Part -> its matrix and encoding."""
        groups = -(-self.columns // self.group)
        stride = groups * self.group * self.bits // 8
        words = -(-self.columns * self.bits // 32)
        scale_bytes = 4 if self.scales.encoding == "f32" else 2
        quants = MatrixView(self.quants.file, self.quants.offset, self.rows, words, stride, _WORD_BYTES)
        row = groups * scale_bytes
        scales = MatrixView(self.scales.file, self.scales.offset, self.rows, groups, row, scale_bytes)
        return {"scale": (scales, self.scales.encoding), "words": (quants, "i32")}


@dataclass(frozen=True)
class Matrix:
    """Rows [lo, hi) of `source`, which is seen as [outputs, inputs]; a vector is meant whole."""

    source: Stored | PackedBits
    lo: int
    hi: int

    @property
    def shape(self) -> tuple[int, ...]:
        if isinstance(self.source, PackedBits):
            return (self.hi - self.lo, self.source.columns)
        return self.source.seen if len(self.source.shape) == 1 else (self.hi - self.lo, self.source.seen[1])

    @property
    def encoding(self) -> str:
        return self.source.encoding

    @property
    def place(self) -> tuple[object, ...]:
        """What two matrices share that are the same."""
        source = self.source
        if isinstance(source, PackedBits):
            return source.quants.file, source.quants.offset, source.bits, source.group, self.lo, self.hi
        return source.file, source.offset, source.shape, source.transposed, self.lo, self.hi

    def part(self, lo: int, hi: int) -> Matrix:
        """Rows [lo, hi) of these."""
        return replace(self, lo=self.lo + lo, hi=self.lo + hi)

    def stored(self, name: str) -> StoredTensor:
        """The weight `name` of a checkpoint that it is."""
        source = self.source
        if isinstance(source, PackedBits):
            parts = {
                part: joined(f"{name}.{part}", source.name, encoding, [[view.row_range(self.lo, self.hi)]])
                for part, (view, encoding) in source.views().items()
            }
            encoding = PackedEncoding(f"ct{source.bits}", source.group, True, source.scales.encoding)
            return packed_tensor(name, self.shape, encoding, parts)
        if len(source.shape) == 1:
            return joined(name, source.name, source.encoding, [[source.view()]], vector=True)
        return joined(name, source.name, source.encoding, [[source.view().row_range(self.lo, self.hi)]])


def whole(source: Stored | PackedBits) -> Matrix:
    """All rows of a matrix, or a vector; LLC0315 for a weight of another rank."""
    if isinstance(source, Stored) and len(source.shape) not in (1, 2):
        reason = f"a weight of shape {list(source.shape)[:8]}"
        raise LlamacError("LLC0937", source.name, reason, "a Llama multiplies with matrices and vectors alone")
    rows = source.rows if isinstance(source, PackedBits) else source.seen[0] if len(source.shape) == 2 else 1
    return Matrix(source, 0, rows)

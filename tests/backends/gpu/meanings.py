"""What kernels are compared with: the IR's own meaning of an op in f64, and weights as the packer lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.ir.definition import Evaluation, Signature
from llamac.ir.dtypes import F32, I32
from llamac.ir.layouts import format_of
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.registry import find_op
from llamac.ir.row_layouts import RowLayout, pack_rows, unpack_rows
from llamac.ir.types import TensorType, Type

Array = np.ndarray[Any, Any]

DENSE = ("f32", "f16", "bf16", "e4m3fn")
GROUPED = (
    "i4g32s16",
    "i4g64s16",
    "i4g128s16",
    "u4g32s16m16",
    "u4g64s32m32",
    "i8g32s16",
    "i8g128s32",
    "i8g16s16",
    "u8g64s16m16",
)
FORMATS = (*DENSE, *GROUPED)


def meaning(opcode: str, *inputs: Any, **attributes: Any) -> list[Any]:
    """The results of an op in exact arithmetic."""
    given = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
    definition = find_op(opcode)
    types = definition.infer(Signature([_type_of(x) for x in given], attributes))
    return list(definition.evaluate(Evaluation(given, attributes, types, {}, exact=True)))


def _type_of(value: Any) -> Type:
    if isinstance(value, CacheState):
        return value.type
    return TensorType(value.shape, F32 if value.dtype.kind == "f" else I32)


@dataclass(frozen=True)
class Weight:
    """A random matrix as the kernels take it, and the values that it stands for."""

    layout: RowLayout
    packed: Array
    bits: bool

    @property
    def values(self) -> Array:
        """f32 [N, K]."""
        return unpack_rows(self.layout, self.packed)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a kernel that speak of the weight."""
        fmt, rows = self.layout.format, self.layout.rows
        body = self._section(
            0, np.dtype("<u4") if not fmt.is_dense else fmt.quants.storage, self.layout.row_bytes * rows
        )
        kind = f"int{fmt.quants.bits}" if not fmt.is_dense else "e4m3" if self.bits else "dense"
        scales = rows * self.layout.scale_columns
        scale, minimum = self.layout.scale, fmt.minimum
        return {
            "w_ptr": body.view(np.uint8) if self.bits else body,
            "scale_ptr": scale and self._section(self.layout.scales_at, scale.storage, scales * scale.bits // 8),
            "min_ptr": minimum and self._section(self.layout.minima_at, minimum.storage, scales * minimum.bits // 8),
            "KP": self.layout.padded_columns,
            "WEIGHT": kind,
            "GROUP": fmt.group,
            "ZERO": fmt.offset,
        }

    def _section(self, start: int, dtype: np.dtype[Any], size: int) -> Array:
        return self.packed[start : start + size].view(dtype)


def random_weight(rng: np.random.Generator, format: str, rows: int, columns: int) -> Weight:
    """A matrix with values around 1 / sqrt(columns); the format "e4m3fn bits" is decoded in software."""
    name = format.removesuffix(" bits")
    fmt = format_of(name)
    layout = RowLayout(fmt, rows, columns)
    size, groups = columns**-0.5, layout.scale_columns
    if fmt.is_dense:
        values = rng.standard_normal((rows, columns))
        scaled = rng.uniform(0.5 * size, 2 * size, (rows, 1)) if layout.scale else None
        packed = pack_rows(layout, (values if layout.scale else values * size).astype(fmt.quants.storage), scaled)
    else:
        top = 1 << fmt.quants.bits
        low = -fmt.offset
        scale = rng.uniform(0.5, 2, (rows, groups)) * size * 4 / top
        minimum = rng.uniform(-size, size, (rows, groups)) if fmt.minimum else None
        packed = pack_rows(layout, rng.integers(low, low + top, (rows, columns)), scale, minimum)
    return Weight(layout, packed, format != name)

"""Declares the weights of a module as they are stored: floats, and blocks taken apart into integers and scales."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.ir.builder import Builder
from llamac.ir.dtypes import BF16, DTYPES, F32, U8
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.graph import FileSource, Value
from llamac.ir.types import TensorType, tensor

from ..checkpoint import StoredTensor
from ..packed_encoding import AWQ_ORDER, KERNEL_GROUPS, PackedEncoding, packed_encoding


def declare_weights(b: Builder, tensors: Mapping[str, StoredTensor]) -> None:
    """One weight under each model-level name, whatever it is made of."""
    for name, stored in tensors.items():
        packed = packed_encoding(stored.encoding)
        if stored.encoding in BLOCKS:
            _declare_blocks(b, name, stored)
        elif packed is not None:
            _PackedWeight(b, name, stored, packed).declare()
        else:
            dtype = DTYPES[stored.encoding]
            b.weight(name, TensorType(tuple(stored.shape), dtype), FileSource(name, stored.encoding))


def _declare_blocks(b: Builder, name: str, stored: StoredTensor) -> None:
    block = BLOCKS[stored.encoding]
    rows, columns = stored.shape
    raw = tensor(rows, columns // block.values * block.bytes, U8)
    blocks = b.weight(f"{name}.blocks", raw, FileSource(name, stored.encoding))
    parts = ["quants", "scales"] + (["mins"] if block.minimum else [])
    made = [b.define(f"{name}.{p}", f"block_{p}", blocks, format=stored.encoding) for p in parts]
    b.define(name, "dequantize", *made, group=block.group)


class _PackedWeight:
    """A weight of a quantized checkpoint: the stored parts, and what is made of them for `dequantize`."""

    def __init__(self, b: Builder, name: str, stored: StoredTensor, encoding: PackedEncoding) -> None:
        self.b = b
        self.name = name
        self.encoding = encoding
        self.rows, self.columns = stored.shape
        self.parts: dict[str, Value] = {}
        for part, (shape, stored_as) in encoding.parts(self.rows, self.columns).items():
            source = FileSource(f"{name}.{part}", stored_as)
            self.parts[part] = b.weight(f"{name}.{part}", TensorType(shape, DTYPES[stored_as]), source)

    def declare(self) -> None:
        e = self.encoding
        quants, scale = self.quants(), self.scale()
        zeros = self.zeros() if "zeros" in self.parts else None
        offset = {"offset": e.zero_offset}
        made = [quants, scale]
        if e.layout in ("ct4", "ct8") and e.symmetric:
            made[0] = self.define("centered", "center_quants", quants, **offset)
        elif e.is_gptq and e.symmetric and zeros is not None:
            made[0] = self.define("centered", "center_quants", quants, zeros, **offset)
        elif "mins" in self.parts:
            made.append(self.parts["mins"])
        elif zeros is not None:
            made.append(self.define("mins", "zero_minimum", scale, zeros, **offset))
        group = (e.group if e.group > 0 else self.columns) if e.layout == "fp8" else self.kernel_group
        self.b.define(self.name, "dequantize", made[0], *(self.spread(value) for value in made[1:]), group=group)

    def define(self, part: str, opcode: str, *operands: Value, **attributes: int | tuple[int, ...]) -> Value:
        return self.b.define(f"{self.name}.{part}", opcode, *operands, **attributes)

    def quants(self) -> Value:
        bits = self.encoding.bits
        if "quants" in self.parts:
            return self.parts["quants"]
        if self.encoding.layout == "pairs4":
            return self.define("unpacked", "unpack_rows", self.parts["words"], bits=bits, rows=self.rows, word=8)
        if self.encoding.layout == "awq4":
            order = {"order": AWQ_ORDER}
            return self.define("unpacked", "unpack_rows", self.parts["words"], bits=bits, rows=self.rows, **order)
        return self.define("unpacked", "unpack_columns", self.parts["words"], bits=bits, columns=self.columns)

    def zeros(self) -> Value:
        """One zero point for each scale."""
        e, zeros = self.encoding, self.parts["zeros"]
        if e.layout == "int8":
            return zeros if e.group != -1 else self.define("zeros.rows", "spread_rows", zeros, rows=self.rows)
        order = {"order": AWQ_ORDER} if e.layout == "awq4" else {}
        return self.define("zero_points", "unpack_rows", zeros, bits=e.bits, rows=self.rows, **order)

    def scale(self) -> Value:
        """f32 where the kernels have no such scale: bf16, and everything of fp8."""
        scale = self.parts["scale"]
        if scale.tensor.dtype is not F32 and (scale.tensor.dtype is BF16 or self.encoding.layout == "fp8"):
            scale = self.b.define(f"{self.name}.scale.f32", "cast", scale, dtype=F32)
        if self.encoding.group == -1:
            scale = self.define("scale.rows", "spread_rows", scale, rows=self.rows)
        return scale

    @property
    def kernel_group(self) -> int:
        """The group that the packed formats know: the checkpoint's own, or 128 that divides it."""
        group = self.encoding.group
        return group if group in KERNEL_GROUPS else KERNEL_GROUPS[-1]

    def spread(self, per_group: Value) -> Value:
        """Scales or minima of the checkpoint's groups as those of the kernel's."""
        if self.encoding.layout == "fp8" or self.encoding.group == self.kernel_group:
            return per_group
        columns = -(-self.columns // self.kernel_group)
        times = columns if self.encoding.group <= 0 else self.encoding.group // self.kernel_group
        name = per_group.name.removeprefix(f"{self.name}.")
        return self.define(f"{name}.spread", "spread_columns", per_group, times=times, columns=columns)

"""The tensors an exported program carries: parameters become weights of the checkpoint, small buffers data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.dtypes import F32, I32, DType
from llamac.ir.graph import DataSource, FileSource, Value
from llamac.ir.types import tensor

from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig
from ..llama.graph import inverse_frequencies
from .torch_library import ir_dtype, require_torch

DATA_LIMIT = 1 << 20
"""Elements of the largest buffer that is written into the module."""

FREQUENCIES = "rope.inverse_frequencies"
F32_TOLERANCE, ROUNDED_TOLERANCE = 2e-6, 2.0**-7
"""Two ways of computing the frequencies in f32; the frequencies rounded to bf16, as `module.to(bfloat16)` does."""


class Parameters:
    """Declares weights on first use. Parameters that share memory, such as tied tables, are one weight."""

    def __init__(self, program: Any, config: LlamaConfig, ledger: list[LedgerEntry]) -> None:
        self.stored: dict[str, Any] = {**program.constants, **program.state_dict}
        self.config = config
        self.ledger = ledger
        self.tensors: dict[str, Any] = {}
        self._known: dict[object, Value] = {}

    def value(self, spec: Any, builder: Builder) -> Value:
        """The weight or constant for a lifted input of the program."""
        held = self.stored[spec.target]
        if not hasattr(held, "data_ptr"):
            raise LlamacError("LLC0315", spec.target, "the program holds an object that is no tensor", "")
        is_parameter = spec.kind.name == "PARAMETER"
        key = (held.data_ptr(), tuple(held.shape), held.stride(), held.dtype) if held.numel() else spec.target
        if key not in self._known:
            self._known[key] = self.declare(spec.target, held, is_parameter, builder)
        return self._known[key]

    def declare(self, name: str, held: Any, is_parameter: bool, builder: Builder) -> Value:
        dtype, shape = ir_dtype(held.dtype, name), tuple(int(d) for d in held.shape)
        if is_parameter:
            if not dtype.is_float or len(shape) not in (1, 2):
                raise LlamacError("LLC0315", name, f"a parameter of type {tensor(*shape, dtype)}", "")
            self.tensors[name] = held
            return builder.weight(name, tensor(*shape, dtype), FileSource(name, dtype.name))
        if held.numel() > DATA_LIMIT:
            reason = f"the buffer has {held.numel()} elements, more than {DATA_LIMIT}"
            raise LlamacError("LLC0315", name, reason, "compute tables over positions from the positions")
        return self.constant(name, held, dtype, shape, builder)

    def constant(self, name: str, held: Any, dtype: DType, shape: tuple[int, ...], builder: Builder) -> Value:
        """A buffer: a scalar becomes a constant, the rotary frequencies those of the config, others data."""
        values = _array(held)
        if not shape:
            return builder.constant(float(values), dtype)
        if (
            shape == (self.config.head_dim // 2,)
            and dtype.is_float
            and (known := self.frequencies(name, values, dtype))
        ):
            return builder.weight(FREQUENCIES, tensor(*shape, F32), known)
        return builder.weight(name, tensor(*shape, dtype), DataSource(values.astype(dtype.storage).tobytes()))

    def frequencies(self, name: str, values: NDArray[Any], dtype: DType) -> DataSource | None:
        """The config's inverse frequencies where the buffer holds them, bit for bit as from the config."""
        expected = inverse_frequencies(self.config)
        tolerance = F32_TOLERANCE if dtype is F32 else ROUNDED_TOLERANCE
        if not np.allclose(values, expected, rtol=tolerance, atol=0):
            return None
        if dtype is not F32:
            reason = "the module holds them rounded, by module.to(dtype); from_pretrained keeps them in f32"
            self.ledger.append(entry("note", name, "rotary frequencies are taken from the config, in f32", reason))
        return DataSource(expected.astype("<f4").tobytes())


def _array(held: Any) -> NDArray[Any]:
    torch = require_torch()
    plain = held.detach().cpu()
    array: NDArray[Any] = (plain.float() if plain.is_floating_point() else plain.to(torch.int64)).numpy()
    return array if plain.is_floating_point() else array.astype(I32.storage)

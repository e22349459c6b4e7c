"""Rotary embedding of an ONNX graph: frequencies and tables that it stores, traced back to the config's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.dtypes import F32
from llamac.ir.graph import DataSource, Value, Weight
from llamac.ir.types import tensor

from ..capture.parameters import F32_TOLERANCE, FREQUENCIES, ROUNDED_TOLERANCE
from ..llama.config import LlamaConfig
from ..llama.graph import LlamaBuilder, inverse_frequencies
from .proto import FLOAT
from .stored import Stored

CHECKED_ROWS = 512
"""Rows of a table of positions that are compared with what the config gives."""
ROTATED = "check that config.json belongs to this model"


class _Pieces(LlamaBuilder):
    """The textbook's pieces with the frequencies as a weight of their own, as graphs of torch have them."""

    def inverse_frequencies(self) -> Value:
        module = self.module
        if FREQUENCIES in module.weights:
            return module.weights[FREQUENCIES]
        values = inverse_frequencies(self.config).astype("<f4")
        return self.b.weight(FREQUENCIES, tensor(len(values), F32), DataSource(values.tobytes()))


class Noting(Protocol):
    """Takes ledger entries: where, what, reason."""

    def __call__(self, where: str, what: str, reason: str) -> None: ...


@dataclass
class Rotary:
    """The rotary part of one import; `pieces` builds the textbook's form in the graph that is being made."""

    builder: Builder
    config: LlamaConfig
    note: Noting

    @cached_property
    def expected(self) -> NDArray[np.float32]:
        """The config's inverse frequencies, [head size / 2]."""
        return inverse_frequencies(self.config).astype(np.float32)

    @cached_property
    def pieces(self) -> LlamaBuilder:
        """The textbook's pieces, in this graph, with the tables of its positions."""
        pieces = _Pieces(self.config, {})
        pieces.module, pieces.b = self.builder.module, self.builder
        assert self.builder.graph is not None
        pieces.positions = self.builder.graph.argument("positions")
        return pieces

    @cached_property
    def mask(self) -> Value:
        """The causal mask, [T, P + T]."""
        return self.pieces.causal_mask()

    @cached_property
    def tables(self) -> tuple[Value, Value]:
        """cos and sin of the positions."""
        return self.pieces.rope_tables()

    def rotate(self, x: Value) -> Value:
        """x [heads, T, head size], turned."""
        self.pieces.tables = self.tables
        return self.pieces.rotate(x)

    def is_frequencies(self, stored: Stored) -> bool:
        """Whether a stored constant has the place of the frequencies."""
        half = self.config.head_dim // 2
        return stored.count == half and half != self.config.hidden_size and half in stored.shape

    def frequencies(self, stored: Stored) -> Value:
        """The stored inverse frequencies [head size / 2]: the config's own where they are equal, or as they are."""
        module = self.builder.module
        if FREQUENCIES in module.weights:
            return module.weights[FREQUENCIES]
        found = np.asarray(stored.read(1 << 14), np.float32).reshape(-1)
        tolerance = F32_TOLERANCE if stored.type == FLOAT else ROUNDED_TOLERANCE
        values = found
        if np.allclose(found, self.expected, rtol=tolerance, atol=0):
            values = self.expected
        else:
            self.note(stored.name, "rotary frequencies as the graph has them", "they are not those of the config")
        source = DataSource(values.astype("<f4").tobytes())
        weight: Weight = self.builder.weight(FREQUENCIES, tensor(len(values), F32), source)
        return weight

    def check_table(self, stored: Stored, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        """A table of cosines or sines by position must be that of the config's frequencies: LLC0937 otherwise."""
        half = self.config.head_dim // 2
        if len(stored.shape) != 2 or stored.shape[1] not in (half, 2 * half) or stored.transposed:
            reason = f"a rotary table of shape {list(stored.shape)}, expected [positions, {half}]"
            raise LlamacError("LLC0937", stored.name, reason, ROTATED)
        rows = min(stored.shape[0], CHECKED_ROWS)
        found = replace(stored, shape=(rows, stored.shape[1])).read(rows * 2 * half)
        angles = np.arange(rows, dtype=np.float32)[:, None] * self.expected
        wanted = np.tile(function(angles), (1, stored.shape[1] // half))
        tolerance = 2e-4 if stored.type == FLOAT else 2.0**-7
        if not np.allclose(found, wanted, rtol=0, atol=tolerance):
            row = int(np.abs(found - wanted).max(axis=1).argmax())
            reason = f"its values at position {row} are not those of theta {self.config.rope_theta:g} and its scaling"
            raise LlamacError("LLC0937", stored.name, reason, ROTATED)

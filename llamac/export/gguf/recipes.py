"""Which block type each weight gets: the mixtures of llama.cpp's quantizer, by name of the scheme.

    q8_0                                every matrix
    q4_0 q4_1 q5_0 q5_1                 every matrix; the output matrix, or a tied embedding, in Q6_K or Q8_0
    q4_k                                the mixture Q4_K_M: Q6_K for the values and the way down of some layers
    q6_k                                every matrix

A matrix whose rows are no whole number of blocks takes the next type of 32 values, or F16. (src/llama-quant.cpp.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamac.models.checkpoint import BLOCKS
from llamac.models.llama.config import LlamaConfig

FLOATS = ("f32", "f16", "bf16")
SCHEMES = (*FLOATS, "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k")
FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Type of 256 values -> the type of 32 that stands in for it."""

FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "bf16": 32,
}
"""Scheme -> `general.file_type`, the name that llama.cpp prints for a file."""

_NEVER_QUANTIZED = re.compile(r".*norm|layers\.\d+\.moe\.router")


@dataclass(frozen=True)
class Choice:
    """A type, and why it is not the scheme's own (an empty string where it is)."""

    kind: str
    reason: str = ""
    falls_back: bool = False


def choose(name: str, scheme: str, config: LlamaConfig, shape: tuple[int, ...]) -> Choice:
    """The type of a weight, given by its model-level name and shape, under one of `SCHEMES`."""
    if len(shape) == 1 or _NEVER_QUANTIZED.fullmatch(name):
        return Choice("f32")
    if scheme in FLOATS:
        return Choice(scheme)
    return _that_fits(_mixture(name, scheme, config, shape[-1]), shape[-1])


def fits(kind: str, columns: int) -> bool:
    """Whether a row of so many values is a whole number of blocks."""
    return columns % BLOCKS[kind][0] == 0


def _mixture(name: str, scheme: str, config: LlamaConfig, columns: int) -> Choice:
    if scheme == "q8_0":
        return Choice(scheme)
    if name == "head" or (name == "embed" and config.tied_head):
        kind = "q6_k" if fits("q6_k", columns) and fits(scheme, columns) else "q8_0"
        return Choice(kind, "" if kind == scheme else "the output matrix gets more bits, as in llama.cpp's mixtures")
    match = re.fullmatch(r"layers\.(\d+)\.(attn\.v|(?:mlp|moe|moe\.shared)\.down)", name)
    if scheme == "q4_k" and match and _gets_more_bits(int(match.group(1)), config.layers):
        return Choice("q6_k", "Q4_K_M gives it more bits in this layer")
    return Choice(scheme)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last eighth and every third between them."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _that_fits(wanted: Choice, columns: int) -> Choice:
    if fits(wanted.kind, columns):
        return wanted
    small = FALLBACK.get(wanted.kind, wanted.kind)
    kind = small if fits(small, columns) else "f16"
    values = BLOCKS[wanted.kind][0]
    return Choice(kind, f"rows of {columns} values are no whole number of blocks of {values}", falls_back=True)

"""Bytes of the key/value cache, by kind of layer: the sizes that the runtime allocates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import MllamaVision
from llamac.passes.lower_kv_cache import PAGE
from llamac.passes.quantize_kv import float_kv

KV_BITS: Mapping[str, tuple[int, int]] = {
    "f32": (32, 0),
    "f16": (16, 0),
    "bf16": (16, 0),
    "fp8": (8, 0),
    "int8": (8, 16),
}
"""Cache type -> bits of an element, and bits of the scale that every head of every position has beside them."""

COMPILED_KV: Mapping[str, tuple[str, ...]] = {
    "cpu": ("f32", "f16", "bf16", "int8"),
    "gpu": ("f32", "f16", "bf16", "fp8"),
}
"""Kind of machine -> cache types that `llamac compile` takes for it; of 8 bits, vision tokens stay f16 then."""


@dataclass(frozen=True)
class KvGroup:
    """The cache of the layers of one kind, on one device.

    kind: "full" (every position is kept), "chunked" (the block of positions that a row sees, and what one step adds to
    it) or "cross" (the tokens of the images). tokens: most that are kept for one sequence; they lie in whole pages.
    """

    kind: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    tokens: int
    page_tokens: int

    @property
    def token_bytes(self) -> int:
        """Keys and values of one position in all layers of the group."""
        element, scale = KV_BITS[self.dtype]
        return 2 * self.layers * self.kv_heads * (self.head_dim * element + scale) // 8

    @property
    def page_bytes(self) -> int:
        """One page: `page_tokens` positions."""
        return self.page_tokens * self.token_bytes

    @property
    def pages(self) -> int:
        """Pages of one sequence."""
        return -(-self.tokens // self.page_tokens)

    @property
    def bytes(self) -> int:
        """What one sequence takes."""
        return self.pages * self.page_bytes


def kv_groups(
    config: LlamaConfig, context: int, step_tokens: int, dtype: str, tp: int = 1, images: int = 0
) -> tuple[KvGroup, ...]:
    """The cache of one sequence of at most `context` tokens, on one of `tp` devices, as its kinds of layer divide it.

    A device has its share of the heads, and at least one. A chunked layer keeps the pages of its chunk and those that
    one step of `step_tokens` may write beyond it, never more than the whole context. Cross-attention layers keep
    `images` images of all their tiles. Sources: Llama 4 and Llama 3.2 model code; Ainslie et al. 2023 for shared heads.
    """
    heads = max(config.kv_heads // tp, 1)
    pattern, chunked = config.attention, 0
    if pattern is not None and pattern.chunk:
        chunked = config.layers - len(pattern.unrotated)
    full = config.layers - chunked - len(config.cross_layers)
    groups = []
    if full:
        groups.append(KvGroup("full", full, heads, config.head_dim, dtype, context, PAGE))
    if chunked and pattern is not None:
        kept = chunk_tokens(pattern.chunk, context, step_tokens)
        groups.append(KvGroup("chunked", chunked, heads, config.head_dim, dtype, kept, PAGE))
    if config.cross_layers and isinstance(config.vision, MllamaVision) and images:
        tokens = images * config.vision.max_tiles * config.vision.tile_tokens
        groups.append(KvGroup("cross", len(config.cross_layers), heads, config.head_dim, float_kv(dtype), tokens, PAGE))
    return tuple(groups)


def chunk_tokens(chunk: int, context: int, step_tokens: int) -> int:
    """Positions that a layer with chunked attention keeps, in whole pages, as the runtime's page pools do.

    The rows of a step that begins in a chunk touch chunk - 1 + step_tokens positions from the chunk's first on, which
    may lie inside a page.
    """
    pages = -(-(chunk - 1 + step_tokens) // PAGE) + (1 if chunk % PAGE else 0)
    return min(context, pages * PAGE)

"""Early fusion: image embeddings take the places of the patch tokens among the embedded text."""

from __future__ import annotations

from llamac.ir.builder import Builder
from llamac.ir.dims import DimLike, symbol
from llamac.ir.dtypes import F32, I32
from llamac.ir.graph import Value
from llamac.ir.types import Type, tensor

from ..llama.config import LlamaConfig

ROWS = symbol("M")


def image_arguments(config: LlamaConfig, tokens: DimLike) -> list[tuple[str, Type]]:
    """What a step with images takes besides ids and positions.

    `image_rows` i32 [T]: the row of `image_embeddings` that position t is, or -1 where it is text. `image_embeddings`
    f32 [M, d]: what `encode_image` made of the tiles of all images in order, reshaped to rows; at least one row, which
    may be anything when no position is an image.
    """
    return [
        ("image_rows", tensor(tokens, I32)),
        ("image_embeddings", tensor(ROWS, config.hidden_size, F32)),
    ]


def merge_images(b: Builder, hidden: Value, image_rows: Value, image_embeddings: Value) -> Value:
    """hidden [T, d] with row t replaced by image_embeddings[image_rows[t]] wherever image_rows[t] is not negative."""
    tokens = hidden.tensor.shape[0]
    none = b.constant(0.0, I32)
    is_text = b.op("less", image_rows, none)
    rows = b.op("select", is_text, none, image_rows)
    images = image_embeddings
    if images.tensor.dtype is not hidden.tensor.dtype:
        images = b.op("cast", images, dtype=hidden.tensor.dtype)
    return b.op("select", b.reshape(is_text, tokens, 1), hidden, b.op("embedding", images, rows))

"""Key/value heads that a release stores twice, so that more ranks than heads could share them, read once.

The 16-rank form of Llama 3.1 405B says 16 key/value heads: each of its 8 twice, side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..checkpoint import FileRows, StoredTensor
from ..ledger import LedgerEntry, entry
from ..matrix_view import MatrixView, below, joined
from ..pieces import Piece
from .config import LlamaConfig

KEY_OR_VALUE = re.compile(r"layers\.\d+\.attn\.[kv]")


DOUBLED = (16384, 128, 16)
"""hidden_size, heads and kv_heads of the 405B that stores its key/value heads twice."""


def is_doubled(config: LlamaConfig) -> bool:
    """Whether a config is that of the 16-rank 405B, as its first Hugging Face upload was too."""
    return (config.hidden_size, config.heads, config.kv_heads) == DOUBLED


def without_repeated_kv_heads(
    config: LlamaConfig, tensors: Mapping[str, StoredTensor], ledger: list[LedgerEntry]
) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    """The model with half the key/value heads where head 2i + 1 of every layer repeats head 2i; else as it was.

    Heads are compared by their first row, those of layer 0 by all of them.
    """
    heads = {name: tensor for name, tensor in tensors.items() if KEY_OR_VALUE.fullmatch(name)}
    rows = config.kv_heads * config.head_dim
    fits = all(tensor.shape == (rows, config.hidden_size) for tensor in heads.values())
    if config.kv_heads % 2 or not fits or not all(_repeats(config, tensor) for tensor in heads.values()):
        return config, dict(tensors)
    what = f"{config.kv_heads // 2} key/value heads, not {config.kv_heads}"
    ledger.append(entry("note", "layers.N.attn", what, "the checkpoint stores each of them twice"))
    halved = {name: _every_other_head(config, tensor) for name, tensor in heads.items()}
    return replace(config, kv_heads=config.kv_heads // 2), {**tensors, **halved}


def _repeats(config: LlamaConfig, tensor: StoredTensor) -> bool:
    compared = config.head_dim if tensor.name.startswith("layers.0.") else 1
    for first in range(0, tensor.rows, 2 * config.head_dim):
        head = FileRows().read(tensor, first, first + compared)
        other = first + config.head_dim
        if (head != FileRows().read(tensor, other, other + compared)).any():
            return False
    return True


def _every_other_head(config: LlamaConfig, tensor: StoredTensor) -> StoredTensor:
    h = config.head_dim
    item = tensor.row_bytes // tensor.shape[1]
    pieces = tensor.pieces or (
        Piece(tensor.file, tensor.offset, 0, tensor.rows, 0, tensor.shape[1], tensor.row_bytes, item),
    )
    views = [_rows(pieces, lo, lo + h) for lo in range(0, tensor.rows, 2 * h)]
    return joined(tensor.name, tensor.stored_name, tensor.encoding, below(view for part in views for view in part))


def _rows(pieces: tuple[Piece, ...], lo: int, hi: int) -> list[MatrixView]:
    """Rows [lo, hi) of pieces that span whole rows."""
    found = []
    for p in pieces:
        first, last = max(lo, p.row), min(hi, p.row + p.rows)
        if first < last:
            view = MatrixView(p.file, p.offset, p.rows, p.columns, p.row_stride, p.column_stride)
            found.append(view.row_range(first - p.row, last - p.row))
    return found

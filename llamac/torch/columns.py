"""What a batch of transformers looks like to sequences without padding: which columns hold tokens, and where.

transformers pads a batch to one length and says in `attention_mask` which columns count. An artifact has no padding: a
sequence holds its real tokens only, one after the other, and the position of a token is their count before it. That is
what `generate` computes positions to be, so both see the same distances everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llamac.errors import LlamacError

Bools = NDArray[np.bool_]


def real_columns(mask: torch.Tensor | None, known: Bools, new: int) -> Bools:
    """Which of `new` columns hold tokens, [batch, new]. `known` [batch, past]: which of the columns before them do.

    LLC0956 for a mask of another shape than [batch, past + new], and for one that changes its mind about the past.
    """
    batch, past = known.shape
    if mask is None:
        return np.ones((batch, new), bool)
    if mask.ndim != 2 or tuple(mask.shape) != (batch, past + new):
        reason = f"has the shape {list(mask.shape)}, expected [{batch}, {past + new}]"
        hint = "pass one truth value a column, those of the cache included; other masks are not Llama's"
        raise LlamacError("LLC0956", "attention_mask", reason, hint)
    shown = mask.detach().cpu().numpy() != 0
    if not np.array_equal(shown[:, :past], known):
        reason = "hides or shows other columns of the cache than the calls that filled it"
        raise LlamacError("LLC0956", "attention_mask", reason, "begin again with an empty cache")
    columns: Bools = shown[:, past:]
    return columns


def check_positions(positions: torch.Tensor | None, lengths: list[int], real: Bools) -> None:
    """LLC0956 unless `positions` count each row's real tokens, from its length on."""
    if positions is None:
        return
    found = positions.detach().cpu().numpy()
    found = found[None] if found.ndim == 1 else found
    if found.shape != real.shape and found.shape != (1, real.shape[1]):
        reason = f"has the shape {list(positions.shape)}, expected {list(real.shape)}"
        raise LlamacError("LLC0956", "position_ids", reason, "leave position_ids out")
    expected = np.cumsum(real, axis=1) - 1 + np.array(lengths)[:, None]
    wrong = np.argwhere(real & (found != expected))
    if len(wrong):
        row, column = wrong[0]
        given = np.broadcast_to(found, real.shape)[row, column]
        reason = f"row {row}, column {column} has position {given}, expected {expected[row, column]}"
        hint = "leave position_ids out: an artifact gives positions to the tokens that attention_mask shows, in order"
        raise LlamacError("LLC0956", "position_ids", reason, hint)

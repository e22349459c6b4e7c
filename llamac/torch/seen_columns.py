"""Which columns of a batch hold tokens, and where these stand: read off what a compiled forward is called with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .columns import Bools
from .fixed_values import HIDDEN

_HINT = "llamac compiles causal attention: a token sees the tokens before it, and padding is what no token sees"


def seen_columns(mask: torch.Tensor | None, batch: int, past: int, new: int) -> Bools:
    """Which columns hold tokens, [batch, past + new].

    mask: [batch, past + new or more], one truth value a column, or [batch or 1, 1, new, past + new or more], the
    visible ones or what is added to scores. LLC0957 for one that is not causal.
    """
    total = past + new
    if mask is None:
        return np.ones((batch, total), bool)
    held = mask.detach().cpu()
    shown: Bools
    if held.ndim < 4:
        shown = held.reshape(batch, -1)[:, :total].numpy() != 0
        if shown.shape[1] != total:
            reason = f"has the shape {list(mask.shape)}, expected [{batch}, {total}]"
            raise LlamacError(
                "LLC0957", "attention_mask", reason, "pass one truth value a column, the cache's included"
            )
        return shown
    visible: Bools = (held if held.dtype == torch.bool else held > HIDDEN).numpy()[:, 0]
    visible = np.broadcast_to(visible, (batch, *visible.shape[1:]))
    shown = visible[:, -1, :total].copy()
    causal = np.tril(np.ones((new, total), bool), past)
    expected = shown[:, None, :] & causal
    rows = shown[:, past:]
    if not np.array_equal(visible[..., :total][rows], expected[rows]) or visible[..., total:][rows].any():
        raise LlamacError("LLC0957", "attention_mask", f"the mask {list(mask.shape)} is not the causal one", _HINT)
    return shown


def offsets_of(positions: torch.Tensor | None, real: Bools, past: int) -> NDArray[np.int64]:
    """How much larger the positions of each row's new tokens are than the number of tokens before them, [batch].

    Without positions they are the numbers of the columns. LLC0957 where they do not follow one another.
    """
    batch, total = real.shape
    counted = np.cumsum(real, axis=1)[:, past:] - 1
    if positions is None:
        found = np.broadcast_to(np.arange(past, total), counted.shape)
    else:
        given = np.atleast_2d(positions.detach().cpu().numpy())
        if given.shape not in (counted.shape, (1, counted.shape[1])):
            reason = f"has the shape {list(positions.shape)}, expected {list(counted.shape)}"
            raise LlamacError("LLC0957", "position_ids", reason, "leave position_ids out")
        found = np.broadcast_to(given, counted.shape)
    new = real[:, past:]
    apart = found - counted
    first = np.argmax(new, axis=1)
    offsets: NDArray[np.int64] = np.where(new.any(axis=1), apart[np.arange(batch), first], 0)
    if (new & (apart != offsets[:, None])).any():
        row, column = np.argwhere(new & (apart != offsets[:, None]))[0]
        reason = f"row {row}, column {column}: positions do not follow one another from token to token"
        hint = "pad on the left or on the right only, and let position_ids count the tokens that attention_mask shows"
        raise LlamacError("LLC0957", "position_ids", reason, hint)
    return offsets

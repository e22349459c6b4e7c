"""Checks what a graph computes from shapes alone: a causal mask and rotary tables, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from llamac.errors import LlamacError
from llamac.models.capture.rotation import read_frequencies

from .graph_inputs import CallShape

Floats = NDArray[np.float32]

HIDDEN = -1e4
"""What is added to a score so that its key weighs nothing; f16 goes to -65504."""

ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""How far a cosine held in this type is from one computed in f32, at most."""


def frequencies_of(
    edge: dict[Node, torch.Tensor],
    held: Sequence[torch.Tensor],
    call: CallShape,
    first: int,
    head_dim: int,
    before: Floats | None = None,
) -> Floats:
    """The rotary frequencies behind the fixed tensors of a call, all of which are accounted for.

    edge: the fixed tensors that the rest of the graph reads. held: other fixed tensors, among which the frequencies may
    be. first: the position of the first new token. before: what another call has shown, and this one must be. LLC0957
    for a mask that is not causal and for a tensor that has no place in a Llama; LLC0318 for other tables.
    """
    tables: list[Floats] = []
    rounding = 0.0
    for node, value in _real(edge):
        plain = _plain(value, call.columns)
        if not plain.ndim:
            continue
        if _is_mask(plain, call):
            _check_causal(node, plain, call)
        elif plain.ndim == 2 and len(plain) == call.columns and plain.shape[-1] in (head_dim, head_dim // 2):
            half = _half(node, plain.astype(np.float32), head_dim)
            rounding = max(rounding, ROUNDING[value.dtype])
            if first == 0 and not (np.all(half[0] == 1) or np.all(half[0] == 0)):
                raise _stranger(node, value)
            if not any(np.array_equal(half, table) for table in tables):
                tables.append(half)
        else:
            raise _stranger(node, value)
    if len(tables) != 2:
        reason = (
            f"the graph reads {len(tables)} tables by position, where a rotation has one of cosines and one of sines"
        )
        raise LlamacError("LLC0957", "rope", reason, "write the rotation as transformers' LlamaForCausalLM does")
    if first == 0:
        tables.sort(key=lambda table: -float(table[0, 0]))
    numbers = [value for value in held if value.numel() == head_dim // 2 and not value.is_complex()]
    found = [_plain(value).astype(np.float32).reshape(-1) for value in numbers]
    known = [row for row in found if row.min() > 0 and row[0] > row[-1]] if before is None else [before]
    try:
        return read_frequencies(tables[0], tables[1], known, rounding, first)
    except LlamacError:
        if first == 0:
            raise
        return read_frequencies(tables[1], tables[0], known, rounding, first)


def _real(edge: dict[Node, torch.Tensor]) -> Iterator[tuple[Node, torch.Tensor]]:
    """The tensors, complex ones as their real and their imaginary parts: cosines and sines."""
    for node, value in edge.items():
        for part in (value.real, value.imag) if value.is_complex() else (value,):
            yield node, part


def _plain(value: torch.Tensor, rows: int = 0) -> NDArray[Any]:
    """The values without axes of one; an axis over a batch, whose rows must be the same, counts as one.

    What is left of a table with one row, where `rows` is 1, stays a row.
    """
    held = value.detach().cpu()
    held = held.float() if held.is_floating_point() else held
    plain = held.numpy()
    if plain.ndim > 2 and plain.shape[0] > 1 and (plain == plain[:1]).all():
        plain = plain[:1]
    squeezed: NDArray[Any] = plain.squeeze()
    return squeezed[None] if rows == 1 and squeezed.ndim == 1 else squeezed


def _is_mask(plain: NDArray[Any], call: CallShape) -> bool:
    """Whether it says which columns the new tokens see: those before them, and maybe places that are still empty."""
    if plain.ndim != 2 or len(plain) != call.columns or plain.shape[1] < call.total:
        return False
    if plain.dtype == np.bool_:
        return True
    # A row of zeros that is wider is one of sines.
    hidden = plain <= HIDDEN
    return bool(((plain == 0) | hidden).all()) and (plain.shape[1] == call.total or bool(hidden.any()))


def _check_causal(node: Node, plain: NDArray[Any], call: CallShape) -> None:
    visible = plain if plain.dtype == np.bool_ else plain > HIDDEN
    causal = np.tril(np.ones(plain.shape, bool), call.past)
    if not np.array_equal(visible, causal) and not (plain.dtype == np.bool_ and np.array_equal(~visible, causal)):
        reason = f"the mask of {len(plain)} tokens is not the causal one, in which a token sees all before it"
        raise LlamacError("LLC0957", node.name, reason, "llamac compiles causal attention over the whole text")


def _half(node: Node, table: Floats, head_dim: int) -> Floats:
    """The columns of the pairs, each once."""
    if table.shape[-1] == head_dim // 2:
        return table
    for one, other in ((table[:, : head_dim // 2], table[:, head_dim // 2 :]), (table[:, ::2], table[:, 1::2])):
        if np.array_equal(one, other):
            return np.ascontiguousarray(one)
    raise LlamacError("LLC0957", node.name, "the two halves of a rotary table differ", "turn both of a pair alike")


def _stranger(node: Node, value: torch.Tensor) -> LlamacError:
    reason = f"the graph reads a fixed tensor {value.dtype} {list(value.shape)} that is neither mask nor rotary table"
    return LlamacError("LLC0957", node.name, reason, "only the causal mask and rotary tables may depend on positions")

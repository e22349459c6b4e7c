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

Floats = NDArray[np.float32]

HIDDEN = -1e4
"""What is added to a score so that its key weighs nothing; f16 goes to -65504."""

ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""How far a cosine held in this type is from one computed in f32, at most."""


def frequencies_of(edge: dict[Node, torch.Tensor], held: Sequence[torch.Tensor], columns: int, head_dim: int) -> Floats:
    """The rotary frequencies behind the fixed tensors of a call with `columns` tokens, all of which are accounted for.

    edge: the fixed tensors that the rest of the graph reads. held: other fixed tensors, among which the frequencies may
    be. LLC0957 for a mask that is not causal and for a tensor that has no place in a Llama; LLC0318 for other tables.
    """
    cosines: Floats | None = None
    sines: Floats | None = None
    rounding = 0.0
    for node, value in _real(edge):
        plain = _plain(value)
        if not plain.ndim:
            continue
        if _is_mask(plain, columns):
            _check_causal(node, plain)
        elif plain.shape[0] == columns and plain.shape[-1] in (head_dim, head_dim // 2) and plain.ndim == 2:
            half = _half(node, plain.astype(np.float32), head_dim)
            rounding = max(rounding, ROUNDING[value.dtype])
            if np.all(half[0] == 1):
                cosines = half
            elif np.all(half[0] == 0):
                sines = half
            else:
                raise _stranger(node, value)
        else:
            raise _stranger(node, value)
    if cosines is None or sines is None:
        reason = "the graph reads no tables of cosines and sines by position"
        raise LlamacError("LLC0957", "rope", reason, "write the rotation as transformers' LlamaForCausalLM does")
    numbers = [value for value in held if value.numel() == head_dim // 2 and not value.is_complex()]
    known = [_plain(value).astype(np.float32).reshape(-1) for value in numbers]
    return read_frequencies(cosines, sines, known, rounding)


def _real(edge: dict[Node, torch.Tensor]) -> Iterator[tuple[Node, torch.Tensor]]:
    """The tensors, complex ones as their real and their imaginary parts: cosines and sines."""
    for node, value in edge.items():
        for part in (value.real, value.imag) if value.is_complex() else (value,):
            yield node, part


def _plain(value: torch.Tensor) -> NDArray[Any]:
    """The values without axes of one; an axis over a batch, whose rows must be the same, counts as one."""
    held = value.detach().cpu()
    held = held.float() if held.is_floating_point() else held
    plain = held.numpy()
    if plain.ndim > 2 and plain.shape[0] > 1 and (plain == plain[:1]).all():
        plain = plain[:1]
    squeezed: NDArray[Any] = plain.squeeze()
    return squeezed


def _is_mask(plain: NDArray[Any], columns: int) -> bool:
    if plain.shape != (columns, columns):
        return False
    return plain.dtype == np.bool_ or bool(plain.min() <= HIDDEN)


def _check_causal(node: Node, plain: NDArray[Any]) -> None:
    visible = plain if plain.dtype == np.bool_ else plain > HIDDEN
    causal = np.tril(np.ones(plain.shape, bool))
    shown = plain.dtype == np.bool_ or bool((plain[causal] == 0).all())
    if not shown or not (np.array_equal(visible, causal) or np.array_equal(~visible, causal)):
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

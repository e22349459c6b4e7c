"""What a graph is called with: its inputs in order, with mask, positions and cache as `generate` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from .graph_inputs import CallShape, GraphInputs


def arguments_of(
    inputs: GraphInputs,
    ids: torch.Tensor,
    shown: torch.Tensor | None = None,
    past: int = 0,
    first: int | None = None,
    held: Mapping[Node, torch.Tensor] | None = None,
) -> list[Any]:
    """The inputs of a call with these ids [batch, new] or [new], after `past` tokens in the cache.

    shown: which columns hold tokens, [batch, past + new] or [past + new]; all unless given. first: the position of the
    first new token where all are shown. held: keys and values of the cache, zeros unless given.
    """
    call = CallShape(ids.shape[0] if ids.ndim == 2 else 1, past, ids.shape[-1])
    if shown is None:
        shown = torch.ones((*ids.shape[:-1], call.total), dtype=torch.int64)
    values: dict[Node, Any] = {inputs.ids: ids, **inputs.weights, **inputs.tables}
    values |= {node: inputs.size(node, call) for node in inputs.sizes}
    values |= {node: torch.tensor(past, dtype=value.dtype) for node, value in inputs.counters.items()}
    values |= held if held is not None else {node: torch.zeros(shape) for node, shape in past_shapes(inputs, call)}
    for node, value in inputs.pasts.items():
        values[node] = values[node].to(value.dtype)
    if inputs.mask is not None:
        values[inputs.mask] = _mask(inputs.mask.meta["example_value"], shown, call, inputs.capacity)
    if inputs.positions is not None:
        counted = (shown.long().cumsum(-1) - 1).clamp(min=0)[..., past:] + (0 if first is None else first - past)
        shape = inputs.positions.meta["example_value"].shape
        rows = counted if len(shape) == counted.ndim else counted[0]
        values[inputs.positions] = rows[:1] if rows.ndim == 2 and isinstance(shape[0], int) and shape[0] == 1 else rows
    return [values[node] for node in inputs.places]


def past_shapes(inputs: GraphInputs, call: CallShape) -> list[tuple[Node, list[int]]]:
    """The shape of each tensor of keys or values that comes in."""
    found = []
    for append in inputs.appends:
        if append.held in inputs.pasts:
            shape = list(inputs.pasts[append.held].shape)
            shape[0] = call.batch
            shape[append.axis] = shape[append.axis] if append.in_place else call.past
            found.append((append.held, shape))
    return found


def _mask(like: torch.Tensor, shown: torch.Tensor, call: CallShape, capacity: int | None) -> torch.Tensor:
    """Columns as they are, or the scores that they make: a token sees those before it, and itself."""
    if like.ndim < 4:
        return shown.to(like.dtype)
    seen = torch.zeros((call.batch, 1, call.columns, capacity or call.total), dtype=torch.bool)
    causal = torch.ones((call.columns, call.total), dtype=torch.bool).tril(call.past)
    itself = torch.eye(call.columns, call.total, dtype=torch.bool).roll(call.past, 1)
    seen[..., : call.total] = causal & (shown.bool().reshape(call.batch, 1, 1, -1) | itself)
    rows = seen[:1] if isinstance(like.shape[0], int) and like.shape[0] == 1 else seen
    if like.dtype == torch.bool:
        return rows
    return torch.zeros(rows.shape, dtype=like.dtype).masked_fill(~rows, torch.finfo(like.dtype).min)

"""A compiled `forward(ids) -> logits`: the callable that takes the place of a graph of Dynamo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llamac.errors import LlamacError

from .columns import check_positions, real_columns
from .graph_inputs import GraphInputs
from .prefixes import Prefixes


class CompiledForward:
    """Calls the artifact with the ids among the graph's inputs. `last`: the graph gives the last column's logits alone.

    The weights are in the artifact: a call with others, or with values changed in place, is LLC0958.
    """

    def __init__(self, inputs: GraphInputs, prefixes: Prefixes, shape: OutputShape) -> None:
        self._inputs = inputs
        self._prefixes = prefixes
        self._shape = shape
        places = inputs.places
        self._ids = places[inputs.ids]
        self._mask = None if inputs.mask is None else places[inputs.mask]
        self._positions = None if inputs.positions is None else places[inputs.positions]
        held = {**inputs.weights, **inputs.tables}
        self._weights = [(places[node], node.name, _state(value)) for node, value in held.items()]

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor]:
        for place, name, state in self._weights:
            if _state(inputs[place]) != state:
                reason = "its values have changed since the module was compiled, and the code holds the old ones"
                raise LlamacError("LLC0958", name, reason, "call torch.compiler.reset() and compile the module again")
        mask, positions = (None if at is None else inputs[at] for at in (self._mask, self._positions))
        return (self.logits(inputs[self._ids], mask, positions),)

    def logits(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits for ids [batch, columns] or [columns] in the shape and dtype of the graph's."""
        rows = np.atleast_2d(ids.detach().cpu().numpy().astype(np.int64))
        shown = None if mask is None else mask.reshape(rows.shape)
        real = real_columns(shown, np.zeros((len(rows), 0), bool), rows.shape[1])
        check_positions(positions, [0] * len(rows), real)
        found = torch.from_numpy(self._prefixes.logits(rows, real, self._shape.last))
        return self._shape.put(found, ids.ndim).to(ids.device)


class OutputShape:
    """The form in which a graph gives logits, read off an example; LLC0957 when there are none."""

    def __init__(self, output: torch.Tensor, ids: Sequence[int], vocabulary: int) -> None:
        shape, batch = tuple(output.shape), list(ids[:-1])
        self.dtype = output.dtype
        self.squeezed = shape == (*batch, vocabulary)
        self.last = self.squeezed or (ids[-1] != 1 and shape == (*batch, 1, vocabulary))
        if not self.last and shape != (*ids, vocabulary):
            reason = f"it returns {list(shape)} for ids {list(ids)}: neither the logits of all tokens nor of the last"
            raise LlamacError("LLC0957", "the graph", reason, "return logits [batch, tokens, vocabulary]")

    def put(self, logits: torch.Tensor, rank: int) -> torch.Tensor:
        """Logits [batch, columns or 1, vocabulary] for ids of that rank, as the graph would give them."""
        found = logits.to(self.dtype)
        found = found[:, 0] if self.squeezed else found
        return found[0] if rank == 1 else found


def _state(weight: torch.Tensor) -> tuple[float, int]:
    """What differs when the values do: where they lie, and how often they were written to; of one number itself.

    Dynamo makes tensors of a module's plain numbers, new ones for each call.
    """
    if not weight.ndim:
        return weight.item(), 0
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version

"""A compiled forward: the callables that take the place of a graph of Dynamo, without and with a cache outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from llamac.errors import LlamacError

from .cache_graph import cache_graph
from .graph_inputs import GraphInputs
from .loaded import LoadedCode
from .outside import NewTokens
from .seen_columns import offsets_of, seen_columns
from .weight_states import WeightStates


class CompiledForward:
    """`forward(ids) -> logits` without a cache."""

    def __init__(self, inputs: GraphInputs, loaded: LoadedCode, shape: OutputShape) -> None:
        self._weights = WeightStates(inputs)
        self._loaded = loaded
        self._shape = shape
        self._places = [None if n is None else inputs.places[n] for n in (inputs.ids, inputs.mask, inputs.positions)]

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor]:
        self._weights.check(inputs)
        ids, mask, positions = (None if at is None else inputs[at] for at in self._places)
        rows = _rows(ids)
        real = seen_columns(mask, len(rows), 0, rows.shape[1])
        offsets_of(positions, real, 0)  # where a text begins makes no difference
        found = self._loaded.prefixes.logits(rows, real, self._shape.kept(rows.shape[1]))
        return (self._shape.put(torch.from_numpy(found), ids),)


class CompiledStep:
    """`forward(ids, cache) -> logits, cache`: compiled code between what the graph does with the cache's tensors.

    kinds: the place of keys and of values among the two appends of a layer, (0, 1) or (1, 0).
    """

    def __init__(
        self,
        graph: GraphModule,
        inputs: GraphInputs,
        logits: Node,
        loaded: LoadedCode,
        shape: OutputShape,
        kinds: tuple[int, int],
    ) -> None:
        self._weights = WeightStates(inputs)
        self._loaded = loaded
        self._shape = shape
        self._kinds = kinds
        self._appends = inputs.appends
        self._pasts = [inputs.places[node] for node in inputs.pasts]
        self._graph = cache_graph(graph, inputs, logits, self._step)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        self._weights.check(inputs)
        # Tensors of inference mode do not tell when they are written to: none are made here unless they come in.
        among = torch.is_inference_mode_enabled() and any(inputs[at].is_inference() for at in self._pasts)
        with self._loaded.caches.calls, torch.inference_mode(among), torch.no_grad():
            try:
                outputs, caches = self._graph(*inputs)
                self._loaded.caches.remember(caches)
            finally:
                self._loaded.caches.forget()
        return tuple(outputs)

    def _step(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        index: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> list[torch.Tensor]:
        rows = _rows(ids)
        axes = [append.axis for append in self._appends]
        pasts = [t if axis == 2 else t.transpose(1, 2) for t, axis in zip(tensors, axes, strict=False)]
        past = int(index[0]) if index is not None else pasts[0].shape[2] if pasts else 0
        real = seen_columns(mask, len(rows), past, rows.shape[1])
        by_kind = [pasts[start + kind] for start in range(0, len(pasts), 2) for kind in self._kinds]
        keep = self._shape.kept(rows.shape[1])
        call = NewTokens(rows, real, offsets_of(positions, real, past), keep, by_kind, tensors)
        logits, new = self._loaded.caches.step(call)
        found = [self._shape.put(logits, ids)]
        for place, append in enumerate(self._appends):
            part = new[self._kinds.index(place % 2), place // 2].to(append.dtype)
            found.append(part if append.axis == 2 else part.transpose(1, 2))
        return found


class OutputShape:
    """The form in which a graph gives logits, read off an example; LLC0957 when there are none."""

    def __init__(self, output: torch.Tensor, ids: Sequence[int], vocabulary: int) -> None:
        shape, batch = tuple(output.shape), tuple(ids[:-1])
        self.dtype = output.dtype
        self.squeezed = shape == (*batch, vocabulary)
        self._last = 1 if self.squeezed else 0
        if not self.squeezed and shape != (*ids, vocabulary):
            if (*shape[:-2], shape[-1]) != (*batch, vocabulary) or not 0 < shape[-2] < ids[-1]:
                reason = (
                    f"it returns {list(shape)} for ids {list(ids)}: not the logits of all tokens or of the last ones"
                )
                raise LlamacError("LLC0957", "the graph", reason, "return logits [batch, tokens, vocabulary]")
            self._last = int(shape[-2])

    @property
    def all(self) -> bool:
        """Whether every column has logits."""
        return not self._last

    def kept(self, columns: int) -> int:
        """How many last columns have logits, of so many."""
        return min(columns, self._last or columns)

    def put(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits [batch, kept columns, vocabulary] for these ids, as the graph would give them."""
        found = logits.to(self.dtype)
        found = found[:, 0] if self.squeezed else found
        return (found[0] if ids.ndim == 1 else found).to(ids.device)


def _rows(ids: torch.Tensor) -> NDArray[np.int64]:
    return np.atleast_2d(ids.detach().cpu().numpy().astype(np.int64))

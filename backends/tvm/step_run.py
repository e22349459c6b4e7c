"""Runs a lowered step in this process, from token ids to logits: for comparing, not for serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from llamac.ir.graph import Module
from llamac.ir.kv_groups import without_pictures
from llamac.ir.types import CacheType

from .build import build_executable, this_machine
from .lowering import Lowered, held, lower
from .values import STORED

Array = NDArray[Any]
Floats = NDArray[np.float32]


class StepRun:
    """A kernel-level module compiled by TVM, with its weights (name -> array as the IR has it)."""

    def __init__(self, module: Module, weights: Mapping[str, Array]) -> None:
        self._machine = _Machine(module, weights)
        self.lowered = self._machine.lowered
        self._graph = module.step

    def empty_past(self, vision_tokens: int = 0) -> list[Array]:
        """The past of a sequence that has none; in caches of vision tokens zeros for so many."""
        caches = {a.name: a.type for a in self._graph.arguments if isinstance(a.type, CacheType)}
        found = []
        for place in self.lowered.past:
            cache = caches[place.cache]
            length = vision_tokens if cache.cross else 0
            shape = (cache.kv_heads, length, cache.head_dim)
            found.append(np.zeros(shape, STORED[held(cache, 0).dtype.name]))
        return found

    def forward(
        self,
        ids: Sequence[int],
        past: Sequence[Array],
        start: int = 0,
        pictures: Mapping[str, Array] | None = None,
    ) -> tuple[Floats, list[Array]]:
        """Logits of tokens at positions start .., and what the layers have of keys and values then."""
        count = len(ids)
        given: dict[str, Any] = {
            "token_ids": np.asarray(ids, np.int32),
            "positions": np.arange(start, start + count, dtype=np.int32),
            "logit_rows": np.arange(count, dtype=np.int32),
            **without_pictures(self._graph, count),
            **(pictures or {}),
        }
        inputs = [given[name] for name in self.lowered.inputs]
        logits, *present = self._machine.run([*inputs, *past])
        return logits, present


class EncoderRun:
    """A kernel-level image encoder compiled by TVM, with its weights (name -> array as the IR has it)."""

    def __init__(self, module: Module, weights: Mapping[str, Array]) -> None:
        self._machine = _Machine(module, weights)

    def encode(self, pixels: Floats, aspect_ratio: int = 0, tokens: int = 0) -> list[Array]:
        """What one pass gives for pixels [tiles, channels, height, width]: the embeddings of a tile, [rows, width].

        Where all tiles of a picture are encoded together, the keys and values of its first `tokens` vision tokens
        instead, layer by layer, [KV heads, tokens, head size]; aspect_ratio is the number of the picture's shape.
        """
        given = {
            "pixels": pixels,
            "aspect_ratio": np.array([aspect_ratio], np.int32),
            "positions": np.arange(tokens, dtype=np.int32),
        }
        return self._machine.run([given[name] for name in self._machine.lowered.inputs])


class _Machine:
    """TVM's virtual machine over the main graph of a module."""

    def __init__(self, module: Module, weights: Mapping[str, Array]) -> None:
        self.lowered: Lowered = lower(module)
        self._weights = [
            tvm.runtime.tensor(np.ascontiguousarray(weights[w.weight]).view(w.dtype).reshape(w.shape))
            for w in self.lowered.weights
        ]
        machine = relax.VirtualMachine(build_executable(self.lowered, this_machine()), tvm.cpu())
        self._run = machine[self.lowered.name]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """The results for the inputs and the past, in their order."""
        return [part.numpy() for part in self._run(*self._weights, *map(tvm.runtime.tensor, arrays))]


def step_logits(module: Module, weights: Mapping[str, Array], ids: Sequence[int]) -> Floats:
    """The logits of every token of one sequence, computed in one step."""
    run = StepRun(module, weights)
    # Rows that see no vision tokens need a cache of them all the same.
    return run.forward(ids, run.empty_past(vision_tokens=1))[0]

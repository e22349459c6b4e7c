"""Compiles a model so that every intermediate value and every weight ends at a page, with an unused page behind it.

In the artifact as it is shipped values share memory, so a kernel that reads or writes beyond one of them may go
unnoticed. Here nothing is shared: `guarded_run.py` makes the unused pages inaccessible, and the first byte too many
ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from llamac.analysis.weight_plan import PlacedWeight, plan_weights
from llamac.ir.graph import Module

PAGE = 4096


@dataclass
class Gaps:
    """Offsets of the pages that nothing may touch, in the arena and in the weights."""

    arena: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)


def _behind(gaps: list[int], size: int) -> int:
    """The offset of `size` bytes that end at a page behind all gaps so far; the page after them is the next gap."""
    start = gaps[-1] + PAGE if gaps else 0
    end = start + -(-size // PAGE) * PAGE
    gaps.append(end)
    return end - size


@contextmanager
def spread_memory() -> Iterator[Gaps]:
    """While this is open, what is compiled lies spread out; validation must be off."""
    gaps = Gaps()

    def find(planner: Any, size: int) -> int:
        offset = _behind(gaps.arena, size)
        planner.end = max(planner.end, offset + size)
        return offset

    def plan(*modules: Module, **options: Any) -> Sequence[PlacedWeight]:
        gaps.weights.clear()
        found = plan_weights(*modules, **options)
        return [replace(p, offset=_behind(gaps.weights, -(-p.nbytes // 64) * 64)) for p in found]

    place = mock.patch("llamac.passes.plan_memory._Planner._find", find)
    with place, mock.patch("llamac.compiled_graph.plan_weights", plan):
        yield gaps

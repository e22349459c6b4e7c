"""Runs the modules of all ranks side by side: the meaning of a sharded module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from llamac.errors import LlamacError

from .definition import Array

Result = TypeVar("Result")

_LONGEST = 600.0
"""Seconds that a rank waits for the others before it is sure that they will not come."""


class Ranks:
    """Where the ranks meet: each gives an array and gets those of all, in the order of the ranks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count)
        self._given: list[tuple[str, Array] | None] = [None] * count

    def exchange(self, rank: int) -> Callable[[str, Array], list[Array]]:
        """What the interpreter of `rank` calls at every collective (LLC0406 where the ranks differ in it)."""

        def exchanged(kind: str, mine: Array) -> list[Array]:
            self._given[rank] = (kind, mine)
            self._barrier.wait(_LONGEST)
            given = [g for g in self._given if g is not None]
            self._barrier.wait(_LONGEST)  # nobody gives anew before all have looked
            kinds = {(name, array.shape) for name, array in given}
            if len(kinds) != 1:
                reason = f"the ranks come to different collectives: {sorted(map(str, kinds))}"
                raise LlamacError("LLC0406", f"rank {rank}", reason)
            return [array for _, array in given]

        return exchanged

    def run(self, work: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of one piece of work a rank, done side by side; the first error of any ends all."""

        def guarded(piece: Callable[[], Result]) -> Result:
            try:
                return piece()
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            jobs = [pool.submit(guarded, piece) for piece in work]
        errors = [e for job in jobs if (e := job.exception()) is not None]
        self._barrier.reset()
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return [job.result() for job in jobs]


def alone(kind: str, mine: Any) -> list[Any]:
    """The exchange of an interpreter that runs one rank only (LLC0406)."""
    raise LlamacError("LLC0406", kind, "a sharded module means something with all its ranks only (llamac.ir.ranks)")

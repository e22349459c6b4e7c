"""The ledger of a file to which several sides are added at once: what each of them says is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llamac.retarget import Side, Work, _ledger
from llamac.transform.base import LedgerEntry

OLD = LedgerEntry("default", "cache", "f16", "no --kv was given")
NO_SOURCE = LedgerEntry("absent", "tvm:metal", "the kernel step_3 has no source", "it calls a library")
REPACKED = LedgerEntry(
    "repacked", "weights/gpu-rows16.bin", "packed from the weights of cpu-panel16", "llamac retarget"
)


def _graph(*entries: LedgerEntry) -> Any:
    return SimpleNamespace(context=SimpleNamespace(ledger=list(entries)))


def _work(sides: list[Side], made: tuple[str, ...]) -> Work:
    stored: Any = SimpleNamespace(manifest={"ledger": [OLD.to_json()]})
    change: Any = None
    guests: Any = SimpleNamespace(made=made)
    return Work(stored, change, {side.name: side for side in sides}, guests)


def test_what_every_new_side_says_is_kept() -> None:
    held: Any = object()
    sides = [Side("cpu", _graph(OLD, NO_SOURCE)), Side("gpu", _graph(OLD, REPACKED), held)]
    assert _ledger(_work(sides, ("tvm:metal",))) == [e.to_json() for e in (OLD, NO_SOURCE, REPACKED)]


def test_code_of_a_layout_that_is_there_says_nothing_new() -> None:
    assert _ledger(_work([Side("cpu", _graph(OLD))], ())) == [OLD.to_json()]

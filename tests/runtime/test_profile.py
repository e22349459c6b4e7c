"""The arithmetic of profiles: what a step asks for, what an op moved, and how near its limit it came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.loader import load
from llamac.runtime.profile import Phase, Profile, ProfiledOp, StepWork
from llamac.runtime.profiler import step_work
from llamac.runtime.run_plan import CachePlan
from llamac.runtime.step_pictures import StepPictures

FULL, CHUNKED, CROSS = CachePlan(0, (0,), 1), CachePlan(8, (1,), 1), CachePlan(0, (2,), 1, cross=True)


def _int32(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


def _op(kind: str, **changes: object) -> ProfiledOp:
    plain = {"weight_bytes": 0, "token_bytes": 0, "key_bytes": 0, "operations": 0, "per": 0, "cache": 0}
    rest = {"unit": "", "experts": 0, "chosen": 0}
    return ProfiledOp("layer", kind, "w", "4x4", **(plain | rest | changes))  # type: ignore[arg-type]


def test_what_a_step_asks_for() -> None:
    """Two sequences: positions 6..9 of one, 20 of the other. Chunks of 8: 6, 7 see 0..7, 8 and 9 see from 8 on."""
    positions, owners = _int32(6, 7, 8, 9, 20), _int32(0, 0, 0, 0, 1)
    work = step_work([FULL, CHUNKED, CROSS], positions, owners, 2)
    assert (work.tokens, work.logit_rows) == (5, 2)
    assert work.keys == (10 + 21, 10 + 5, 0)
    assert work.row_keys == (7 + 8 + 9 + 10 + 21, 7 + 8 + 1 + 2 + 5, 0)


def test_vision_tokens_that_a_step_sees() -> None:
    pictures = StepPictures(vision_start=_int32(0, 0, 16), vision_stop=_int32(16, 16, 40))
    work = step_work([FULL, CROSS], _int32(3, 4, 9), _int32(0, 0, 1), 0, pictures)
    assert work.keys[1] == 16 + 24
    assert work.row_keys[1] == 16 + 16 + 24


def _profile(ops: list[ProfiledOp], times: list[list[int]], works: list[StepWork]) -> Profile:
    profile = Profile(ops, read_bytes_per_second=1e9, peaks={"int8": 1e12, "f32": 1e11})
    phase = profile.phases.setdefault("decode", Phase(np.zeros((len(ops), 3), np.uint64)))
    for work in works:
        phase.add(work, np.array(times, np.uint64))
    return profile


def test_bytes_operations_and_limits() -> None:
    """Two steps of three tokens, in which 4 layers read 1 MB each and attend to 100 keys of 256 bytes."""
    linear = _op("linear", weight_bytes=10**6, operations=2 * 10**6, per=1, unit="int8")
    attend = _op("attend", key_bytes=256, operations=512, per=3, unit="f32")
    norm = _op("norm", operations=64, per=1)
    head = _op("head", weight_bytes=8 * 10**6, operations=10**9, per=2, unit="int8")
    times = [[4, 8_000_000, 1_000_000], [4, 2_000_000, 0], [4, 1000, 1000], [1, 10_000_000, 0]]
    profile = _profile([linear, attend, norm, head], times, [StepWork(3, 1, (100,), (300,))] * 2)
    rows = {row.op.kind: row for row in profile.rows("decode")}
    assert [row.op.kind for row in profile.rows("decode")] == ["head", "linear", "attend", "norm"]
    assert (rows["linear"].calls, rows["linear"].bytes) == (8, 8 * 10**6)
    assert rows["linear"].operations == 2 * 10**6 * 6 * 4
    assert rows["linear"].seconds == pytest.approx(0.018)
    assert rows["linear"].waited == pytest.approx(0.002)
    assert (rows["linear"].limit, rows["linear"].fraction) == ("read", pytest.approx(0.008 / 0.018))
    assert (rows["attend"].bytes, rows["attend"].operations) == (256 * 200 * 4, 512 * 600 * 4)
    assert (rows["norm"].limit, rows["norm"].fraction) == ("", None)
    assert (rows["head"].operations, rows["head"].limit) == (2 * 10**9, "read")
    assert profile.phases["decode"].seconds == pytest.approx(2 * 0.021002)


def test_the_slower_limit_bounds_an_op() -> None:
    op = _op("linear", weight_bytes=10**6, operations=10**10, per=1, unit="int8")
    (row,) = _profile([op], [[1, 40_000_000, 0]], [StepWork(1, 1, (0,), (0,))]).rows("decode")
    assert (row.limit, row.fraction) == ("int8", pytest.approx(0.25))


def test_of_experts_only_the_chosen_are_read() -> None:
    op = _op("experts", weight_bytes=16 * 10**6, experts=16, chosen=1)
    (row,) = _profile([op], [[1, 1, 0]], [StepWork(1, 1, (0,), (0,))]).rows("decode")
    assert row.bytes == 10**6
    (row,) = _profile([op], [[1, 1, 0]], [StepWork(2, 1, (0,), (0,))]).rows("decode")
    assert row.bytes == pytest.approx(16e6 * (1 - (15 / 16) ** 2))


def test_the_tables_show_every_op_and_its_limit() -> None:
    op = _op("linear", weight_bytes=10**6, operations=10**10, per=1, unit="int8")
    idle = _op("never")
    profile = _profile([op, idle], [[1, 40_000_000, 4_000_000], [0, 0, 0]], [StepWork(1, 1, (0,), (0,))])
    text = profile.text()
    assert "decode: 1 steps, 1 tokens, 44.0 ms, 44.000 ms a step" in text
    assert "read 1.0 GB/s, int8 1000 Gop/s" in text
    assert [line.split() for line in text.splitlines() if "4x4" in line] == [
        ["linear", "4x4", "w", "1", "44.00", "100.0%", "9%", "0.0", "227.3", "23%", "int8"]
    ]
    assert "never" not in text


def test_code_without_times_is_refused(toy_artifact: Path) -> None:
    with (
        load(toy_artifact) as model,
        pytest.raises(LlamacError, match=r"LLC0803.*no function llamac_"),
        model.profile(),
    ):
        pass

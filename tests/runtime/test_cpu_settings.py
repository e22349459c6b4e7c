"""Threads, pinning and memory of the CPU device: what may be asked for, and what a machine says about itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamac.cli.options import parse_processors
from llamac.errors import LlamacError
from llamac.runtime import cpu_settings, host_cpu
from llamac.runtime.cpu_memory import huge_memory, memory_nodes, ranges_of
from llamac.runtime.cpu_settings import MOST_THREADS, CpuSettings, settle_cpu
from llamac.runtime.loader import load


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores with two processors each, numbered as Linux does, all but the last core allowed."""
    monkeypatch.setattr(cpu_settings, "allowed_cpus", lambda: [0, 1, 2, 4, 5, 6])
    monkeypatch.setattr(cpu_settings, "one_cpu_a_core", lambda: [0, 1, 2])
    monkeypatch.setattr(cpu_settings, "usable_threads", lambda: 3)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, CpuSettings(3)),
        ({"threads": 7}, CpuSettings(7)),
        ({"pin": True}, CpuSettings(3, (0, 1, 2))),
        ({"pin": True, "threads": 2}, CpuSettings(2, (0, 1))),
        ({"pin": True, "threads": 5}, CpuSettings(5, (0, 1, 2, 4, 5))),
        ({"pin": [5, 0]}, CpuSettings(2, (5, 0))),
        ({"pin": [6], "threads": 1}, CpuSettings(1, (6,))),
        ({"weights": "copy", "first_touch": True}, CpuSettings(3, None, True, True)),
    ],
)
def test_settings(given: dict[str, Any], settled: CpuSettings) -> None:
    assert settle_cpu(**given) == settled


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "mmap"}, "weights.*'mmap' is neither map nor copy"),
        ({"pin": True, "threads": 7}, "7 threads cannot have a processor each: this process may use 6"),
        ({"pin": []}, "no list of different processors"),
        ({"pin": [1, 1]}, "no list of different processors"),
        ({"pin": ["1"]}, "no list of different processors"),
        ({"pin": [0, 3]}, "may not use processor 3, only 0, 1, 2, 4, 5, 6"),
        ({"pin": [0, 1], "threads": 3}, "2 processors are named for 3 threads"),
        ({"threads": 257}, "257 threads for one model; the code runs at most 256"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LlamacError, match=f"LLC0811.*{message}"):
        settle_cpu(**given)


def test_a_machine_of_many_cores_runs_as_many_threads_as_the_code_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = list(range(384))
    monkeypatch.setattr(cpu_settings, "allowed_cpus", lambda: processors)
    monkeypatch.setattr(cpu_settings, "one_cpu_a_core", lambda: processors)
    monkeypatch.setattr(cpu_settings, "usable_threads", lambda: 384)
    pool = (Path(__file__).parents[2] / "backends/cpu/c/pool.h").read_text(encoding="utf-8")
    assert f"threads > {MOST_THREADS}" in pool
    assert settle_cpu() == CpuSettings(MOST_THREADS)
    assert settle_cpu(pin=True).pinned == tuple(range(MOST_THREADS))


@pytest.mark.parametrize(
    ("text", "found"), [(None, False), ("auto", True), ("0", [0]), ("0,2-4", [0, 2, 3, 4]), ("7,1", [7, 1])]
)
def test_the_option_for_processors(text: str | None, found: list[int] | bool) -> None:
    assert parse_processors(text) == found


@pytest.mark.parametrize("text", ["", "0,", "a", "1-", "-1", "0,auto"])
def test_no_processors(text: str) -> None:
    with pytest.raises(LlamacError, match="LLC0101 --pin"):
        parse_processors(text)


def test_code_that_cannot_pin_or_copy_is_refused(toy_artifact: Path) -> None:
    first = host_cpu.allowed_cpus()[0]
    with pytest.raises(LlamacError, match=r"LLC0803.*no function llamac_pin"):
        load(toy_artifact, pin=[first])
    with pytest.raises(LlamacError, match=r"LLC0803.*no function llamac_copy"):
        load(toy_artifact, weights="copy")


def test_pieces_of_the_weights() -> None:
    assert ranges_of([0, 64, 640], 1000) == [(0, 64), (64, 640), (640, 1000)]
    assert ranges_of([128], 256) == [(0, 128), (128, 256)]
    assert ranges_of([], 10) == [(0, 10)]


def test_huge_memory_is_aligned_zeroed_and_of_the_size() -> None:
    memory = huge_memory(5_000_000, "test")
    assert memory.nbytes == 5_000_000
    assert memory.ctypes.data % (2 << 20) == 0
    assert not memory.any()


def test_memory_nodes(tmp_path: Path) -> None:
    for name in ("node0", "node1", "node12"):
        (tmp_path / name).mkdir()
    (tmp_path / "nodes").write_text("")
    assert memory_nodes(tmp_path) == 3
    assert memory_nodes(tmp_path / "absent") == 1


@pytest.fixture
def group(tmp_path: Path) -> Callable[[str, dict[str, str]], float]:
    """The CPUs that a process may use, given its /proc/self/cgroup and files below /sys/fs/cgroup."""

    def quota(own: str, files: dict[str, str]) -> float:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return min(map(host_cpu._cgroup_quota, host_cpu._quota_files(tmp_path / "own", tmp_path / "mounted")))

    return quota


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "400000 100000\n"}, 1),
        (
            "4:memory:/x\n2:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("2:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:memory:/x\n", {"x/cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_quotas_of_all_groups_above_count(
    group: Callable[[str, dict[str, str]], float], own: str, files: dict[str, str], cpus: float
) -> None:
    assert group(own, files) == cpus


def test_no_more_threads_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cpu, "one_cpu_a_core", lambda: list(range(8)))
    monkeypatch.setattr(host_cpu, "_cgroup_quota", lambda path: 2.5)
    assert host_cpu.usable_threads() == 3
    monkeypatch.setattr(host_cpu, "_cgroup_quota", lambda path: 0.5)
    assert host_cpu.usable_threads() == 1
    monkeypatch.setattr(host_cpu, "_cgroup_quota", lambda path: math.inf)
    assert host_cpu.usable_threads() == 8

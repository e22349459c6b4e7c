"""Which code of an artifact a machine runs, and what it is told when it can run none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llamac.errors import LlamacError
from llamac.host import cpu_features
from llamac.runtime import host_cpu
from llamac.runtime.host_cpu import HostCpu, detect_host, pick_target, usable_threads
from llamac.runtime.run_plan import CodeTarget

OLD = HostCpu("x86_64", "linux", frozenset({"sse2", "avx2"}))
NEW = HostCpu("x86_64", "linux", frozenset({"sse2", "avx2", "avx512f", "avx512_vnni"}))
ARM = HostCpu("aarch64", "linux", frozenset({"asimd", "asimddp"}))


def _target(name: str, *requires: str, triple: str = "x86_64-linux-gnu.2.28") -> CodeTarget:
    return CodeTarget(name, "cpu", triple, requires, f"code/{name}.so", "cpu-panel16")


TARGETS = (
    _target("v3", "avx2"),
    _target("v4", "avx2", "avx512f", "avx512_vnni"),
    _target("arm", "asimd", triple="aarch64-linux-gnu.2.28"),
)


@pytest.mark.parametrize(("host", "name"), [(OLD, "v3"), (NEW, "v4"), (ARM, "arm")])
def test_the_best_that_fits_is_picked(host: HostCpu, name: str) -> None:
    assert pick_target(TARGETS, host).name == name


def test_a_target_can_be_named() -> None:
    assert pick_target(TARGETS, NEW, "v3").name == "v3"


def test_an_unknown_name_is_refused_with_the_near_one() -> None:
    with pytest.raises(LlamacError, match=r"LLC0801.*did you mean 'v3'"):
        pick_target(TARGETS, NEW, "v33")


def test_a_named_target_that_does_not_fit_names_the_missing_features() -> None:
    with pytest.raises(LlamacError, match=r"LLC0800.*v4 needs avx512f, avx512_vnni"):
        pick_target(TARGETS, OLD, "v4")


def test_nothing_fits_another_architecture() -> None:
    with pytest.raises(LlamacError, match=r"LLC0800.*v3 needs a x86_64 machine; v4 needs a x86_64 machine"):
        pick_target(TARGETS[:2], ARM)


def test_another_operating_system_does_not_fit() -> None:
    host = HostCpu("x86_64", "macos", NEW.features)
    with pytest.raises(LlamacError, match=r"LLC0800.*operating system of x86_64-linux"):
        pick_target(TARGETS[:1], host)


def test_this_machine_is_recognized() -> None:
    host = detect_host()
    assert host.architecture in ("x86_64", "aarch64")
    assert host.features & {"sse2", "asimd"}


def test_cpuinfo_of_each_architecture_is_read(tmp_path: Path) -> None:
    arm, intel = tmp_path / "arm", tmp_path / "intel"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd4f\n")
    intel.write_text("processor\t: 0\nflags\t\t: fpu avx2\nvmx flags\t: ept\n")
    assert cpu_features("aarch64", arm) == {"fp", "asimd", "i8mm"}
    assert cpu_features("x86_64", intel) == {"fpu", "avx2"}
    assert cpu_features("x86_64", tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(("text", "cpus"), [("max 100000", math.inf), ("150000 100000", 1.5), ("", math.inf)])
def test_the_quota_of_a_container_is_read(tmp_path: Path, text: str, cpus: float) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert host_cpu._cgroup_quota(path) == cpus


def test_at_least_one_thread_is_used() -> None:
    assert usable_threads() >= 1

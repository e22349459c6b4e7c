"""Targets as data rows: what code is generated for, and what a machine needs to run it."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean


@dataclass(frozen=True)
class Target:
    """One row. `triple` and `cpu` are the C compiler's names; `requires` are /proc/cpuinfo feature flags.

    `layout` names how weights lie in memory: targets that share it share the weights of an artifact.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    requires: tuple[str, ...]
    layout: str
    summary: str


_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_X86 = "x86_64-linux-gnu.2.28"
_ARM = "aarch64-linux-gnu.2.28"

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", "cpu", _X86, "x86_64_v3", _V3, "cpu-panel16", "AVX2 and FMA: Haswell, Zen 1 and later"),
        Target("x86-64-v4", "cpu", _X86, "x86_64_v4", _V4, "cpu-panel16", "AVX-512: Skylake-X, Zen 4 and later"),
        Target(
            "znver4",
            "cpu",
            _X86,
            "znver4",
            (*_V4, "avx512_vnni", "avx512_bf16", "avx512vbmi", "avx512_vbmi2"),
            "cpu-panel16",
            "AVX-512 with VNNI and BF16: Zen 4 and later",
        ),
        Target(
            "aarch64",
            "cpu",
            _ARM,
            "generic+dotprod",
            ("asimd", "asimddp"),
            "cpu-panel16",
            "NEON with integer dot products: Armv8.2 servers and boards from 2018 on",
        ),
    )
}
"""Target name -> row, CPU rows from the least to the most demanding."""


def find_target(name: str, host: Target | None = None) -> Target:
    """The row called `name`; `cpu` means `host` (LLC0603 with the near match when there is none)."""
    if name == "cpu" and host is not None:
        return host
    if name not in TARGETS:
        names = ["cpu", *TARGETS]
        raise LlamacError(
            "LLC0603", name, f"unknown target{did_you_mean(name, names)}", f"choose from {', '.join(names)}"
        )
    return TARGETS[name]


def best_target(architecture: str, features: frozenset[str]) -> Target:
    """The most demanding CPU row that a machine satisfies (LLC0604 when it satisfies none)."""
    rows = [t for t in TARGETS.values() if t.triple.startswith(architecture) and set(t.requires) <= features]
    if not rows:
        reason = f"no CPU target fits a {architecture} machine with its features"
        raise LlamacError("LLC0604", "cpu", reason, f"name a target: {', '.join(TARGETS)}")
    return rows[-1]

"""A profile as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .profile import OpProfile, Phase, Profile

_HEAD = f"{'calls':>8} {'ms':>9} {'%':>6} {'waited %':>8} {'GB/s':>7} {'Gop/s':>8}  of limit"


def profile_text(profile: Profile) -> str:
    """All phases, each with its kinds of ops and its ops, the longest first."""
    lines = [_limits(profile)]
    for name, phase in profile.phases.items():
        lines += ["", *_phase(profile, name, phase)]
    return "\n".join(lines)


def _limits(profile: Profile) -> str:
    peaks = [f"{unit} {rate / 1e9:.0f} Gop/s" for unit, rate in profile.peaks.items() if rate]
    return "limits measured here: " + ", ".join([f"read {profile.read_bytes_per_second / 1e9:.1f} GB/s", *peaks])


def _phase(profile: Profile, name: str, phase: Phase) -> Iterator[str]:
    seconds, rows = phase.seconds, profile.rows(name)
    each = f"{seconds / phase.steps * 1e3:.3f} ms a step"
    yield f"{name}: {phase.steps} steps, {phase.tokens} tokens, {seconds * 1e3:.1f} ms, {each}"
    kinds = profile.kinds(name)
    width = max(len(title) for title in [*kinds, *(row.op.title for row in rows)])
    yield f"  {'kind of op':<{width}} {_HEAD}"
    for kind, members in kinds.items():
        yield f"  {kind:<{width}} {_line(members, seconds)}"
    yield f"  {'all':<{width}} {_line(rows, seconds)}"
    yield f"  {'op':<{width}} {_HEAD}"
    for row in rows:
        yield f"  {row.op.title:<{width}} {_line([row], seconds)}"


def _line(rows: Sequence[OpProfile], total: float) -> str:
    """The sum of several ops; their fraction of the limit counts those that have one."""
    calls, seconds = sum(row.calls for row in rows), sum(row.seconds for row in rows)
    waited = sum(row.waited for row in rows)
    bounded = [row for row in rows if row.limit]
    spent = sum(row.seconds for row in bounded)
    limits = "/".join(dict.fromkeys(row.limit for row in bounded))
    fraction = f"{sum(row.limit_seconds for row in bounded) / spent:7.0%} {limits}" if spent else ""
    moved, operations = sum(row.bytes for row in rows), sum(row.operations for row in rows)
    rates = f"{_rate(moved, seconds):>7} {_rate(operations, seconds):>8}"
    return f"{calls:8d} {seconds * 1e3:9.2f} {seconds / total:6.1%} {waited / seconds:8.0%} {rates} {fraction}".rstrip()


def _rate(amount: int, seconds: float) -> str:
    return f"{amount / seconds / 1e9:.1f}" if amount else "-"

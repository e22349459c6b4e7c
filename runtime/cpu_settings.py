"""How the CPU device runs: threads, the processors they keep to, and where weights and memory lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamac.errors import LlamacError

from .host_cpu import allowed_cpus, one_cpu_a_core, usable_threads

WEIGHT_PLACES = ("map", "copy")
MOST_THREADS = 256
"""That the pool of the generated code takes (`backends/cpu/c/pool.h`); machines with more cores run this many."""


@dataclass(frozen=True)
class CpuSettings:
    """Checked settings of one model.

    threads: how many run a step. pinned: the processor of each thread, or None for any. copies_weights: weights lie in
    memory of this process, in huge pages where the system has them, not in the mapped file. first_touch: every thread
    touches its share of weights, arena and caches before all others, so that on machines with several memory nodes the
    memory lies near the processor that uses it.
    """

    threads: int
    pinned: tuple[int, ...] | None = None
    copies_weights: bool = False
    first_touch: bool = False


def settle_cpu(
    threads: int | None = None,
    pin: Sequence[int] | bool = False,
    weights: str = "map",
    first_touch: bool = False,
) -> CpuSettings:
    """The settings that `llamac.load` was asked for; LLC0811 for those that cannot be.

    pin: True keeps the threads to one processor of each core in turn, a list names the processor of each.
    """
    if weights not in WEIGHT_PLACES:
        raise LlamacError("LLC0811", "weights", f"{weights!r} is neither map nor copy", "give one of them")
    used, pinned = _settle_threads(threads, pin)
    return CpuSettings(used, pinned, weights == "copy", first_touch)


def _settle_threads(threads: int | None, pin: Sequence[int] | bool) -> tuple[int, tuple[int, ...] | None]:
    used, pinned = _placed_threads(threads, pin)
    if used > MOST_THREADS:
        reason = f"{used} threads for one model; the code runs at most {MOST_THREADS}"
        raise LlamacError("LLC0811", "threads", reason, "ask for fewer")
    return used, pinned


def _placed_threads(threads: int | None, pin: Sequence[int] | bool) -> tuple[int, tuple[int, ...] | None]:
    default = min(usable_threads(), MOST_THREADS)
    if pin is False:
        return threads or default, None
    if pin is True:
        # Cores first: their second hardware threads only serve more threads than there are cores.
        order = [*dict.fromkeys([*one_cpu_a_core(), *allowed_cpus()])]
        used = threads or default
        if used > len(order):
            reason = f"{used} threads cannot have a processor each: this process may use {len(order)}"
            raise LlamacError("LLC0811", "pin", reason, "ask for fewer threads, or do not pin them")
        return used, tuple(order[:used])
    named = [cpu for cpu in pin if isinstance(cpu, int) and not isinstance(cpu, bool)]
    if not named or len(named) != len(pin) or len(set(named)) != len(named):
        raise LlamacError("LLC0811", "pin", f"{list(pin)!r} is no list of different processors", "give their numbers")
    foreign = sorted(set(named) - set(allowed_cpus()))
    if foreign:
        reason = f"this process may not use processor {foreign[0]}, only {', '.join(map(str, allowed_cpus()))}"
        raise LlamacError("LLC0811", "pin", reason, "name some of those")
    if threads is not None and threads != len(named):
        reason = f"{len(named)} processors are named for {threads} threads"
        raise LlamacError("LLC0811", "pin", reason, "name one for each thread")
    return len(named), tuple(named)

"""Loads an artifact for running: check, pick the code for this machine, map the weights, set the code up."""

from __future__ import annotations

import time
from pathlib import Path

from llamac.artifact.integrity import Progress
from llamac.artifact.read import Artifact, Check
from llamac.errors import LlamacError

from .device_cpu import CpuDevice
from .host_cpu import HostCpu, detect_host, pick_target, usable_threads
from .kv import pages_for
from .model import Model
from .native import load_library
from .run_plan import RunPlan, read_run_plan


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    target: str | None = None,
    context: int | None = None,
    check: Check = "load",
    sequences: int = 1,
    images: int = 1,
    host: HostCpu | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load the artifact at `path` and return a `Model`. **This runs the artifact's code**: load what you trust.

    threads: one per usable core unless given. target: the name of the code to use, the best that fits unless given.
    context: the longest sequence in tokens, the model's own unless given (the cache's memory is used only as it fills).
    check: "load" compares manifest and code with their hashes, "full" the weights too, "none" nothing.
    sequences: how many full contexts the cache has room for. images: for models that keep pictures in a cache of their
    own (Llama 3.2 Vision), how many of the largest pictures each of them has room for.
    host: the machine to judge targets by, unless this one.
    progress: called with (bytes done, bytes in all) while a full check runs.

    Raises LLC07xx for a file that is damaged or no artifact, LLC0800 when none of its code fits this machine.
    """
    _require_positive("threads", threads)
    _require_positive("sequences", sequences)
    _require_positive("images", images)
    started = time.perf_counter()
    artifact = Artifact.open(path, check, progress)
    try:
        plan = read_run_plan(artifact.manifest)
        length = _settle_context(plan, context)
        chosen = pick_target(plan.targets, host or detect_host(), target)
        library = load_library(artifact.member_bytes(chosen.code), chosen.code)
        weights = artifact.map(plan.weight_members[chosen.layout])
        pages = [sequences * count for count in pages_for(plan.memory, length, images * plan.most_vision_tokens)]
        used = threads or usable_threads()
        device = CpuDevice(library, plan.memory, plan.vocab_size, weights, pages, used, plan.image)
    except BaseException:
        artifact.close()
        raise
    return Model(artifact, plan, chosen, device, length, time.perf_counter() - started)


def _settle_context(plan: RunPlan, context: int | None) -> int:
    if context is None:
        return plan.context_length
    _require_positive("context", context)
    if context > plan.context_length:
        reason = f"{context} tokens were asked for, the model was made for {plan.context_length}"
        raise LlamacError("LLC0816", "context", reason, f"ask for at most {plan.context_length}")
    return context


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        reason = f"{value!r} is not a whole number of at least 1"
        raise LlamacError("LLC0811", name, reason, f"give {name} as a positive whole number")

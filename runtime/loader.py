"""Loads an artifact for running: check, pick the code for this machine, map the weights, set the code up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamac.artifact.integrity import Progress
from llamac.artifact.read import Artifact, Check
from llamac.errors import LlamacError

from .choose_device import ChosenGpu, Say, choose_gpu, choose_other_system, say_on_stderr
from .cpu_memory import memory_nodes
from .cpu_settings import CpuSettings, settle_cpu
from .device_cpu import CpuDevice
from .host_cpu import HostCpu, check_runs, detect_host, pick_target
from .kv import pages_for
from .model import Model
from .native import load_library
from .run_plan import CodeTarget, RunPlan, read_run_plan

if TYPE_CHECKING:
    from .device_gpu import GpuDevice
    from .one_sequence import OneSequenceDevice


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
    device: str = "auto",
    say: Say = say_on_stderr,
    draft: str | Path | None = None,
    weights: str = "map",
    pin: Sequence[int] | bool = False,
    first_touch: bool = False,
) -> Model:
    """Load the artifact at `path` and return a `Model`. **This runs the artifact's code**: load what you trust.

    threads: one per usable core unless given. target: the name of the code to use, the best that fits unless given.
    context: the longest sequence in tokens, the model's own unless given (the cache's memory is used only as it fills).
    check: "load" compares manifest and code with their hashes, "full" the weights too, "none" nothing.
    sequences: how many full contexts the cache has room for. images: for models that keep pictures in a cache of their
    own (Llama 3.2 Vision), how many of the largest pictures each of them has room for.
    host: the machine to judge targets by, unless this one.
    progress: called with (bytes done, bytes in all) while a full check runs.
    device: cpu, cuda, hip, a GPU by its number (cuda:1), or auto: a GPU if the file has code for one that is here, else
    the CPU. say: is told which, where the file has code for GPUs; on stderr unless given.
    draft: the artifact of a smaller model with the same vocabulary (LLC0840), which guesses tokens for this one. It is
    loaded the same way, with all the context it has.

    weights: "map" reads them from the mapped file, "copy" from a copy in memory of this process, in huge pages.
    pin: keep each thread on a processor of its own; a list names them. first_touch: every thread touches its share of
    the memory first, for machines with several memory nodes; all the cache's memory is then taken at once. These
    three are for the CPU (docs/cpu-backend.md).

    Raises LLC07xx for a file that is damaged or no artifact, LLC0800 when none of its code fits this machine.
    """
    _require_positive("threads", threads)
    _require_positive("sequences", sequences)
    _require_positive("images", images)
    settings = settle_cpu(threads, pin, weights, first_touch)
    started = time.perf_counter()
    artifact = Artifact.open(path, check, progress)
    try:
        plan = read_run_plan(artifact.manifest)
        length = _settle_context(plan, context)
        pages = [sequences * count for count in pages_for(plan.memory, length, images * plan.most_vision_tokens)]
        gpu = choose_gpu(plan.targets, artifact.member_bytes, device, target, say)
        other = choose_other_system(plan.targets, device, target) if gpu is None else None
        opened: CpuDevice | GpuDevice | OneSequenceDevice
        if gpu is not None:
            chosen, opened = gpu.target, _open_gpu(artifact, plan, gpu, pages, length)
        elif other is not None:
            chosen, opened = other, _open_other_system(artifact, plan, other, pages, settings, host or detect_host())
        else:
            chosen = pick_target(plan.targets, host or detect_host(), target)
            if settings.first_touch and memory_nodes() == 1:
                say("first touch changes nothing here: the machine has one memory node")
                settings = replace(settings, first_touch=False)
            opened = _open_cpu(artifact, plan, chosen, pages, settings)
    except BaseException:
        artifact.close()
        raise
    model = Model(artifact, plan, chosen, opened, length, time.perf_counter() - started)
    if draft is not None:
        try:
            same: dict[str, Any] = {"weights": weights, "pin": pin, "first_touch": first_touch, "say": say}
            small = load(draft, threads=threads, check=check, sequences=sequences, host=host, device=device, **same)
            model.attach_draft(small)
        except BaseException:
            model.close()
            raise
    return model


def _open_cpu(
    artifact: Artifact, plan: RunPlan, chosen: CodeTarget, pages: list[int], settings: CpuSettings
) -> CpuDevice:
    if chosen.ranks:
        from .device_ranks import open_ranks  # other processes, which a model that is whole does not need

        return open_ranks(artifact, plan, chosen, pages, settings)
    library = load_library(artifact.member_bytes(chosen.code), chosen.code)
    weights = artifact.map(plan.weight_members[chosen.layout])
    layouts = {row["layout"]: row["tensors"] for row in artifact.manifest["weights"]}
    offsets = [int(tensor["offset"]) for tensor in layouts[chosen.layout]]
    return CpuDevice(library, plan.memory, plan.vocab_size, weights, pages, settings, plan.image, offsets)


def _open_gpu(artifact: Artifact, plan: RunPlan, gpu: ChosenGpu, pages: list[int], context: int) -> GpuDevice:
    if gpu.target.ranks:
        from .device_gpu_ranks import open_gpu_ranks

        return open_gpu_ranks(artifact, plan, gpu, pages, context)
    from .device_gpu import GpuDevice  # not needed where there is no GPU

    members = [buffer.member for buffer in gpu.launch_plan.buffers if buffer.role == "weights"]
    weights = {name: artifact.map(name) for name in members}
    return GpuDevice(
        gpu.driver,
        gpu.gpu,
        gpu.launch_plan,
        artifact.member_bytes,
        plan.memory,
        weights,
        pages,
        context,
        plan.token_ids,
        image=plan.image,
    )


def _open_other_system(
    artifact: Artifact, plan: RunPlan, chosen: CodeTarget, pages: list[int], settings: CpuSettings, host: HostCpu
) -> OneSequenceDevice:
    """The device of another system (LLC0943 for a target that is source only, LLC0800 where its code does not run)."""
    row = next(row for row in artifact.manifest["weights"] if row["layout"] == chosen.layout)
    tensors, threads = row["tensors"], settings.threads
    if chosen.kind == "onnxruntime":
        from .device_onnxruntime import open_onnxruntime

        place = (artifact.path, artifact.member_offset(row["member"])[0])
        return open_onnxruntime(plan, chosen, artifact.member_bytes, place, tensors, pages, threads)
    from .device_tvm import open_tvm, source_only

    if chosen.kind != "tvm":
        raise source_only(chosen.name)
    check_runs(chosen, host)
    weights = artifact.map(row["member"])
    return open_tvm(plan, chosen, artifact.member_bytes, weights, tensors, pages, threads)


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

"""Compiles the kernels of launch plans, side by side and each once, and writes the plans that use them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue

from llamac.artifact.launch_plan import (
    Argument,
    Bucket,
    Buffer,
    Encoder,
    Kernel,
    KernelParameter,
    Launch,
    LaunchPlan,
    Meeting,
    Pointer,
)

from .architectures import Architecture
from .calls import Call, MeetingCall, Slot
from .compile import CompiledKernel, Parameter
from .compile_process import CompileProcess
from .encoder_calls import EncoderCalls
from .launches import BucketCalls
from .request import KernelRequest
from .toolchain import CUDA_TOOLKIT, HOPPER_TOOLKIT, PORTABLE_TOOLKIT, require_triton

FALLBACK = "sm_80"
"""The architecture whose PTX every newer CUDA driver can compile for its own GPU."""

Progress = Callable[[int, int], None]
"""(kernels done, kernels to do)."""

Wanted = Mapping[str, tuple[KernelRequest, str]]
"""Identity of a kernel -> what to compile, and for which instruction set."""


@dataclass(frozen=True)
class PlanRequest:
    """A plan before its kernels have code. portable: PTX instead of machine code."""

    target: str
    machine: Architecture
    portable: bool
    buckets: list[BucketCalls]
    buffers: tuple[Buffer, ...]
    vocab: int
    page_tokens: int
    ranks: int = 1
    rank: int = 0
    encoder: EncoderCalls | None = None

    @property
    def code(self) -> str:
        """What the code members hold."""
        return "ptx" if self.portable else {"cuda": "cubin", "hip": "hsaco"}[self.machine.kind]

    def calls(self) -> Iterable[Call]:
        """Every call of every bucket and tail, and of the image encoder."""
        for bucket in self.buckets:
            yield from bucket.body
            for tail in bucket.tails.values():
                yield from tail
        if self.encoder is not None:
            yield from self.encoder.body


@dataclass
class Built:
    """Plans by target, and the code members that they name."""

    plans: list[LaunchPlan] = field(default_factory=list)
    members: dict[str, bytes] = field(default_factory=dict)


def identity(request: KernelRequest, machine: str) -> str:
    """A short name of what is compiled: equal for equal requests alone."""
    options = {name: getattr(request.options, name) for name in request.options.__dataclass_fields__}
    parts = [request.family, request.kernel, dict(request.signature), dict(request.constants), options, machine]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


Made = Mapping[tuple[str, str], CompiledKernel]
"""(Identity of a kernel, form of its code) -> the kernel, whose other form is not looked at."""


def build(
    requests: Sequence[PlanRequest], progress: Progress = lambda done, total: None, made: Made | None = None
) -> Built:
    """Compile every kernel of the plans once for each architecture (LLC0607, LLC0608, LLC0610) and write the plans.

    made: kernels that there are already, which are not compiled again.
    """
    require_triton()
    return written(requests, compile_all(wanted_kernels(requests, made), progress), made)


def wanted_kernels(requests: Sequence[PlanRequest], made: Made | None = None) -> dict[str, tuple[KernelRequest, str]]:
    """The kernels of all plans, each once for an architecture, that are not `made`."""
    wanted: dict[str, tuple[KernelRequest, str]] = {}
    for plan in requests:
        for call in plan.calls():
            key = identity(call.request, plan.machine.name)
            if (key, plan.code) not in (made or {}):
                wanted.setdefault(key, (call.request, plan.machine.name))
    return wanted


def made_kernels(plan: LaunchPlan, read: Callable[[str], bytes]) -> dict[tuple[str, str], CompiledKernel]:
    """The kernels of a plan that is in a file; `read` gives a member's bytes."""
    found = {}
    for kernel in plan.kernels:
        key = kernel.member.rpartition("-")[2].partition(".")[0]
        data = read(kernel.member)
        portable = plan.code == "ptx"
        found[key, plan.code] = CompiledKernel(
            name=kernel.name,
            architecture=plan.architecture,
            code=b"" if portable else data,
            assembly=data.decode() if portable else "",
            parameters=tuple(Parameter(p.name, p.type, 8 if p.is_pointer else 4) for p in kernel.parameters),
            warps=kernel.warps,
            blocks_per_cluster=kernel.blocks_per_cluster,
            shared_bytes=kernel.shared_bytes,
            global_scratch_bytes=kernel.global_scratch_bytes,
            profile_scratch_bytes=kernel.profile_scratch_bytes,
            registers=kernel.registers,
            spilled_bytes=kernel.spilled_bytes,
            dependent_launch=kernel.dependent_launch,
        )
    return found


def compile_all(wanted: Wanted, progress: Progress) -> dict[str, CompiledKernel]:
    """Compiled kernels by identity, in as many processes as there are processors."""
    found: dict[str, CompiledKernel] = {}
    workers = min(os.cpu_count() or 1, len(wanted))
    idle: SimpleQueue[CompileProcess] = SimpleQueue()

    def run(key: str) -> CompiledKernel:
        process = idle.get()
        try:
            return process.compile(*wanted[key])
        finally:
            idle.put(process)

    with ExitStack() as processes, ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in range(workers):
            idle.put(processes.enter_context(CompileProcess()))
        # The large kernels of prefill are asked for last: started first, they do not keep one process busy at the end.
        jobs = {pool.submit(run, key): key for key in reversed(list(wanted))}
        try:
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                progress(len(found), len(wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def written(requests: Sequence[PlanRequest], compiled: Mapping[str, CompiledKernel], made: Made | None = None) -> Built:
    """The plans over compiled kernels, and the members that hold those."""
    built = Built()
    for plan in requests:
        there = {key: kernel for (key, form), kernel in (made or {}).items() if form == plan.code}
        built.plans.append(_plan(plan, {**compiled, **there}, built.members))
    return built


def _plan(plan: PlanRequest, compiled: Mapping[str, CompiledKernel], members: dict[str, bytes]) -> LaunchPlan:
    kernels: dict[str, Kernel] = {}
    for call in plan.calls():
        key = identity(call.request, plan.machine.name)
        if key not in kernels:
            kernels[key] = _kernel(plan, call.request, compiled[key], key, members)
    numbers = {key: index for index, key in enumerate(kernels)}

    def launch(call: Call, bucket: BucketCalls | EncoderCalls) -> Launch:
        key = identity(call.request, plan.machine.name)
        arguments = tuple(_argument(call, p.name, bucket) for p in kernels[key].parameters)
        x, y, z = (*call.grid, 1, 1)[:3]
        return Launch(numbers[key], (x, y, z), arguments, call.where)

    buckets = tuple(
        Bucket(
            b.shape.name, b.shape.kind, b.shape.tokens, b.shape.rows, tuple(launch(c, b) for c in b.body),
            {name: tuple(launch(c, b) for c in tail) for name, tail in b.tails.items()},
            {name: tuple(_meeting(m, b) for m in found) for name, found in b.meetings.items() if found},
        )
        for b in plan.buckets
    )  # fmt: skip
    machine, own = plan.machine, plan.encoder
    encoder = Encoder(tuple(launch(c, own) for c in own.body), own.most_rows, own.shapes) if own is not None else None
    return LaunchPlan(
        plan.target, machine.kind, machine.name, plan.code, machine.warp, _toolkit(plan), plan.vocab, plan.page_tokens,
        plan.buffers, tuple(kernels.values()), buckets, plan.ranks, plan.rank, encoder,
    )  # fmt: skip


def _toolkit(plan: PlanRequest) -> str:
    """The CUDA release that a driver must be as new as; "" for AMD."""
    if plan.machine.kind == "hip":
        return ""
    if plan.portable:
        return PORTABLE_TOOLKIT
    return HOPPER_TOOLKIT if plan.machine.capability >= 90 else CUDA_TOOLKIT


def _kernel(
    plan: PlanRequest, request: KernelRequest, made: CompiledKernel, key: str, members: dict[str, bytes]
) -> Kernel:
    member = f"gpu/{plan.machine.name}/{request.kernel}-{key}.{plan.code}"
    members[member] = made.assembly.encode() if plan.portable else made.code
    return Kernel(
        name=made.name,
        member=member,
        source=f"{request.family}.{request.kernel}",
        parameters=tuple(KernelParameter(p.name, p.type) for p in made.parameters),
        constants=request.constants,
        warps=made.warps,
        shared_bytes=made.shared_bytes,
        blocks_per_cluster=made.blocks_per_cluster,
        global_scratch_bytes=made.global_scratch_bytes,
        profile_scratch_bytes=made.profile_scratch_bytes,
        dependent_launch=made.dependent_launch,
        registers=made.registers,
        spilled_bytes=made.spilled_bytes,
    )


def _meeting(call: MeetingCall, bucket: BucketCalls) -> Meeting:
    places = []
    for passed in (call.source, call.to):
        found = Pointer("arena", bucket.places[passed]) if isinstance(passed, Slot) else passed
        assert isinstance(found, Pointer)
        places.append(found)
    return Meeting(call.at, call.kind, places[0], places[1], call.rows, call.columns, call.where)


def _argument(call: Call, name: str, bucket: BucketCalls | EncoderCalls) -> Argument:
    passed = call.arguments[name]
    return Pointer("arena", bucket.places[passed]) if isinstance(passed, Slot) else passed

"""The GPU targets of a compilation: their launch plans, what they need of a GPU, and the code compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamac.artifact.launch_plan import LaunchPlan
from llamac.artifact.launch_plan_file import write_plan
from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.build import FALLBACK, Built, PlanRequest, build
from llamac.backends.gpu.launches import BucketCalls, bucket_calls, buffers, step_shapes
from llamac.backends.gpu.legality import check_legal
from llamac.errors import LlamacError
from llamac.ir.kv_groups import kv_groups
from llamac.models.llama.config import LlamaConfig
from llamac.target import GPU_LAYOUT, GPUS, Target, find_target
from llamac.transform.base import LedgerEntry

if TYPE_CHECKING:
    from .driver import CompiledGraph

WEIGHTS_MEMBER = f"weights/{GPU_LAYOUT}.bin"
ALIGNMENT = 256
"""Of every weight in that member: a row never shares a cache line with another matrix."""

RESERVED = 512 << 20
"""About what a CUDA or HIP context takes of a GPU before anything is loaded."""


def check_text_model(config: LlamaConfig) -> None:
    """Refuse what no GPU kernel does (LLC0605)."""
    if config.cross_layers:
        reason = "no GPU kernel attends to vision tokens"
        raise LlamacError("LLC0605", f"layers.{config.cross_layers[0]}", reason, "compile for a CPU target")


def left_out(config: LlamaConfig) -> list[LedgerEntry]:
    """What a model can do that its code for GPUs cannot."""
    if config.vision is None:
        return []
    reason = "no GPU kernel puts them among the text; targets for CPUs take them"
    return [LedgerEntry("absent", "pictures", "the code for GPUs takes text only", reason)]


@dataclass(frozen=True)
class GpuSide:
    """What the GPU targets of one compilation are made of: a kernel-level graph, and plans without code yet."""

    compiled: CompiledGraph
    targets: tuple[Target, ...]
    requests: tuple[PlanRequest, ...]

    @property
    def arena_bytes(self) -> int:
        """Scratch memory of the largest bucket of the first target."""
        return max(bucket.arena_bytes for bucket in self.requests[0].buckets)

    def build(self, progress: Callable[[int, int], None]) -> Built:
        """Compile every kernel."""
        return build(self.requests, progress)

    def entries(self) -> list[dict[str, Any]]:
        """The targets as the manifest lists them."""
        return [_entry(target) for target in self.targets]


def gpu_side(compiled: CompiledGraph, targets: Sequence[Target]) -> GpuSide:
    """Plan every bucket of every target (LLC0605, LLC0611) and check that the model fits (LLC0612)."""
    made: dict[tuple[str, int], list[BucketCalls]] = {}
    requests = []
    for target in targets:
        units = GPUS[target.name].units
        check_legal(compiled.module, architecture(target.cpu), target.name)
        rows = [(target.cpu, False), *([(FALLBACK, True)] if target.kind == "cuda" else [])]
        for name, portable in rows:
            if (name, units) not in made:
                made[name, units] = _buckets(compiled, name, units)
            requests.append(_request(compiled, target, name, portable, made[name, units]))
        check_fits(compiled, target, requests[-len(rows)])
    return GpuSide(compiled, tuple(targets), tuple(requests))


def _buckets(compiled: CompiledGraph, name: str, units: int) -> list[BucketCalls]:
    shapes = step_shapes(compiled.limits.max_tokens)
    return [bucket_calls(compiled.module, compiled.placed, architecture(name), units, shape) for shape in shapes]


def _request(
    compiled: CompiledGraph, target: Target, name: str, portable: bool, buckets: list[BucketCalls]
) -> PlanRequest:
    memory = buffers(compiled.module, buckets, WEIGHTS_MEMBER, compiled.limits.weight_bytes)
    page = kv_groups(compiled.module.step)[0].type.page
    return PlanRequest(target.name, architecture(name), portable, buckets, memory, compiled.limits.vocab, page)


def arena_on(compiled: CompiledGraph, name: str) -> int:
    """Scratch memory of a step on the GPU called `name`."""
    target = find_target(name)
    return max(bucket.arena_bytes for bucket in _buckets(compiled, target.cpu, GPUS[name].units))


def check_fits(compiled: CompiledGraph, target: Target, request: PlanRequest) -> None:
    """Refuse a model whose weights leave no room for a step and one page of cache (LLC0612, with the arithmetic)."""
    memory = GPUS[target.name].memory_bytes
    arena = max(bucket.arena_bytes for bucket in request.buckets)
    page = sum(2 * group.type.page_bytes for group in kv_groups(compiled.module.step))  # one, and that of padding
    weights = compiled.limits.weight_bytes
    needed = weights + arena + page + RESERVED
    if needed > memory:
        parts = f"weights {_gb(weights)} + arena {_gb(arena)} + one page of cache {_gb(page)} + driver {_gb(RESERVED)}"
        reason = f"{parts} = {_gb(needed)}, but {target.name} has {_gb(memory)}"
        hint = "choose a smaller --quantize, or a larger GPU (`llamac plan` compares them)"
        raise LlamacError("LLC0612", target.name, reason, hint)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


def plan_member(plan: LaunchPlan) -> str:
    """The member of a plan: that of a target, or of its fallback."""
    return f"gpu/{plan.target}{'-ptx' if plan.code == 'ptx' else ''}.json"


def members(built: Built) -> dict[str, bytes]:
    """Every member of the GPU targets but the weights, in their order in the file."""
    plans = {plan_member(plan): write_plan(plan) for plan in built.plans}
    return plans | dict(sorted(built.members.items()))


def _entry(target: Target) -> dict[str, Any]:
    fallback = f"gpu/{target.name}-ptx.json" if target.kind == "cuda" else None
    return {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "requires": list(target.requires),
        "code": f"gpu/{target.name}.json",
        "fallback": fallback,
        "source": None,
        "layout": target.layout,
        "truth": "compiled",
    }

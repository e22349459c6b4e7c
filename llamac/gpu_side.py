"""The GPU targets of a compilation: their launch plans, what they need of a GPU, and the code compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamac.artifact.launch_plan import LaunchPlan
from llamac.artifact.launch_plan_file import write_plan
from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.build import FALLBACK, Built, Made, PlanRequest, build
from llamac.backends.gpu.encoder_calls import EncoderCalls, encoder_calls
from llamac.backends.gpu.launches import BucketCalls, bucket_calls, buffers, step_shapes
from llamac.backends.gpu.legality import check_legal
from llamac.errors import LlamacError
from llamac.ir.kv_groups import kv_groups
from llamac.models.llama.config import LlamaConfig
from llamac.target import GPU_LAYOUT, Target, find_target, memory_of, units_of
from llamac.transform.base import LedgerEntry

if TYPE_CHECKING:
    from .compiled_graph import CompiledGraph

WEIGHTS_MEMBER = f"weights/{GPU_LAYOUT}.bin"
ALIGNMENT = 256
"""Of every weight in that member: a row never shares a cache line with another matrix."""

RESERVED = 512 << 20
"""About what a CUDA or HIP context takes of a GPU before anything is loaded."""


def check_text_model(config: LlamaConfig) -> None:
    """Refuse what ranks cannot share (LLC0605)."""
    if config.cross_layers:
        reason = "layers that attend to vision tokens are not divided among processes"
        raise LlamacError("LLC0605", f"layers.{config.cross_layers[0]}", reason, "compile for one GPU, or one CPU")


def left_out(config: LlamaConfig) -> list[LedgerEntry]:
    """What a model can do that one divided among processes cannot."""
    if config.vision is None:
        return []
    reason = "the image encoder is not divided; targets of one GPU or one CPU take them"
    return [LedgerEntry("absent", "pictures", "the code for several processes takes text only", reason)]


@dataclass(frozen=True)
class GpuSide:
    """What the GPU targets of one compilation are made of: a kernel-level graph, and plans without code yet."""

    compiled: CompiledGraph
    targets: tuple[Target, ...]
    requests: tuple[PlanRequest, ...]

    @property
    def arena_bytes(self) -> int:
        """Scratch memory of the largest bucket of the first target."""
        return _arena(self.requests[0].buckets, self.requests[0].encoder)

    def build(self, progress: Callable[[int, int], None], made: Made | None = None) -> Built:
        """Compile every kernel but those that are `made`."""
        return build(self.requests, progress, made)

    def entries(self) -> list[dict[str, Any]]:
        """The targets as the manifest lists them."""
        return [_entry(target) for target in self.targets]


def gpu_side(compiled: CompiledGraph, targets: Sequence[Target]) -> GpuSide:
    """Plan every bucket of every target (LLC0605, LLC0611) and check that the model fits (LLC0612).

    Where the model is divided, the first rank has a plan of its own, and all others share one.
    """
    made: dict[tuple[str, int, int], tuple[list[BucketCalls], EncoderCalls | None]] = {}
    requests = []
    for target in targets:
        units = units_of(target.base)
        check_legal(compiled.module, architecture(target.cpu), target.name)
        forms = [(target.cpu, False), *([(FALLBACK, True)] if target.kind == "cuda" else [])]
        for rank, graph in enumerate(compiled.ranks[:2]):
            for name, portable in forms:
                key = (name, units, rank)
                if key not in made:
                    made[key] = _buckets(graph, name, units), _encoder(graph, name, units)
                requests.append(_request(graph, target, name, portable, *made[key], rank))
        check_fits(compiled, target, next(r for r in requests if r.target == target.name))
    return GpuSide(compiled, tuple(targets), tuple(requests))


def _buckets(compiled: CompiledGraph, name: str, units: int) -> list[BucketCalls]:
    shapes = step_shapes(compiled.limits.max_tokens, compiled.module)
    return [bucket_calls(compiled.module, compiled.placed, architecture(name), units, shape) for shape in shapes]


def _encoder(compiled: CompiledGraph, name: str, units: int) -> EncoderCalls | None:
    if compiled.image is None:
        return None
    return encoder_calls(compiled.image, compiled.placed, architecture(name), units)


def _arena(buckets: Sequence[BucketCalls], encoder: EncoderCalls | None) -> int:
    """Scratch memory of the largest of them."""
    return max([*(b.arena_bytes for b in buckets), encoder.arena_bytes if encoder is not None else 0])


def _request(
    compiled: CompiledGraph,
    target: Target,
    name: str,
    portable: bool,
    buckets: list[BucketCalls],
    encoder: EncoderCalls | None,
    rank: int,
) -> PlanRequest:
    member = f"weights/{target.share(rank)}.bin"
    memory = buffers(compiled.module, buckets, member, compiled.limits.weight_bytes, encoder)
    page, vocab = kv_groups(compiled.module.step)[0].type.page, compiled.limits.vocab
    machine, ranks = architecture(name), target.ranks
    return PlanRequest(target.name, machine, portable, buckets, memory, vocab, page, ranks, rank, encoder)


def arena_on(compiled: CompiledGraph, name: str) -> int:
    """Scratch memory of a step on the GPU called `name`."""
    target = find_target(name)
    asked = compiled, target.cpu, units_of(target.base)
    return _arena(_buckets(*asked), _encoder(*asked))


def check_fits(compiled: CompiledGraph, target: Target, request: PlanRequest) -> None:
    """Refuse a model whose weights leave no room for a step and one page of cache (LLC0612, with the arithmetic).

    Of an instruction set the memory is not known: then the runtime alone compares.
    """
    memory = memory_of(target.base)
    if memory is None:
        return
    arena = _arena(request.buckets, request.encoder)
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
    """The member of a plan: that of a target, of its fallback, or of either for the ranks behind the first."""
    name = plan.target.replace(":", "-x") + ("-others" if plan.rank else "")
    return f"gpu/{name}{'-ptx' if plan.code == 'ptx' else ''}.json"


def members(built: Built) -> dict[str, bytes]:
    """Every member of the GPU targets but the weights, in their order in the file."""
    plans = {plan_member(plan): write_plan(plan) for plan in built.plans}
    return plans | dict(sorted(built.members.items()))


def _entry(target: Target) -> dict[str, Any]:
    forms = ["", "-ptx"] if target.kind == "cuda" else [""]
    first, *fallback = [f"gpu/{target.stem}{form}.json" for form in forms]
    return {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "requires": list(target.requires),
        "code": first,
        "fallback": fallback[0] if fallback else None,
        "source": None,
        "layout": target.share(0),
        "truth": "compiled",
        **(_ranks(target, forms) if target.ranks > 1 else {}),
    }


def _ranks(target: Target, forms: Sequence[str]) -> dict[str, Any]:
    return {
        "ranks": [target.share(rank) for rank in range(target.ranks)],
        "others": [f"gpu/{target.stem}-others{form}.json" for form in forms],
    }

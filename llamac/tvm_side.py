"""The TVM targets of a compilation: code for CPUs, and the source of kernels for devices that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llamac.artifact.tvm_plan import TvmPlan, TvmState, TvmWeight, require_tvm, write_tvm_plan
from llamac.errors import LlamacError
from llamac.ir.kv_groups import kv_groups
from llamac.models.llama.config import LlamaConfig
from llamac.target import Target
from llamac.transform.base import LedgerEntry

if TYPE_CHECKING:
    from llamac.backends.tvm.lowering import Lowered

    from .compiled_graph import CompiledGraph

KINDS = ("tvm", "tvm-source")
"""The kinds of targets that this side serves."""

SUFFIXES = {"tvm:metal": "metal", "tvm:webgpu": "wgsl", "tvm:opencl": "cl", "tvm:cuda": "cu"}
"""Target -> how a file with the source of its kernels ends."""


@dataclass(frozen=True)
class TvmBuilt:
    """Members by name, and what could not be built."""

    members: dict[str, bytes]
    ledger: list[LedgerEntry]


@dataclass(frozen=True)
class TvmSide:
    """What the TVM targets of one compilation are made of: the kernel-level graph that CPU code is generated from."""

    compiled: CompiledGraph
    targets: tuple[Target, ...]

    def build(self) -> TvmBuilt:
        """The code of every target (LLC0942 for an op without a rule, LLC0944 when TVM refuses)."""
        from llamac.backends.tvm.lowering import lower

        built = TvmBuilt({}, [])
        for target in self.targets:
            lowered = lower(self.compiled.module, on_gpu=target.kind == "tvm-source")
            plan = plan_of(self.compiled, lowered, target)
            if target.kind == "tvm":
                from llamac.backends.tvm.link import shared_library

                built.members[plan.code] = shared_library(lowered, target.triple, target.cpu)
                plan = self._add_encoder(plan, target, built)
            else:
                plan = self._write_source(plan, lowered, target, built)
            built.members[plan_member(target)] = write_tvm_plan(plan)
        return built

    def _add_encoder(self, plan: TvmPlan, target: Target, built: TvmBuilt) -> TvmPlan:
        """Add the code of the image encoder, where there is one; the step's plan with its name."""
        if self.compiled.image is None:
            return plan
        from llamac.backends.tvm.link import shared_library
        from llamac.backends.tvm.lowering import lower

        lowered = lower(self.compiled.image)
        code = _code_member(target).replace(".so", ".image.so")
        weights = tuple(TvmWeight(w.weight, w.dtype, w.shape) for w in lowered.weights)
        encoder = TvmPlan(target.name, lowered.name, code, weights, lowered.inputs, 0, (), lowered.kernels)
        member = plan_member(target).replace(".json", ".image.json")
        built.members[code] = shared_library(lowered, target.triple, target.cpu)
        built.members[member] = write_tvm_plan(encoder)
        return replace(plan, encoder=member)

    def _write_source(self, plan: TvmPlan, lowered: Lowered, target: Target, built: TvmBuilt) -> TvmPlan:
        """Add the source of every kernel that TVM can write for a device; the plan with their names."""
        from llamac.backends.tvm.sources import kernel_sources

        sources = kernel_sources(lowered, target.cpu)
        for name, reason in sources.refused.items():
            entry = LedgerEntry("absent", target.name, f"the kernel {name} has no source", reason)
            built.ledger.append(entry)
        built.members[plan.code] = sources.text.encode()
        return replace(plan, kernels=sources.names)

    def entries(self) -> list[dict[str, Any]]:
        """The targets as the manifest lists them."""
        return [_entry(target) for target in self.targets]


def tvm_side(compiled: CompiledGraph, targets: Sequence[Target], config: LlamaConfig) -> TvmSide:
    """The side of `targets` (LLC0943 for a model that TVM's device cannot run); its limits go to the ledger."""
    require_tvm()
    sources = [target.name for target in targets if target.kind == "tvm-source"]
    if sources and config.cross_layers:
        reason = "no source is written for attention to vision tokens, which this layer has"
        hint = f"compile for tvm:llvm or a CPU target, without {sources[0]}"
        raise LlamacError("LLC0943", f"layers.{config.cross_layers[0]}", reason, hint)
    if sources and compiled.image is not None:
        what = f"no source of the image encoder for {', '.join(sources)}"
        reason = "only the kernels of the step are written for devices that are not here"
        compiled.context.ledger.append(LedgerEntry("absent", "pictures", what, reason))
    return TvmSide(compiled, tuple(targets))


def plan_of(compiled: CompiledGraph, lowered: Lowered, target: Target) -> TvmPlan:
    """How the function of `lowered` is called."""
    from llamac.backends.tvm.lowering import held
    from llamac.backends.tvm.values import STORED

    groups = kv_groups(compiled.module.step)
    numbers = {group.cache.name: (index, group.type) for index, group in enumerate(groups)}
    states = []
    for given in lowered.past:
        index, cache = numbers[given.cache]
        dtype = STORED[held(cache, 0).dtype.name]
        states.append(TvmState(index, given.layer, given.part, cache.kv_heads, cache.head_dim, dtype))
    weights = tuple(TvmWeight(w.weight, w.dtype, w.shape) for w in lowered.weights)
    width = compiled.module.step.argument("image_embeddings").tensor.shape[1] if "image_rows" in lowered.inputs else 0
    return TvmPlan(
        target.name,
        lowered.name,
        _code_member(target),
        weights,
        lowered.inputs,
        int(str(width)),
        tuple(states),
        lowered.kernels,
    )


def plan_member(target: Target) -> str:
    """The member with the plan of a target."""
    return f"tvm/{target.name.removeprefix('tvm:')}.json"


def _code_member(target: Target) -> str:
    return f"tvm/{target.name.removeprefix('tvm:')}.{SUFFIXES.get(target.name, 'so')}"


def _entry(target: Target) -> dict[str, Any]:
    runs = target.kind == "tvm"
    return {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "requires": list(target.requires),
        "code": plan_member(target),
        "source": None if runs else _code_member(target),
        "layout": target.layout,
        "truth": "compiled" if runs else "generated",
    }

"""Whole models of any size through the runtime, their kernels only described: what every launch passes is recorded.

The code of a described kernel is PTX text that declares its parameters and has no body; the stub needs no more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub

sys.path.insert(0, str(Path(__file__).parents[2] / "backends" / "gpu"))
from planned_models import Planned

from llamac.artifact.launch_plan import PAGES, Bucket, Launch, LaunchPlan, Pointer, evaluate
from llamac.manifest_entries import image_entry
from llamac.runtime import device_gpu
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.gpu.found import find_gpu
from llamac.runtime.kv import pages_for
from llamac.runtime.run_plan import CachePlan, ImagePlan, MemoryPlan
from llamac.runtime.session import Session

EMPTY = ".version 7.0\n.target sm_80\n.address_size 64\n"


def declared(plan: LaunchPlan) -> tuple[LaunchPlan, dict[str, bytes]]:
    """The plan with PTX that declares each kernel, and that text by member."""
    kernels = tuple(dataclasses.replace(kernel, member=f"{n}.ptx") for n, kernel in enumerate(plan.kernels))
    code = {}
    for kernel in kernels:
        types = [".param .u64 p" if p.is_pointer else ".param .u32 p" for p in kernel.parameters]
        names = ", ".join(f"{t}{n}" for n, t in enumerate([*types, ".param .u64 p", ".param .u64 p"]))
        threads = kernel.warps * plan.warp
        code[kernel.member] = f"{EMPTY}.visible .entry {kernel.name}({names}\n)\n.reqntid {threads}\n{{}}\n".encode()
    return dataclasses.replace(plan, kernels=kernels, code="ptx", toolkit="12.0"), code


@dataclass
class PlannedRun:
    """A device that runs a planned model on the stub, and what the stub saw of its last step."""

    stub: Stub
    model: Planned
    device: GpuDevice
    plan: LaunchPlan
    session: Session
    modules: dict[int, int] = field(default_factory=dict)

    def launches(self) -> list[dict[str, Any]]:
        """The launches recorded since the log was cleared, each with its kernel's number in the plan."""
        return [row | {"number": self.modules[row["module"]]} for row in self.stub.log("launch")]

    def expected(self, bucket: Bucket, launches: tuple[Launch, ...], sizes: dict[str, int]) -> list[dict[str, Any]]:
        """What the plan says that the launches of a bucket must look like."""
        run = self.device._runs[bucket.name]
        base = {**self.device._memory.base, **run.output_at}
        base |= {name: self.device._memory.inputs + offset for name, offset in run.input_offsets.items()}
        return [self._expected(launch, base, sizes) for launch in launches]

    def expected_encoder(self, vision_tokens: int) -> list[dict[str, Any]]:
        """What the plan says that the launches of a run of the image encoder must look like."""
        memory, encoder, places = self.device._memory, self.plan.encoder, self.device._places
        assert encoder is not None and places is not None
        base = memory.base | {name: memory.image_inputs + offset for name, offset in places.offsets.items()}
        base[places.output] = memory.image_outputs
        sizes = {"vision_tokens": vision_tokens, "table_width": self.device._inputs.table_width}
        return [self._expected(launch, base, sizes) for launch in encoder.launches]

    def _expected(self, launch: Launch, base: dict[str, int], sizes: dict[str, int]) -> dict[str, Any]:
        kernel = self.plan.kernels[launch.kernel]
        values = [
            base[a.buffer] + a.offset if isinstance(a, Pointer) else evaluate(a, sizes) & 0xFFFF_FFFF
            for a in launch.arguments
        ]
        return {
            "kernel": kernel.name,
            "number": launch.kernel,
            "grid": [evaluate(size, sizes) for size in launch.grid],
            "block": [kernel.warps * self.plan.warp, 1, 1],
            "shared": kernel.shared_bytes,
            "dependent": int(kernel.dependent_launch),
            "cooperative": 0,
            "parameters": [*values, 0, 0],
        }

    def sizes(self, bucket: Bucket, tokens: int, rows: int, sequences: int, images: int = 0) -> dict[str, int]:
        """The variables of a step; a replayed bucket has its own."""
        if bucket.is_replayed:
            tokens, rows = bucket.tokens, bucket.rows
            sequences = min(bucket.tokens, max(self.device.page_counts)) + 1
        width = self.device._inputs.table_width
        pages = zip(self.plan.caches(), self.device.page_counts, strict=True)
        named = {f"{PAGES}.{cache.name}": count for cache, count in pages}
        named |= {"table_width": width, "image_rows": images}
        return {"tokens": tokens, "rows": rows, "sequences": sequences, **named}


@contextmanager
def running(
    stub: Stub,
    model: Planned,
    monkeypatch: pytest.MonkeyPatch,
    context: int = 2048,
    sequences: int = 1,
    collectives: Any = None,
    vision_tokens: int = 0,
) -> Iterator[PlannedRun]:
    """The runtime's device on the stub; weights are not uploaded, which for large models is all that is left out.

    vision_tokens: how many of them a sequence has room for.
    """
    plan, code = declared(model.plan)
    memory = memory_plan(model)
    pages = [sequences * count for count in pages_for(memory, context, vision_tokens)]
    driver, gpu = find_gpu("cuda")
    driver.open(0)
    monkeypatch.setattr(device_gpu, "upload", lambda *given: None)
    weights = {b.member: _Weights(evaluate(b.bytes, {})) for b in plan.buffers if b.role == "weights"}
    given = (driver, gpu, plan, code.__getitem__, memory, weights, pages, context)
    device = GpuDevice(*given, collectives=collectives, image=image_plan(model))  # type: ignore[arg-type]
    run = PlannedRun(stub, model, device, plan, Session(device, context))
    modules = [row["module"] for row in stub.log("load")]
    run.modules = dict(zip(modules, range(len(plan.kernels)), strict=True))
    try:
        yield run
    finally:
        device.close()


@dataclass
class _Weights:
    nbytes: int


def memory_plan(model: Planned) -> MemoryPlan:
    """The plan's caches as a manifest would have them."""
    caches = []
    for cache in model.plan.caches():
        chunk = int(cache.name.partition(".chunk")[2] or 0)
        caches.append(CachePlan(chunk, (0,), cache.page_bytes, cache.name.endswith(".cross")))
    most = max(bucket.tokens for bucket in model.plan.buckets)
    return MemoryPlan(0, model.plan.page_tokens, tuple(caches), "bf16", most, 0, 0)


def image_plan(model: Planned) -> ImagePlan | None:
    """The encoder's sizes as a manifest would have them."""
    entry = image_entry(model.compiled).get("image")
    if entry is None:
        return None
    return ImagePlan(tuple(entry["pixels"]), tuple(entry["embeddings"]), entry["joint"])


def prompt(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, 30, count).tolist()

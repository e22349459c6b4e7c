"""Builds an artifact's code anew from its IR with tracing, and runs it: where every value of an artifact comes from.

The file is not trusted: what its manifest says is checked against its IR, since the code made of both trusts numbers.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamac.analysis.memory import value_bytes
from llamac.artifact.read import Artifact
from llamac.backends.cpu.codegen import Limits, generate
from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.errors import LlamacError
from llamac.ir.graph import Module, Op
from llamac.ir.types import TensorType

from .recording import (
    Collector,
    Floats,
    Recording,
    StoredWeights,
    is_quantized,
    module_text,
    placed_weights,
    stored_image_module,
    stored_module,
    stored_weights,
    weight_reader,
)


def record_artifact(artifact: Artifact, ids: Sequence[int], folder: Path) -> Recording:
    """Run the artifact's IR, built anew with tracing into `folder`, on its own weights; then the code it ships.

    LLC0801 for an artifact without code for CPUs: its IR is that of a GPU.
    """
    if artifact.manifest["targets"][0]["kind"] != "cpu":
        reason = "has code for GPUs only, which cannot be traced"
        raise LlamacError("LLC0801", str(artifact.path), reason, "compile it for a CPU target too")
    module = stored_module(artifact)
    weights = stored_weights(artifact)
    limits = _limits(artifact)
    placed = placed_weights(artifact, module, weights)
    _check_arena(artifact, module, limits)
    notes = _source_note(artifact, module, weights, limits)
    library = folder / "traced.so"
    source = generate(module, placed, limits, "a tracing build", trace=True)
    _build(source, library)
    collector = Collector(module, len(ids))
    logits = _run_native(artifact, library, ids, collector)
    name = str(artifact.path)
    reader = weight_reader(weights)
    recording = Recording(
        name, collector.activations(), logits, collector.found, reader, module_text(module), is_quantized(module), notes
    )
    _check_shipped(artifact, ids, recording)
    return recording


def _limits(artifact: Artifact) -> Limits:
    manifest = artifact.manifest
    model, memory = manifest["model"], manifest["memory"]
    return Limits(
        model["vocab_size"],
        model["context_length"],
        memory["max_step_tokens"],
        memory["arena_bytes"],
        manifest["weights"][0]["bytes"],
    )


def _check_arena(artifact: Artifact, module: Module, limits: Limits) -> None:
    """Every value that `plan-memory` placed ends inside the arena."""
    for _, op in module.ops():
        for value, offset in zip(op.results, _offsets(op), strict=False):
            fits = offset < 0 or offset + value_bytes(value, limits.max_tokens) <= limits.arena_bytes
            if isinstance(value.type, TensorType) and not fits:
                reason = f"the IR puts {value!r} outside the arena of {limits.arena_bytes} bytes"
                raise LlamacError("LLC0711", str(artifact.path), reason, "the file is damaged, or not made by llamac")


def _offsets(op: Op) -> tuple[int, ...]:
    found = op.attributes.get("buffers")
    return tuple(int(str(v)) for v in found) if isinstance(found, tuple) else ()


def _source_note(artifact: Artifact, module: Module, weights: StoredWeights, limits: Limits) -> list[str]:
    """Whether this llamac generates, from the IR, the very source that lies in the file (its first comment aside)."""
    image = stored_image_module(artifact)
    placed = [p for part in (module, image) if part is not None for p in placed_weights(artifact, part, weights)]
    member = artifact.manifest["targets"][0]["source"]
    if member is None:
        return []
    kept = artifact.member_bytes(member).decode("utf-8", "replace")
    if _body(generate(module, placed, limits, "", image=image)) == _body(kept):
        return ["this llamac generates the same C from its IR as it carries"]
    return ["this llamac generates other C from its IR than it carries: another version made it"]


def _body(source: str) -> str:
    return source.partition("*/")[2]


# Native code.


@functools.lru_cache(maxsize=2)
def _compiled(source: str) -> bytes:
    from llamac.chosen_targets import resolve_targets

    (target,) = resolve_targets(["cpu"])
    with tempfile.TemporaryDirectory(prefix="llamac-trace-") as folder:
        out = Path(folder) / "traced.so"
        compile_shared_library({"model.c": source}, triple=target.triple, cpu=target.cpu, out=out)
        return out.read_bytes()


def _build(source: str, out: Path) -> None:
    """Two artifacts that differ in weights alone share their code, which is compiled once."""
    out.write_bytes(_compiled(source))


def _run_native(artifact: Artifact, library: Path, ids: Sequence[int], collector: Collector) -> Floats:
    from llamac.runtime.native import NativeLibrary

    handle = ctypes.CDLL(str(library))
    u32, pointer = ctypes.c_uint32, ctypes.c_void_p
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, u32, u32, u32, pointer, ctypes.c_uint64)(collector.from_native)
    handle.llamac_set_trace.argtypes = [type(callback)]
    handle.llamac_set_trace(callback)
    return _step(artifact, NativeLibrary(handle, "the tracing build"), ids)


def _step(artifact: Artifact, library: Any, ids: Sequence[int]) -> Floats:
    """Logits after every id, all in one step, on one thread."""
    from llamac.runtime.cpu_settings import CpuSettings
    from llamac.runtime.device_cpu import CpuDevice
    from llamac.runtime.run_plan import read_run_plan

    plan = read_run_plan(artifact.manifest)
    weights = artifact.map(artifact.manifest["weights"][0]["member"])
    pages = -(-len(ids) // plan.memory.kv_page_tokens)
    caches = len(plan.memory.caches)
    device = CpuDevice(library, plan.memory, plan.vocab_size, weights, [pages] * caches, CpuSettings(threads=1))
    logits = np.zeros((len(ids), plan.vocab_size), np.float32)
    order = np.arange(len(ids), dtype=np.int32)
    tables = np.tile(np.arange(pages, dtype=np.int32), (caches, 1, 1))
    try:
        device.step(np.array(ids, np.int32), order, np.zeros(len(ids), np.int32), tables, order, logits)
    finally:
        device.close()
    return logits


def _check_shipped(artifact: Artifact, ids: Sequence[int], recording: Recording) -> None:
    """Run the code in the file too, where this machine can, and compare the logits bit for bit."""
    from llamac.runtime.host_cpu import detect_host, pick_target
    from llamac.runtime.native import load_library
    from llamac.runtime.run_plan import read_run_plan

    try:
        target = pick_target(read_run_plan(artifact.manifest).targets, detect_host(), None)
    except LlamacError:
        recording.notes.append("none of its code fits this machine: only its IR was run")
        return
    shipped = _step(artifact, load_library(artifact.member_bytes(target.code), target.code), ids)
    recording.faithful = shipped.tobytes() == recording.logits.tobytes()
    if recording.faithful:
        recording.notes.append(f"{target.code} gives the same logits as the traced build, bit for bit")
    else:
        largest = float(np.abs(shipped - recording.logits).max())
        recording.notes.append(f"{target.code} gives OTHER logits than its own IR: they differ by up to {largest:.3g}")

"""Writes one artifact: weights once a layout, code for every target side by side, and what the manifest says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.analysis.weight_plan import ALIGNMENT, PlacedWeight
from llamac.artifact.write import ArtifactWriter
from llamac.backends.cpu import abi
from llamac.backends.cpu.codegen import generate
from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.backends.gpu.build import Built
from llamac.errors import LlamacError
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.printer import print_module
from llamac.materialize import write_weights
from llamac.models.checkpoint import Checkpoint
from llamac.target import Target

from .compiled_graph import CompiledGraph
from .gpu_side import ALIGNMENT as GPU_ALIGNMENT
from .gpu_side import WEIGHTS_MEMBER as GPU_WEIGHTS_MEMBER
from .gpu_side import GpuSide, members
from .manifest_entries import (
    GPU_IMAGE_IR_MEMBER,
    GPU_IR_MEMBER,
    IMAGE_IR_MEMBER,
    IR_MEMBER,
    WEIGHTS_MEMBER,
    manifest_of,
)
from .onnx_side import OnnxSide
from .strictness import refuse_left_out
from .tvm_side import TvmBuilt, TvmSide

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is), in bytes for weights and steps for the rest."""


@dataclass(frozen=True)
class Parts:
    """Everything that an artifact is made of; `cpu` or `gpu` is there, or both. `tvm` works on the graph of `cpu`.

    strict: what is left out while code is made is an error (LLC0105).
    """

    checkpoint: Checkpoint
    cpu: CompiledGraph | None
    cpu_targets: tuple[Target, ...]
    gpu: GpuSide | None
    vectors: dict[str, Any]
    certificate: dict[str, Any] | None
    tvm: TvmSide | None = None
    onnx: OnnxSide | None = None
    strict: bool = False

    @property
    def main(self) -> CompiledGraph:
        """The graph that the manifest speaks of first."""
        if self.cpu is not None:
            return self.cpu if self.runs_on_cpus or self.onnx is None else _weighing(self.cpu, self.onnx.weight_bytes)
        assert self.gpu is not None
        compiled = self.gpu.compiled
        return replace(compiled, limits=replace(compiled.limits, arena_bytes=self.gpu.arena_bytes))

    @property
    def runs_on_cpus(self) -> bool:
        """Whether a target reads the weights as `cpu` has packed them."""
        return bool(self.cpu_targets) or self.tvm is not None

    def weights(self) -> list[tuple[str, CompiledGraph]]:
        """The members of weights, one a layout, or one a rank of it where the model is divided."""
        found = [(WEIGHTS_MEMBER, self.cpu)] if self.cpu is not None and self.runs_on_cpus else []
        found += [(GPU_WEIGHTS_MEMBER, self.gpu.compiled)] if self.gpu is not None else []
        return [pair for member, graph in found for pair in _rank_members(member, graph)]


def _weighing(compiled: CompiledGraph, weight_bytes: int) -> CompiledGraph:
    return replace(compiled, limits=replace(compiled.limits, weight_bytes=weight_bytes, arena_bytes=0))


def _rank_members(member: str, graph: CompiledGraph) -> list[tuple[str, CompiledGraph]]:
    if not graph.others:
        return [(member, graph)]
    stem, ranks = member.removesuffix(".bin"), graph.ranks
    return [(f"{stem}.{rank}of{len(ranks)}.bin", each) for rank, each in enumerate(ranks)]


def assemble(
    parts: Parts, output: Path, memory: int, emit_c: str | Path | None, progress: Progress
) -> tuple[int, dict[str, Any]]:
    """Write the file; its size and its manifest. Code is compiled while weights are packed."""
    source = _source(parts)
    if source is not None and emit_c is not None:
        _emit_c(Path(emit_c), source)
    with tempfile.TemporaryDirectory(prefix="llamac-") as folder, ThreadPoolExecutor(2) as pool:
        jobs = {t.name: pool.submit(compile_code, source, t, Path(folder)) for t in parts.cpu_targets if source}
        kernels = pool.submit(parts.gpu.build, lambda done, total: None) if parts.gpu is not None else None
        tvm = pool.submit(parts.tvm.build) if parts.tvm is not None else None
        try:
            return _write(parts, output, memory, source, jobs, kernels, tvm, progress)
        finally:
            for job in jobs.values():
                job.cancel()
            for other in (kernels, tvm):
                if other is not None:
                    other.cancel()


def _source(parts: Parts) -> str | None:
    """The generated C, where a target is a CPU."""
    compiled = parts.cpu
    if compiled is None or not parts.cpu_targets:
        return None
    source = source_of(compiled, parts.checkpoint.name)
    if any(source_of(other, parts.checkpoint.name) != source for other in compiled.others):
        reason = "the ranks need different code (a bug in llamac)"
        raise LlamacError("LLC0616", parts.checkpoint.name, reason, "report it")
    return source


def source_of(compiled: CompiledGraph, name: str) -> str:
    """The generated C of a model called `name`."""
    title = f"{name}, {compiled.quantization} weights, {compiled.kv_dtype} cache"
    return generate(compiled.module, compiled.placed, compiled.limits, title, image=compiled.image)


def compile_code(source: str, target: Target, folder: Path) -> bytes:
    """The shared library of `target`."""
    out = folder / f"{target.stem}.so"
    compile_shared_library({"model.c": source}, triple=target.triple, cpu=target.cpu, out=out)
    return out.read_bytes()


def _emit_c(folder: Path, source: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("model.c", source), ("llamac_step.h", abi.header()), ("example.c", abi.example())):
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LlamacError(
            "LLC0107", "--emit-c", f"cannot write {folder}: {error.strerror}", "choose another folder"
        ) from None


def _write(
    parts: Parts,
    output: Path,
    memory: int,
    source: str | None,
    jobs: dict[str, Future[bytes]],
    kernels: Future[Built] | None,
    tvm: Future[TvmBuilt] | None,
    progress: Progress,
) -> tuple[int, dict[str, Any]]:
    total = sum(compiled.limits.weight_bytes for _, compiled in parts.weights())
    total += parts.onnx.weight_bytes if parts.onnx is not None else 0
    with ArtifactWriter(output, expected_bytes=total) as writer:
        _write_weights(writer, parts, memory, total, progress)
        steps = len(jobs) + (kernels is not None)
        progress("compiling code", 0, steps)
        for index, (name, job) in enumerate(jobs.items()):
            writer.add_bytes(f"code/{name.replace(':', '-x')}.so", job.result())
            progress("compiling code", index + 1, steps)
        if source is not None:
            writer.add_bytes("code/model.c", source.encode())
        if kernels is not None:
            for member, data in members(kernels.result()).items():
                writer.add_bytes(member, data)
            progress("compiling code", steps, steps)
        if tvm is not None:
            for member, data in tvm.result().members.items():
                writer.add_bytes(member, data)
            parts.main.context.ledger.extend(tvm.result().ledger)
            refuse_left_out(tvm.result().ledger, parts.strict)
        _add_ir(writer, parts)
        text = _add_text(writer, parts.checkpoint)
        manifest = manifest_of(parts, text)
        return writer.finish(manifest), manifest


def _write_weights(writer: ArtifactWriter, parts: Parts, memory: int, total: int, progress: Progress) -> None:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress("packing weights", min(done, total), total)

    for member, compiled in parts.weights():
        evaluator = WeightEvaluator(parts.checkpoint.read_rows)
        with writer.open_stream(member, compiled.limits.weight_bytes) as stream:
            placed: list[PlacedWeight] = compiled.placed
            write_weights(placed, evaluator, stream, memory // 4, advance)
            stream.pad_to(ALIGNMENT if member.startswith(WEIGHTS_MEMBER.removesuffix(".bin")) else GPU_ALIGNMENT)
    if parts.onnx is not None:
        parts.onnx.write(writer, memory, advance)


def _add_ir(writer: ArtifactWriter, parts: Parts) -> None:
    writer.add_bytes(IR_MEMBER, print_module(parts.main.module).encode())
    if parts.cpu is not None and parts.gpu is not None:
        writer.add_bytes(GPU_IR_MEMBER, print_module(parts.gpu.compiled.module).encode())
    if parts.main.image is not None:
        writer.add_bytes(IMAGE_IR_MEMBER, print_module(parts.main.image).encode())
    if parts.cpu is not None and parts.gpu is not None and parts.gpu.compiled.image is not None:
        writer.add_bytes(GPU_IMAGE_IR_MEMBER, print_module(parts.gpu.compiled.image).encode())


def _add_text(writer: ArtifactWriter, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write tokenizer and chat template; returns their manifest entries."""
    entries: dict[str, Any] = {"tokenizer": None, "chat_template": None}
    if checkpoint.tokenizer is not None:
        files = {}
        for name, data in sorted(checkpoint.tokenizer.files.items()):
            files[name] = f"tokenizer/{name}"
            writer.add_bytes(files[name], data)
        entries["tokenizer"] = {"kind": checkpoint.tokenizer.kind, "files": files, "info": checkpoint.tokenizer.info}
    if checkpoint.chat_template is not None:
        entries["chat_template"] = "tokenizer/chat_template.jinja"
        writer.add_bytes(entries["chat_template"], checkpoint.chat_template.encode())
    return entries

"""compile(): from a checkpoint to one `.llamac` file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamac.analysis.memory import arena_bytes
from llamac.analysis.weight_plan import PlacedWeight, bytes_per_token, member_bytes, plan_weights
from llamac.artifact.write import ArtifactWriter
from llamac.backends.cpu import abi
from llamac.backends.cpu.codegen import Limits, generate
from llamac.backends.cpu.toolchain import ZIG_VERSION, compile_shared_library, zig_command
from llamac.backends.null.report import report
from llamac.errors import LlamacError
from llamac.host import cpu_features, machine_architecture
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.ir.kv_groups import kv_groups
from llamac.ir.layouts import LAYOUT
from llamac.ir.printer import print_module
from llamac.materialize import write_weights
from llamac.models.capture.captured import CapturedModel
from llamac.models.capture.entry import capture as capture
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.sources import open_source
from llamac.passes.pipelines import Quantization, cpu_pipeline, parse_quantization
from llamac.target import Target, best_target, find_target
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.outside import Edit, load_edits
from llamac.transform.pipeline import PassRecord, run_pipeline

from .certificate import certify
from .golden import read_golden
from .layer_kinds import is_uniform, layer_counts
from .reproduction import default_kv_dtype, recipe_of, repro_folder, reproduced

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is), in bytes for weights and steps for the rest."""

_WEIGHTS = f"weights/{LAYOUT}.bin"
_IR = "ir/step.ir"


@dataclass(frozen=True)
class CompileResult:
    """What `compile` made."""

    path: Path
    bytes: int
    manifest: dict[str, Any]


@dataclass(frozen=True)
class CompiledGraph:
    """A kernel-level module with all that is known about it before a byte of weights is read."""

    module: Module
    records: list[PassRecord]
    context: PassContext
    placed: list[PlacedWeight]
    limits: Limits
    quantization: Quantization
    kv_dtype: str


def compile(
    source: str | Path | CapturedModel,
    *,
    target: str | Sequence[str] = "cpu",
    output: str | Path,
    quantize: str = "keep",
    kv: str | None = None,
    max_step_tokens: int = 512,
    context: int | None = None,
    random_weights: int | None = None,
    memory: int = 1 << 30,
    emit_c: str | Path | None = None,
    golden: str | Path | None = None,
    tokenizer: bool = True,
    strict: bool = False,
    validate: bool = True,
    passes_from: Sequence[str] = (),
    progress: Progress = lambda stage, done, total: None,
) -> CompileResult:
    """Compile `source` for `target`(s) into `output`.

    source: a Hugging Face folder, a GGUF file, a preset's name, or what `capture` gives.

    quantize: keep, f32, f16, bf16, fp8, int8 or int4, the last two with `:g32`, `:g64`, `:g128` and `:asym`.
    kv: dtype of the key-value cache, f16 by default and f32 with `quantize="f32"`.
    context: longest sequence, by default the model's own. max_step_tokens: most tokens in one step.
    random_weights: a seed, for sources without weights. memory: bound on temporary arrays, in bytes.
    emit_c: a folder for the generated C. golden: a JSON file of golden vectors from an outside oracle.
    tokenizer: False compiles a source without one into an artifact that takes token ids only.
    strict: every ledger entry that says something was left undone is an error.
    validate: check every pass before and after on a shrunken model of this architecture (LLC0507 when one is wrong).
    passes_from: Python modules whose passes go into the pipeline (`llamac.transform.outside`).

    Every failure is a `LlamacError`, and leaves no output file.
    """
    targets = resolve_targets([target] if isinstance(target, str) else target)
    quantization = parse_quantization(quantize)
    zig_command()  # a missing compiler is known before any work
    progress("reading", 0, 1)
    captured = source if isinstance(source, CapturedModel) else None
    checkpoint = (
        source.checkpoint if isinstance(source, CapturedModel) else open_source(source, random_weights=random_weights)
    )
    ledger = [LedgerEntry(**entry) for entry in checkpoint.ledger]
    _check_tokenizer(checkpoint, tokenizer, ledger)
    vectors = read_golden(golden, checkpoint, str(quantization), ledger)
    progress("optimizing", 0, 1)
    module = captured.fresh() if captured else None
    edit = load_edits(passes_from)
    recipe = recipe_of(checkpoint, quantization, kv or default_kv_dtype(quantization), passes_from)
    with reproduced(recipe, repro_folder(output)):
        compiled = compile_graph(checkpoint, quantization, kv, max_step_tokens, context, ledger, module, edit)
    if strict and (blocking := [e for e in compiled.context.ledger if e.kind in STRICT_KINDS]):
        first = blocking[0]
        raise LlamacError(
            "LLC0105", first.where, f"--strict: {first.what} ({first.reason})", "compile without --strict"
        )
    with reproduced(recipe, repro_folder(output)):
        certificate = certify(checkpoint, quantization, compiled.kv_dtype, passes_from) if validate else None
    return _build(checkpoint, compiled, targets, Path(output), memory, emit_c, vectors, certificate, progress)


def count_work(
    source: str | Path,
    *,
    quantize: str = "keep",
    kv: str | None = None,
    context: int | None = None,
    max_step_tokens: int = 512,
    random_weights: int | None = None,
) -> dict[str, Any]:
    """FLOPs and bytes of a full prefill step and of a decode step at full context; compiles and writes nothing."""
    checkpoint = open_source(source, random_weights=random_weights)
    compiled = compile_graph(checkpoint, parse_quantization(quantize), kv, max_step_tokens, context, [])
    limits = compiled.limits
    counted = report(compiled.module, min(max_step_tokens, limits.context), limits.context)
    return {"model": checkpoint.name, "quantization": str(compiled.quantization), **counted}


STRICT_KINDS = frozenset({"unquantized", "requantized", "rounded", "ignored", "unknown-key", "absent"})
"""Ledger kinds that `strict` refuses."""


def resolve_targets(names: Sequence[str]) -> list[Target]:
    """The target rows for names; `cpu` is the best row for this machine."""
    host = None
    if "cpu" in names:
        architecture = machine_architecture()
        host = best_target(architecture, cpu_features(architecture))
    found = {t.name: t for t in (find_target(name, host) for name in names)}
    if not found:
        raise LlamacError("LLC0603", "--target", "no target is named", "--target cpu compiles for this machine")
    return list(found.values())


def _check_tokenizer(checkpoint: Checkpoint, wanted: bool, ledger: list[LedgerEntry]) -> None:
    if checkpoint.tokenizer is not None:
        return
    if wanted and checkpoint.format != "random":
        notes = [e.reason for e in ledger if (e.kind, e.where) == ("note", "tokenizer")]
        raise LlamacError(
            "LLC0106",
            checkpoint.name,
            f"the source has no tokenizer that can be used{f' ({notes[0]})' if notes else ''}",
            "put tokenizer.json or tokenizer.model beside the weights, or pass --no-tokenizer to work with token ids",
        )
    reason = "random weights have no text" if checkpoint.format == "random" else "--no-tokenizer"
    ledger.append(LedgerEntry("default", "tokenizer", "the artifact takes and gives token ids only", reason))


def compile_graph(
    checkpoint: Checkpoint,
    quantization: Quantization,
    kv: str | None,
    max_step_tokens: int,
    context_length: int | None,
    ledger: list[LedgerEntry],
    module: Module | None = None,
    edit: Edit = list,
) -> CompiledGraph:
    """Everything between the checkpoint's header and C: capture, passes, and the places of weights and buffers.

    `module` is the captured graph where it came through another front door than the config; `edit` puts outside passes
    into the pipeline.
    """
    config = checkpoint.config
    length = context_length or config.context_length
    if not 0 < length <= config.context_length:
        reason = f"--context {length} is outside 1..{config.context_length}, the model's own"
        raise LlamacError("LLC0107", "--context", reason, "choose a length within it")
    if not 0 < max_step_tokens <= 65536:
        raise LlamacError("LLC0107", "--max-step-tokens", f"{max_step_tokens} is outside 1..65536", "512 is usual")
    kv_dtype = kv or default_kv_dtype(quantization)
    module = module or build_graph(config, checkpoint.tensors)
    context = PassContext(checkpoint.read_rows, ledger)
    steps = cpu_pipeline(layer_counts(config), quantization, kv_dtype, max_step_tokens, is_uniform(config, checkpoint.tensors))
    records = run_pipeline(module, edit(steps), context)
    placed = plan_weights(module)
    arena = arena_bytes(module, max_step_tokens)
    limits = Limits(config.vocab_size, length, max_step_tokens, arena, member_bytes(placed))
    return CompiledGraph(module, records, context, placed, limits, quantization, kv_dtype)


def _build(
    checkpoint: Checkpoint,
    compiled: CompiledGraph,
    targets: list[Target],
    output: Path,
    memory: int,
    emit_c: str | Path | None,
    vectors: dict[str, Any],
    certificate: dict[str, Any] | None,
    progress: Progress,
) -> CompileResult:
    title = f"{checkpoint.name}, {compiled.quantization} weights, {compiled.kv_dtype} cache"
    source = generate(compiled.module, compiled.placed, compiled.limits, title)
    if emit_c is not None:
        _emit_c(Path(emit_c), source)
    with tempfile.TemporaryDirectory(prefix="llamac-") as folder, ThreadPoolExecutor(1) as pool:
        jobs = {t.name: pool.submit(_compile_code, source, t, Path(folder)) for t in targets}
        try:
            return _write(checkpoint, compiled, targets, output, memory, source, jobs, vectors, certificate, progress)
        finally:
            for job in jobs.values():
                job.cancel()


def _compile_code(source: str, target: Target, folder: Path) -> bytes:
    out = folder / f"{target.name}.so"
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
    checkpoint: Checkpoint,
    compiled: CompiledGraph,
    targets: list[Target],
    output: Path,
    memory: int,
    source: str,
    jobs: dict[str, Future[bytes]],
    vectors: dict[str, Any],
    certificate: dict[str, Any] | None,
    progress: Progress,
) -> CompileResult:
    total, done = compiled.limits.weight_bytes, 0
    evaluator = WeightEvaluator(checkpoint.read_rows)

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress("packing weights", done, total)

    with ArtifactWriter(output, expected_bytes=total) as writer:
        with writer.open_stream(_WEIGHTS, total) as stream:
            write_weights(compiled.placed, evaluator, stream, memory // 4, advance)
            stream.pad_to(64)
        progress("compiling code", 0, len(targets))
        for index, t in enumerate(targets):
            writer.add_bytes(f"code/{t.name}.so", jobs[t.name].result())
            progress("compiling code", index + 1, len(targets))
        writer.add_bytes("code/model.c", source.encode())
        writer.add_bytes(_IR, print_module(compiled.module).encode())
        text = _add_text(writer, checkpoint)
        manifest = _manifest(checkpoint, compiled, targets, text, vectors, certificate)
        size = writer.finish(manifest)
    return CompileResult(output, size, manifest)


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


def _manifest(
    checkpoint: Checkpoint,
    compiled: CompiledGraph,
    targets: list[Target],
    text: dict[str, Any],
    vectors: dict[str, Any],
    certificate: dict[str, Any] | None,
) -> dict[str, Any]:
    config, generation = checkpoint.config, checkpoint.generation
    return {
        "format": "llamac-artifact",
        "schema": 1,
        "producer": f"llamac {_version()} (zig {ZIG_VERSION})",
        "model": {
            "name": checkpoint.name,
            "architecture": config.architecture,
            "source_format": checkpoint.format,
            "license": checkpoint.license,
            "parameters": config.parameters,
            "config": dataclasses.asdict(config),
            "context_length": compiled.limits.context,
            "vocab_size": config.vocab_size,
        },
        "quantization": str(compiled.quantization),
        "passes": [_pass_entry(r) for r in compiled.records],
        "targets": [_target_entry(t) for t in targets],
        "weights": [_weights_entry(compiled)],
        "ir": _IR,
        "memory": _memory_entry(compiled),
        **text,
        "generation": {
            "bos_id": generation.bos_id,
            "add_bos": generation.add_bos,
            "stop_ids": list(generation.stop_ids),
            "stop_sources": {str(k): list(v) for k, v in generation.stop_sources.items()},
            "defaults": dict(generation.sampling),
        },
        "golden": vectors,
        "certificate": certificate,
        "ledger": [entry.to_json() for entry in compiled.context.ledger],
    }


def _version() -> str:
    from importlib.metadata import version

    return version("llamac")


def _pass_entry(record: PassRecord) -> dict[str, Any]:
    result = record.result
    return {
        "name": record.name,
        "options": {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in record.options.items()},
        "changed": result.changed,
        "counts": dict(result.counts),
    }


def _target_entry(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "requires": list(target.requires),
        "code": f"code/{target.name}.so",
        "source": "code/model.c",
        "layout": target.layout,
        "truth": "compiled",
    }


def _weights_entry(compiled: CompiledGraph) -> dict[str, Any]:
    tensors = [
        {"name": p.weight.name, "offset": p.offset, "bytes": p.nbytes, "format": p.format, "shape": list(p.shape)}
        for p in compiled.placed
    ]
    return {"layout": LAYOUT, "member": _WEIGHTS, "bytes": compiled.limits.weight_bytes, "tensors": tensors}


def _memory_entry(compiled: CompiledGraph) -> dict[str, Any]:
    caches, limits = [g.type for g in kv_groups(compiled.module.step)], compiled.limits
    return {
        "arena_bytes": limits.arena_bytes,
        "kv_page_tokens": caches[0].page,
        "caches": [{"chunk": c.chunk, "layers": c.layers, "page_bytes": c.page_bytes} for c in caches],
        "kv_dtype": compiled.kv_dtype,
        "max_step_tokens": limits.max_tokens,
        "weight_bytes": limits.weight_bytes,
        "weight_bytes_per_token": bytes_per_token(compiled.module, compiled.placed),
        "logits_bytes": 4 * limits.vocab,
    }

"""compile(): from a checkpoint to one `.llamac` file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamac.analysis.memory import arena_bytes
from llamac.analysis.weight_plan import PlacedWeight, member_bytes, plan_weights
from llamac.artifact.write import ArtifactWriter
from llamac.backends.cpu import abi
from llamac.backends.cpu.codegen import Limits, generate
from llamac.backends.cpu.toolchain import compile_shared_library, zig_command
from llamac.backends.null.report import report
from llamac.errors import LlamacError
from llamac.host import cpu_features, machine_architecture
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
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
from .image_side import compile_encoder, most_vision_rows
from .layer_kinds import is_uniform, layer_counts
from .manifest_entries import IMAGE_IR_MEMBER, IR_MEMBER, WEIGHTS_MEMBER, manifest_of
from .reproduction import default_kv_dtype, recipe_of, repro_folder, reproduced

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is), in bytes for weights and steps for the rest."""


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
    encoder: tuple[Module, list[PassRecord]] | None = None

    @property
    def image(self) -> Module | None:
        """The image encoder, where the model has one."""
        return self.encoder[0] if self.encoder is not None else None


def compile(
    source: str | Path | Checkpoint | CapturedModel,
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

    source: a folder, a GGUF file, a preset's name, an opened `Checkpoint`, or what `capture` gives.

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
    checkpoint = _opened(source, random_weights)
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


def _opened(source: str | Path | Checkpoint | CapturedModel, random_weights: int | None) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    return (
        source.checkpoint if isinstance(source, CapturedModel) else open_source(source, random_weights=random_weights)
    )


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
    steps = cpu_pipeline(
        layer_counts(config), quantization, kv_dtype, max_step_tokens, is_uniform(config, checkpoint.tensors)
    )
    records = run_pipeline(module, edit(steps), context)
    encoder = compile_encoder(config, checkpoint.tensors, quantization, kv_dtype, context)
    placed = plan_weights(module, *([encoder[0]] if encoder else []))
    arena = arena_bytes(module, max_step_tokens)
    if encoder:
        arena = max(arena, arena_bytes(encoder[0], most_vision_rows(config)))
    limits = Limits(config.vocab_size, length, max_step_tokens, arena, member_bytes(placed))
    return CompiledGraph(module, records, context, placed, limits, quantization, kv_dtype, encoder)


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
    source = generate(compiled.module, compiled.placed, compiled.limits, title, image=compiled.image)
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
        with writer.open_stream(WEIGHTS_MEMBER, total) as stream:
            write_weights(compiled.placed, evaluator, stream, memory // 4, advance)
            stream.pad_to(64)
        progress("compiling code", 0, len(targets))
        for index, t in enumerate(targets):
            writer.add_bytes(f"code/{t.name}.so", jobs[t.name].result())
            progress("compiling code", index + 1, len(targets))
        writer.add_bytes("code/model.c", source.encode())
        writer.add_bytes(IR_MEMBER, print_module(compiled.module).encode())
        if compiled.image is not None:
            writer.add_bytes(IMAGE_IR_MEMBER, print_module(compiled.image).encode())
        text = _add_text(writer, checkpoint)
        manifest = manifest_of(checkpoint, compiled, targets, text, vectors, certificate)
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

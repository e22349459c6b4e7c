"""compile(): from a checkpoint to one `.llamac` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.analysis.memory import arena_bytes
from llamac.analysis.weight_plan import ALIGNMENT, PlacedWeight, member_bytes, plan_weights
from llamac.artifact.tvm_plan import require_tvm
from llamac.backends.cpu.codegen import Limits
from llamac.backends.cpu.toolchain import zig_command
from llamac.backends.gpu.toolchain import require_triton
from llamac.backends.null.report import report
from llamac.backends.onnx.library import library
from llamac.errors import LlamacError
from llamac.host import cpu_features, machine_architecture
from llamac.ir.graph import Module
from llamac.models.capture.captured import CapturedModel
from llamac.models.capture.entry import capture as capture
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.sources import open_graph, open_source
from llamac.passes.pipelines import WHOLE, Quantization, Share, parse_quantization, target_pipeline
from llamac.target import SIDE_OF_KIND, Target, best_target, find_target
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.outside import Edit, load_edits
from llamac.transform.pipeline import PassRecord, run_pipeline

from .assemble import Parts, Progress, assemble
from .certificate import certify
from .fp8_side import check_activations, scales_of_cache
from .generated_code import with_code
from .golden import read_golden
from .gpu_side import ALIGNMENT as GPU_ALIGNMENT
from .gpu_side import check_text_model, gpu_side, left_out
from .image_side import compile_encoder, most_vision_rows
from .layer_kinds import is_uniform, layer_counts
from .onnx_side import onnx_side
from .reproduction import default_kv_dtype, recipe_of, repro_folder, reproduced
from .tvm_side import tvm_side


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
    others: tuple[CompiledGraph, ...] = ()
    """The graphs of the other ranks, where the model is divided: the same code over other parts of the weights."""

    @property
    def ranks(self) -> list[CompiledGraph]:
        """The graphs of all ranks, this one first."""
        return [self, *self.others]

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

    source: a folder, a GGUF or ONNX file, a preset's name, an opened `Checkpoint`, or what `capture` gives.

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
    sides = ("cpu", "gpu", "tvm", "onnx")
    on_cpus, on_gpus, on_tvm, on_onnx = ([t for t in targets if SIDE_OF_KIND[t.kind] == side] for side in sides)
    quantization = parse_quantization(quantize)
    _check_compilers(on_cpus, on_gpus, on_tvm, on_onnx)
    progress("reading", 0, 1)
    checkpoint, captured = _opened(source, random_weights)
    ledger = [LedgerEntry(**entry) for entry in checkpoint.ledger]
    _check_tokenizer(checkpoint, tokenizer, ledger)
    vectors = read_golden(golden, checkpoint, str(quantization), ledger)
    progress("optimizing", 0, 1)
    edit = load_edits(passes_from)
    kv = kv or ("f32" if on_onnx and on_onnx == targets else None)
    kinds = [kind for kind, wanted in (("cpu", on_cpus or on_tvm or on_onnx), ("gpu", on_gpus)) if wanted]
    recipe = recipe_of(checkpoint, quantization, kv or default_kv_dtype(quantization), passes_from)
    ranks, graphs = ranks_of(targets), {}
    with reproduced(recipe, repro_folder(output)):
        for kind in kinds:
            found = []
            for rank in range(ranks):
                module = captured.fresh() if captured else None
                options = (quantization, kv, max_step_tokens, context, ledger, module, edit, kind, Share(ranks, rank))
                found.append(compile_graph(checkpoint, *options))
            graphs[kind] = replace(found[0], others=tuple(found[1:]))
    cpu, gpu = graphs.get("cpu"), gpu_side(graphs["gpu"], on_gpus) if on_gpus else None
    tvm = tvm_side(graphs["cpu"], on_tvm, checkpoint.config) if on_tvm else None
    module = captured.fresh() if captured else None
    onnx = onnx_side(checkpoint, on_onnx, graphs["cpu"], edit, module) if on_onnx else None
    _refuse_left_out(ledger, strict)
    with reproduced(recipe, repro_folder(output)):
        kv_dtype = graphs[kinds[0]].kv_dtype
        certificate = certify(checkpoint, quantization, kv_dtype, passes_from, kinds, ranks) if validate else None
    parts = Parts(checkpoint, cpu, tuple(on_cpus), gpu, vectors, certificate, tvm, onnx)
    with reproduced(with_code(recipe), repro_folder(output)):
        size, manifest = assemble(parts, Path(output), memory, emit_c, progress)
    return CompileResult(Path(output), size, manifest)


def _opened(
    source: str | Path | Checkpoint | CapturedModel, random_weights: int | None
) -> tuple[Checkpoint, CapturedModel | None]:
    """The checkpoint of a source, and its graph where it came as one."""
    found = open_graph(source, random_weights=random_weights) if isinstance(source, str | Path) else source
    return (found.checkpoint, found) if isinstance(found, CapturedModel) else (found, None)


def _check_compilers(
    on_cpus: Sequence[Target], on_gpus: Sequence[Target], on_tvm: Sequence[Target], on_onnx: Sequence[Target]
) -> None:
    """A missing compiler is known before any work."""
    if on_cpus or on_tvm:
        zig_command()
    if on_tvm:
        require_tvm()
    if on_gpus:
        require_triton()
    if on_onnx:
        library("onnx")


def _refuse_left_out(ledger: Sequence[LedgerEntry], strict: bool) -> None:
    if strict and (blocking := [e for e in ledger if e.kind in STRICT_KINDS]):
        first = blocking[0]
        raise LlamacError(
            "LLC0105", first.where, f"--strict: {first.what} ({first.reason})", "compile without --strict"
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
    if any(name.partition(":")[0] == "cpu" for name in names):
        architecture = machine_architecture()
        host = best_target(architecture, cpu_features(architecture))
    found = {t.name: t for t in (find_target(name, host) for name in names)}
    if not found:
        raise LlamacError("LLC0603", "--target", "no target is named", "--target cpu compiles for this machine")
    return list(found.values())


def ranks_of(targets: Sequence[Target]) -> int:
    """Among how many processes all of `targets` divide the model (LLC0617 where they do not agree)."""
    counts = {target.ranks: target.name for target in targets}
    if len(counts) > 1:
        reason = f"{' and '.join(counts.values())} divide the model differently, and a file holds one division"
        raise LlamacError("LLC0617", "--target", reason, "compile a file for each")
    return next(iter(counts))


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
    kind: str = "cpu",
    share: Share = WHOLE,
) -> CompiledGraph:
    """Everything between the checkpoint's header and code: capture, passes, and the places of weights and buffers.

    `module` is the captured graph where it came through another front door than the config; `edit` puts outside passes
    into the pipeline; `kind` is "cpu" or "gpu"; `share` is what one rank of several has of it. What a pipeline says
    that the ledger holds already is not repeated.
    """
    config = checkpoint.config
    if share != WHOLE:
        check_text_model(config)
        ledger += [entry for entry in left_out(config) if entry not in ledger]
        config = replace(config, vision=None)
    length = context_length or config.context_length
    if not 0 < length <= config.context_length:
        reason = f"--context {length} is outside 1..{config.context_length}, the model's own"
        raise LlamacError("LLC0107", "--context", reason, "choose a length within it")
    if not 0 < max_step_tokens <= 65536:
        raise LlamacError("LLC0107", "--max-step-tokens", f"{max_step_tokens} is outside 1..65536", "512 is usual")
    kv_dtype = kv or default_kv_dtype(quantization)
    module = module or build_graph(config, checkpoint.tensors)
    check_activations(quantization, kind)
    scales = scales_of_cache(checkpoint, kv_dtype, kind, ledger)
    context = PassContext(checkpoint.read_rows, [], cache_scales=scales)
    uniform = is_uniform(config, checkpoint.tensors)
    steps = target_pipeline(kind, layer_counts(config), quantization, kv_dtype, max_step_tokens, uniform, share=share)
    records = run_pipeline(module, edit(steps), context)
    encoder = None
    if kind in ("cpu", "gpu"):
        encoder = compile_encoder(config, checkpoint.tensors, quantization, kv_dtype, context, kind)
    ledger += [entry for entry in context.ledger if entry not in ledger]
    context.ledger = ledger
    placed, arena = _placed(module, kind, max_step_tokens, encoder)
    if encoder and kind == "cpu":
        arena = max(arena, arena_bytes(encoder[0], most_vision_rows(config)))
    alignment = GPU_ALIGNMENT if kind == "gpu" else ALIGNMENT
    limits = Limits(config.vocab_size, length, max_step_tokens, arena, member_bytes(placed, alignment))
    return CompiledGraph(module, records, context, placed, limits, quantization, kv_dtype, encoder)


def _placed(
    module: Module, kind: str, max_step_tokens: int, encoder: tuple[Module, list[PassRecord]] | None
) -> tuple[list[PlacedWeight], int]:
    """Where the weights lie, and the bytes of the arena; that of a GPU is planned bucket by bucket."""
    modules = (module, *([encoder[0]] if encoder else []))
    if kind == "gpu":
        return plan_weights(*modules, alignment=GPU_ALIGNMENT), 0
    return plan_weights(*modules), arena_bytes(module, max_step_tokens)

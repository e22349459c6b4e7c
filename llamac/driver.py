"""compile(): from a checkpoint to one `.llamac` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.backends.null.report import report
from llamac.errors import LlamacError
from llamac.models.capture.captured import CapturedModel
from llamac.models.capture.entry import capture as capture
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_graph, open_source
from llamac.passes.pipelines import Share, parse_quantization
from llamac.transform.base import LedgerEntry
from llamac.transform.outside import load_edits

from .assemble import Parts, Progress, assemble
from .certificate import ONNX, certify
from .chosen_targets import check_compilers, on_sides, ranks_of
from .chosen_targets import resolve_targets as resolve_targets
from .compiled_graph import CompiledGraph as CompiledGraph
from .compiled_graph import compile_graph as compile_graph
from .generated_code import with_code
from .golden import read_golden
from .gpu_side import gpu_side
from .onnx_side import onnx_side
from .reproduction import default_kv_dtype, recipe_of, repro_folder, reproduced
from .strictness import STRICT_KINDS as STRICT_KINDS
from .strictness import refuse_left_out
from .tvm_side import tvm_side


@dataclass(frozen=True)
class CompileResult:
    """What `compile` made."""

    path: Path
    bytes: int
    manifest: dict[str, Any]


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
    on = on_sides(targets)
    quantization = parse_quantization(quantize)
    check_compilers(targets)
    progress("reading", 0, 1)
    checkpoint, captured = _opened(source, random_weights)
    ledger = [LedgerEntry(**entry) for entry in checkpoint.ledger]
    _check_tokenizer(checkpoint, tokenizer, ledger)
    vectors = read_golden(golden, checkpoint, str(quantization), ledger)
    progress("optimizing", 0, 1)
    edit = load_edits(passes_from)
    kv = "f32" if kv is None and on["onnx"] == targets else kv
    kinds = [kind for kind, wanted in (("cpu", on["cpu"] or on["tvm"] or on["onnx"]), ("gpu", on["gpu"])) if wanted]
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
    cpu, gpu = graphs.get("cpu"), gpu_side(graphs["gpu"], on["gpu"]) if on["gpu"] else None
    tvm = tvm_side(graphs["cpu"], on["tvm"], checkpoint.config) if on["tvm"] else None
    module = captured.fresh() if captured else None
    onnx = onnx_side(checkpoint, on["onnx"], graphs["cpu"], edit, module) if on["onnx"] else None
    refuse_left_out(ledger, strict)
    with reproduced(recipe, repro_folder(output)):
        kv_dtype, checked = graphs[kinds[0]].kv_dtype, [*kinds, *([ONNX] if onnx is not None else [])]
        certificate = certify(checkpoint, quantization, kv_dtype, passes_from, checked, ranks) if validate else None
    parts = Parts(checkpoint, cpu, tuple(on["cpu"]), gpu, vectors, certificate, tvm, onnx, strict)
    with reproduced(with_code(recipe), repro_folder(output)):
        size, manifest = assemble(parts, Path(output), memory, emit_c, progress)
    return CompileResult(Path(output), size, manifest)


def _opened(
    source: str | Path | Checkpoint | CapturedModel, random_weights: int | None
) -> tuple[Checkpoint, CapturedModel | None]:
    """The checkpoint of a source, and its graph where it came as one."""
    found = open_graph(source, random_weights=random_weights) if isinstance(source, str | Path) else source
    return (found.checkpoint, found) if isinstance(found, CapturedModel) else (found, None)


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

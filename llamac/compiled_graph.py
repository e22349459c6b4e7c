"""A kernel-level graph with all that is known about it before a byte of weights is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamac.analysis.memory import arena_bytes
from llamac.analysis.weight_plan import ALIGNMENT, PlacedWeight, member_bytes, plan_weights
from llamac.backends.cpu.codegen import Limits
from llamac.errors import LlamacError, did_you_mean
from llamac.ir.graph import Module
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.passes.pipelines import WHOLE, Quantization, Share, target_pipeline
from llamac.passes.quantize_kv import QUANTIZED_KV
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.outside import Edit
from llamac.transform.pipeline import PassRecord, run_pipeline

from .fp8_side import check_activations, scales_of_cache
from .gpu_side import ALIGNMENT as GPU_ALIGNMENT
from .gpu_side import check_text_model, left_out
from .image_side import compile_encoder, most_vision_rows
from .layer_kinds import is_uniform, layer_counts
from .reproduction import default_kv_dtype

KV_DTYPES = ("f32", "f16", "bf16", *QUANTIZED_KV)
"""What `--kv` may be: the dtype of the key-value cache."""


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
    length = config.context_length if context_length is None else context_length
    if not 0 < length <= config.context_length:
        reason = f"--context {length} is outside 1..{config.context_length}, the model's own"
        raise LlamacError("LLC0107", "--context", reason, "choose a length within it")
    if not 0 < max_step_tokens <= 65536:
        raise LlamacError("LLC0107", "--max-step-tokens", f"{max_step_tokens} is outside 1..65536", "512 is usual")
    kv_dtype = default_kv_dtype(quantization) if kv is None else kv
    if kv_dtype not in KV_DTYPES:
        reason = f"unknown cache type '{kv_dtype}'{did_you_mean(kv_dtype, KV_DTYPES)}"
        raise LlamacError("LLC0107", "--kv", reason, f"choose {', '.join(KV_DTYPES)}")
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

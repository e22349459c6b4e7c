"""What a plan is asked for, and whether it can be."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import MllamaVision
from llamac.passes.pipelines import Quantization

from .kv import KV_BITS
from .machine import Machine


@dataclass(frozen=True)
class Request:
    """Sizes in tokens and sequences. images: those each sequence has in its cache (Llama 3.2 Vision)."""

    quantization: Quantization
    kv_dtype: str
    context: int
    batch: int
    tp: int
    images: int
    max_step_tokens: int
    prompt_tokens: int


def check_request(request: Request, config: LlamaConfig, machine: Machine) -> None:
    """LLC0109 for the first value that makes no sense for the model or the machine."""
    for option, value, most, what in (
        ("--context", request.context, config.context_length, "the model's own context"),
        ("--max-step-tokens", request.max_step_tokens, 65536, "the most a step can have"),
        ("--batch", request.batch, request.max_step_tokens, "the rows of one step (--max-step-tokens)"),
        ("--prompt-tokens", request.prompt_tokens, request.context, "the planned context"),
        ("--tp", request.tp, config.heads, "the attention heads"),
    ):
        if not 1 <= value <= most:
            raise LlamacError("LLC0109", option, f"{value} is outside 1..{most}, {what}", "choose a value within it")
    if request.kv_dtype not in KV_BITS:
        reason = f"unknown cache type {request.kv_dtype!r}{did_you_mean(request.kv_dtype, KV_BITS)}"
        raise LlamacError("LLC0109", "--kv", reason, f"choose {', '.join(KV_BITS)}")
    if not 0 <= request.images <= 1024:
        raise LlamacError("LLC0109", "--images", f"{request.images} is outside 0..1024", "choose a value within it")
    if request.images and not isinstance(config.vision, MllamaVision):
        reason = f"{config.name} keeps no images in a cache of their own"
        raise LlamacError("LLC0109", "--images", reason, "images of other models are tokens of the context")
    _check_sharing(request.tp, config, machine)


def _check_sharing(tp: int, config: LlamaConfig, machine: Machine) -> None:
    """Whether `tp` devices can share the model: whole heads, and equal shares of every MLP."""
    if tp > 1 and not machine.is_gpu:
        reason = f"{machine.name} is one device"
        raise LlamacError("LLC0109", "--tp", reason, "only GPUs share a model")
    inner = {config.intermediate_size} | ({config.moe.intermediate_size} if config.moe else set())
    keys = config.kv_heads
    for what, count in ((f"{config.heads} attention heads", config.heads), *((f"an MLP of {n}", n) for n in inner)):
        if count % tp:
            raise LlamacError("LLC0109", "--tp", f"{what} cannot be shared by {tp} devices", "choose a divisor")
    if keys % tp and tp % keys:
        reason = f"{keys} key/value heads cannot be shared by {tp} devices, nor repeated on them"
        raise LlamacError("LLC0109", "--tp", reason, "choose a divisor or a multiple")

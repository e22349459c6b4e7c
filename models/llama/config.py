"""The Llama architecture as numbers: `LlamaConfig`, its invariants, and RoPE frequency scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.errors import LlamacError

from .vision_config import Llama4Vision, MllamaVision

DTYPES = ("bf16", "f16", "f32")
ROPE_STYLES = ("half_split", "interleaved")

LIMITS: dict[str, int] = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "layers": 4096,
    "heads": 1 << 14,
    "kv_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "context_length": (1 << 31) - 1,
}
"""Largest accepted value of every size: far beyond any real model, small enough that a hostile config costs nothing."""

MOST_EXPERTS = 1 << 14
"""Largest accepted number of routed experts in a layer."""


@dataclass(frozen=True)
class RopeScaling:
    """How the inverse frequencies `theta**(-2i/head_dim)` are rescaled.

    kind "llama3": smooth split by wavelength (low == high is a hard step; the blend branch is then empty).
    kind "linear": every inverse frequency divided by `factor`.
    kind "divisors": inverse frequency i divided by `divisors[i]` (GGUF `rope_freqs.weight`, head_dim/2 values).
    """

    kind: str
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 1.0
    original_context: int = 0
    divisors: tuple[float, ...] = ()


@dataclass(frozen=True)
class MixtureOfExperts:
    """The layers whose MLP is a mixture: `layers` by index, `experts` of width `intermediate_size` each.

    Every token goes to its `experts_per_token` best ones, and to one shared expert of the same width.
    """

    experts: int
    experts_per_token: int
    intermediate_size: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class AttentionPattern:
    """What Llama 4 varies from layer to layer (iRoPE).

    unrotated: layers without RoPE, whose attention sees the whole context. The others see only the block of `chunk`
    positions that their own lies in (0: everything). qk_norm: rotated layers divide q and k by their RMS, after RoPE
    and without a weight. temperature_floor, temperature_scale: unrotated layers multiply q at position p by
    1 + scale * ln(1 + floor((p + 1) / floor)); a scale of 0 leaves it out.
    """

    unrotated: tuple[int, ...]
    chunk: int
    qk_norm: bool
    temperature_floor: float
    temperature_scale: float


@dataclass(frozen=True)
class LlamaConfig:
    """A model of the Llama family. Sizes are element counts; `dtype` is the working dtype that the source declares.

    `rope_style` says how the rows of q and k are ordered: "half_split" pairs (i, i + head_dim/2) as Hugging Face
    stores them for "llama" and "mllama", "interleaved" pairs (2i, 2i+1) as GGUF, Meta's files and every "llama4" do.
    `architecture` is "llama" (2, 3.x, Guard), "llama4" (moe, attention and vision may be set) or "mllama" (3.2
    Vision: `vision` is set, `layers` counts the cross-attention layers too, `cross_layers` holds their indices).
    """

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    context_length: int
    tied_head: bool
    dtype: str
    rope_style: str
    architecture: str = "llama"
    moe: MixtureOfExperts | None = None
    attention: AttentionPattern | None = None
    cross_layers: tuple[int, ...] = ()
    vision: Llama4Vision | MllamaVision | None = None

    @property
    def parameters(self) -> int:
        """Number of weights of the text model, a tied head counted once."""
        from .weights import expected_shapes

        return sum(math.prod(shape) for shape in expected_shapes(self).values())

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding table: mllama's has 8 more than its vocabulary, of which the first is the image's."""
        return self.vocab_size + (8 if self.architecture == "mllama" else 0)

    def is_moe(self, layer: int) -> bool:
        """Whether the MLP of a layer is a mixture of experts."""
        return self.moe is not None and layer in self.moe.layers


def shape_name(parameters: int) -> str:
    """A name for a nameless model, from its size alone, so that folder names never reach an artifact: `llama-1.24b`."""
    for unit, letter in ((10**9, "b"), (10**6, "m"), (10**3, "k")):
        if parameters >= unit:
            return f"llama-{parameters / unit:.3g}{letter}" if parameters < 1000 * unit else f"llama-{parameters}"
    return f"llama-{parameters}"


def check_config(config: LlamaConfig, where: str) -> LlamaConfig:
    """Return `config` unchanged, or raise LLC0303/LLC0304 naming the value that cannot be."""
    for field, limit in LIMITS.items():
        value = getattr(config, field)
        if not 1 <= value <= limit:
            raise LlamacError("LLC0303", where, f"{field} is {value}, expected 1..{limit}", "check the model's config")
    for field in ("rms_norm_eps", "rope_theta"):
        value = getattr(config, field)
        if not (math.isfinite(value) and value > 0):
            raise LlamacError("LLC0303", where, f"{field} is {value}, expected a positive number", "check the config")
    if config.heads % config.kv_heads:
        reason = f"{config.heads} attention heads cannot be shared by {config.kv_heads} key/value heads"
        raise LlamacError("LLC0304", where, reason, "the head count must be a multiple of the key/value head count")
    if config.head_dim % 2:
        reason = f"head_dim is {config.head_dim}, and rotary embedding rotates pairs"
        raise LlamacError("LLC0304", where, reason, "head_dim must be even")
    if config.rope_scaling is not None:
        check_rope_scaling(config.rope_scaling, config.head_dim, where)
    if config.moe is not None:
        _check_experts(config.moe, where)
    if config.attention is not None:
        _check_pattern(config.attention, where)
    return config


def _check_experts(moe: MixtureOfExperts, where: str) -> None:
    if not 2 <= moe.experts <= MOST_EXPERTS:
        reason = f"{moe.experts} routed experts, expected 2..{MOST_EXPERTS}"
        raise LlamacError("LLC0303", where, reason, "a model without routed experts says 0")
    if not 1 <= moe.experts_per_token <= moe.experts:
        reason = f"{moe.experts_per_token} experts for each token, of {moe.experts}"
        raise LlamacError("LLC0304", where, reason, "check num_experts_per_tok")


def _check_pattern(pattern: AttentionPattern, where: str) -> None:
    limit = LIMITS["context_length"]
    if not 0 <= pattern.chunk <= limit:
        raise LlamacError(
            "LLC0303", where, f"attention chunk is {pattern.chunk}, expected 0..{limit}", "check the config"
        )
    floor, scale = pattern.temperature_floor, pattern.temperature_scale
    if scale and not (math.isfinite(scale) and 1 <= floor <= limit):
        reason = f"attention temperature of scale {scale} in steps of {floor} positions"
        raise LlamacError("LLC0303", where, reason, "expected a finite scale and steps of at least one position")


def check_rope_scaling(scaling: RopeScaling, head_dim: int, where: str) -> None:
    """Raise LLC0303/LLC0304 when the rescaling of the frequencies has no meaning."""
    numbers = (scaling.factor, scaling.low_frequency_factor, scaling.high_frequency_factor, *scaling.divisors)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise LlamacError(
            "LLC0303", where, "rope scaling holds a value that is not a positive number", "check the config"
        )
    if scaling.kind == "divisors" and len(scaling.divisors) != head_dim // 2:
        reason = f"{len(scaling.divisors)} rope divisors for head_dim {head_dim}, expected {head_dim // 2}"
        raise LlamacError("LLC0304", where, reason, "convert the checkpoint again")
    if scaling.kind == "llama3":
        if scaling.low_frequency_factor > scaling.high_frequency_factor:
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            reason = f"low_freq_factor {low} exceeds high_freq_factor {high}"
            raise LlamacError("LLC0304", where, reason, "check the rope parameters")
        if not 1 <= scaling.original_context <= LIMITS["context_length"]:
            reason = f"original_max_position_embeddings is {scaling.original_context}"
            raise LlamacError("LLC0303", where, reason, "expected the context length before scaling, such as 8192")

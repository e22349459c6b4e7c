"""Meta's `params.json` -> `LlamaConfig`: what it leaves out is taken from the reference code, and noted."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from ..llama4.meta_vision import vision_from_meta
from ..mllama.meta_config import is_mllama, with_images
from .config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling, check_config
from .config_keys import MOST_EXPERTS, MOST_LAYERS, ConfigKeys, short

WHERE = "params.json"
READ_KEYS = frozenset(
    """dim n_layers n_heads n_kv_heads head_dim vocab_size multiple_of ffn_dim_multiplier ffn_exp norm_eps rope_theta
    use_scaled_rope rope_scaling_factor rope_high_freq_factor attention_chunk_size nope_layer_interval use_qk_norm
    attn_temperature_tuning floor_scale attn_scale moe_args vision_args quantization_args lora_args
    vision_num_cross_attention_layers vision_chunk_size vision_max_num_chunks vision_model""".split()
)
HARMLESS_KEYS = frozenset({"max_batch_size", "max_seq_len", "model_parallel_size"})
MOE_KEYS = frozenset({"num_experts", "top_k", "interleave_moe_layer_step", "capacity_factor", "auto_scale_F"})
LLAMA4_KEYS = ("moe_args", "ffn_exp", "attention_chunk_size", "nope_layer_interval", "use_qk_norm", "vision_args")
LLAMA3_VOCABULARY = 128000
ORIGINAL_CONTEXT = 8192
SMALL_SHAPES = frozenset({(2048, 16), (3072, 28)})
"""(dim, n_layers) of 3.2 1B and 3B, whose published scaling factor is 32; Meta's code has 8 for every model."""


def config_from_meta(
    raw: Mapping[str, object], vocabulary_rows: int, dtype: str
) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """Read params.json. `vocabulary_rows`: rows of the output matrix; `dtype`: what most weights are stored in.

    Raises LLC0222 for releases with quantized weights, LLC0301..LLC0304 for what cannot be.
    """
    ledger: list[LedgerEntry] = []
    _refuse_other_releases(raw)
    _note_keys(raw, ledger)
    keys = ConfigKeys(raw, WHERE, ledger, "the default of Meta's code")
    hidden, heads, layers = keys.integer("dim"), keys.integer("n_heads"), keys.integer("n_layers", most=MOST_LAYERS)
    is_llama4 = any(raw.get(key) is not None and raw[key] is not False for key in LLAMA4_KEYS)
    scaled = keys.flag("use_scaled_rope", False)
    config = LlamaConfig(
        name="",
        hidden_size=hidden,
        intermediate_size=_dense_width(keys, hidden),
        layers=layers,
        heads=heads,
        kv_heads=keys.integer("n_kv_heads", heads, "every attention head has its own keys and values"),
        head_dim=_head_dim(keys, hidden, heads),
        vocab_size=_vocabulary(raw, vocabulary_rows, ledger),
        rms_norm_eps=keys.number("norm_eps", 1e-5),
        rope_theta=_theta(keys, vocabulary_rows),
        rope_scaling=_scaling(keys, hidden, layers, is_llama4) if scaled else None,
        context_length=_context(vocabulary_rows, scaled, is_llama4, ledger),
        tied_head=False,
        dtype=dtype,
        rope_style="interleaved",
        architecture="llama4" if is_llama4 else "llama",
        moe=_mixture(keys, hidden, layers) if is_llama4 else None,
        attention=_attention(keys, layers) if is_llama4 else None,
        vision=vision_from_meta(raw["vision_args"], ledger) if raw.get("vision_args") is not None else None,
    )
    config = with_images(config, keys) if is_mllama(raw) else config
    return check_config(config, WHERE), ledger


def _refuse_other_releases(raw: Mapping[str, object]) -> None:
    """Releases whose weights are not those of the plain model."""
    quantization = raw.get("quantization_args")
    if quantization is not None or raw.get("lora_args") is not None:
        spin = isinstance(quantization, Mapping) and quantization.get("spinquant") is True
        reason = "this is a QLoRA release: int4 weights with low-rank corrections and 8-bit activations"
        if spin:
            reason = "this is a SpinQuant release: its weights need a Hadamard rotation while the model runs"
        hint = "compile the bf16 release of this model with --quantize int4"
        raise LlamacError("LLC0222", WHERE, f"{reason}, which is not supported", hint)


def _note_keys(raw: Mapping[str, object], ledger: list[LedgerEntry]) -> None:
    for key, value in raw.items():
        if key not in READ_KEYS and key not in HARMLESS_KEYS:
            what, reason = short(value), "this key is not known: ignored"
            ledger.append(entry("unknown-key", f"{WHERE} {key[:80]}", what, reason))


def _rounded_width(hidden: int, keys: ConfigKeys, divisor: float = 1.0) -> int:
    """Meta's formula: two thirds of `hidden`, times the multiplier, over `divisor`, rounded up to `multiple_of`."""
    width = 2 * hidden // 3
    if keys.raw.get("ffn_dim_multiplier") is not None:
        width = int(keys.number("ffn_dim_multiplier") * width)
    multiple = keys.integer("multiple_of", 256)
    return -(-int(width / divisor) // multiple) * multiple


def _dense_width(keys: ConfigKeys, hidden: int) -> int:
    return _rounded_width(4 * hidden, keys)


def _head_dim(keys: ConfigKeys, hidden: int, heads: int) -> int:
    if hidden % heads:
        reason = f"dim {hidden} is no multiple of {heads} heads"
        raise LlamacError("LLC0304", WHERE, reason, "take the params.json of the checkpoint")
    if keys.raw.get("head_dim") is not None and keys.integer("head_dim") != hidden // heads:
        reason = f"head_dim is {keys.raw['head_dim']}, and Meta's code takes dim / n_heads = {hidden // heads}"
        raise LlamacError("LLC0304", WHERE, reason, "take the params.json of the checkpoint")
    return hidden // heads


def _vocabulary(raw: Mapping[str, object], rows: int, ledger: list[LedgerEntry]) -> int:
    """vocab_size where it is given; -1 and null mean that the tokenizer knows, and so does the output matrix."""
    value = raw.get("vocab_size")
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    reason = f"given as {short(value)}: the rows of the output matrix"
    ledger.append(entry("default", f"{WHERE} vocab_size", f"{rows}", reason))
    return rows


def _theta(keys: ConfigKeys, vocabulary: int) -> float:
    """rope_theta; Llama 2, which does not give it, has 10000 (Meta's present code would take 500000)."""
    if vocabulary >= LLAMA3_VOCABULARY:
        return keys.number("rope_theta", 500000.0)
    return keys.number("rope_theta", 10000.0, "Llama 2's, by the size of the vocabulary")


def _scaling(keys: ConfigKeys, hidden: int, layers: int, is_llama4: bool) -> RopeScaling:
    if is_llama4:
        factor = keys.number("rope_scaling_factor", 16.0)
        return RopeScaling("llama3", factor, 1.0, keys.number("rope_high_freq_factor", 1.0), ORIGINAL_CONTEXT)
    small = (hidden, layers) in SMALL_SHAPES
    reason = "the published factor of 3.2 1B and 3B; Meta's code has 8" if small else "the factor in Meta's code"
    factor = keys.number("rope_scaling_factor", 32.0 if small else 8.0, reason)
    return RopeScaling("llama3", factor, 1.0, 4.0, ORIGINAL_CONTEXT)


def _context(vocabulary: int, scaled: bool, is_llama4: bool, ledger: list[LedgerEntry]) -> int:
    """params.json names no context length: that of the release which its other values belong to."""
    if is_llama4:
        length, release = (10485760, "Scout") if scaled else (1048576, "Maverick")
    elif vocabulary < LLAMA3_VOCABULARY:
        length, release = 4096, "Llama 2"
    else:
        length, release = (131072, "Llama 3.1") if scaled else (8192, "Llama 3")
    ledger.append(entry("default", f"{WHERE} context", f"{length}", f"params.json does not say: that of {release}"))
    return length


def _mixture(keys: ConfigKeys, hidden: int, layers: int) -> MixtureOfExperts | None:
    """moe_args, or None for Guard 4, which has no experts."""
    raw = keys.raw.get("moe_args")
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise LlamacError("LLC0303", WHERE, f"moe_args is {short(raw)}, expected an object", "correct the file")
    for key in raw:
        if key not in MOE_KEYS:
            why = "this key is not known: ignored"
            keys.ledger.append(entry("unknown-key", f"{WHERE} moe_args {str(key)[:80]}", short(raw[key]), why))
    moe = ConfigKeys(raw, f"{WHERE} moe_args", keys.ledger, keys.why_default)
    experts = moe.integer("num_experts", -1, least=-1, most=MOST_EXPERTS)
    if experts < 1:
        return None
    divisor = moe.number("capacity_factor", 1.0) + 1 if moe.flag("auto_scale_F", True) else 1.0
    width = _rounded_width(int(keys.number("ffn_exp", 4.0) * hidden), keys, divisor)
    step = moe.integer("interleave_moe_layer_step", 1)
    return MixtureOfExperts(experts, moe.integer("top_k", 1), width, tuple(range(step - 1, layers, step)))


def _attention(keys: ConfigKeys, layers: int) -> AttentionPattern:
    interval = keys.raw.get("nope_layer_interval")
    step = keys.integer("nope_layer_interval") if interval is not None else layers + 1
    chunk = keys.integer("attention_chunk_size", least=0) if keys.raw.get("attention_chunk_size") is not None else 0
    tuned = keys.flag("attn_temperature_tuning", False)
    floor, scale = keys.number("floor_scale", 8192.0), keys.number("attn_scale", 0.1)
    unrotated = tuple(range(step - 1, layers, step))
    return AttentionPattern(unrotated, chunk, keys.flag("use_qk_norm", False), floor, scale if tuned else 0.0)

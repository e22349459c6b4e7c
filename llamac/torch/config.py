"""What transformers wants to know of a model, read from an artifact's manifest."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from llamac.runtime.model import Model

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
}
"""transformers' name of a size -> the manifest's, below `model.config`."""


class LlamacConfig(PreTrainedConfig):  # type: ignore[misc]
    """The sizes of an artifact's model under transformers' names, and its first and last tokens."""

    model_type = "llamac"
    keys_to_ignore_at_inference = ("past_key_values",)


def config_of(artifact: Model) -> LlamacConfig:
    """The config of a loaded artifact. `max_position_embeddings` is the context that it was loaded with."""
    manifest = artifact.manifest
    described = manifest["model"]["config"]
    sizes = {name: described[key] for name, key in _SIZES.items()}
    return LlamacConfig(
        **sizes,
        max_position_embeddings=artifact.context,
        bos_token_id=artifact.plan.bos_id,
        eos_token_id=sorted(artifact.plan.stop_ids) or None,
        pad_token_id=_padding(artifact),
        tie_word_embeddings=False,
        architectures=["LlamacModel"],
        name_or_path=artifact.name,
        use_cache=True,
        dtype="float32",
    )


def generation_config_of(artifact: Model) -> GenerationConfig:
    """How the artifact's texts start, stop and are sampled: it samples where the model was published to be sampled."""
    defaults: dict[str, Any] = dict(artifact.plan.defaults)
    if "top_k" in defaults:
        defaults["top_k"] = int(defaults["top_k"])
    samples = defaults.get("temperature", 0.0) != 0
    if not samples:  # transformers refuses sampling values beside greedy search
        defaults = {name: value for name, value in defaults.items() if name == "repetition_penalty"}
    return GenerationConfig(
        bos_token_id=artifact.plan.bos_id,
        eos_token_id=sorted(artifact.plan.stop_ids) or None,
        pad_token_id=_padding(artifact),
        do_sample=samples,
        **defaults,
    )


def _padding(artifact: Model) -> int | None:
    """Padding is never computed, so any id will do: the smallest stop id, as transformers chooses it."""
    return min(artifact.plan.stop_ids, default=None)

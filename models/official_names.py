"""The names under which Meta publishes its models, and the preset that each stands for: data."""

from __future__ import annotations

ORGANIZATION = "meta-llama/"

REPOSITORIES: dict[str, tuple[str, ...]] = {
    "llama-2-7b": ("Llama-2-7b", "Llama-2-7b-hf", "Llama-2-7b-chat", "Llama-2-7b-chat-hf"),
    "llama-2-13b": ("Llama-2-13b", "Llama-2-13b-hf", "Llama-2-13b-chat", "Llama-2-13b-chat-hf"),
    "llama-2-70b": ("Llama-2-70b", "Llama-2-70b-hf", "Llama-2-70b-chat", "Llama-2-70b-chat-hf"),
    "llama-3-8b": ("Llama-3-8B", "Llama-3-8B-Instruct"),
    "llama-3-70b": ("Llama-3-70B", "Llama-3-70B-Instruct"),
    "llama-3.1-8b": ("Llama-3.1-8B", "Llama-3.1-8B-Instruct"),
    "llama-3.1-70b": ("Llama-3.1-70B", "Llama-3.1-70B-Instruct"),
    "llama-3.1-405b": ("Llama-3.1-405B", "Llama-3.1-405B-Instruct"),
    "llama-3.2-1b": ("Llama-3.2-1B", "Llama-3.2-1B-Instruct"),
    "llama-3.2-3b": ("Llama-3.2-3B", "Llama-3.2-3B-Instruct"),
    "llama-3.2-11b-vision": ("Llama-3.2-11B-Vision",),
    "llama-3.2-11b-vision-instruct": ("Llama-3.2-11B-Vision-Instruct",),
    "llama-3.2-90b-vision": ("Llama-3.2-90B-Vision", "Llama-3.2-90B-Vision-Instruct"),
    "llama-3.3-70b": ("Llama-3.3-70B-Instruct",),
    "llama-4-scout": ("Llama-4-Scout-17B-16E",),
    "llama-4-scout-instruct": ("Llama-4-Scout-17B-16E-Instruct",),
    "llama-4-maverick": ("Llama-4-Maverick-17B-128E",),
    "llama-4-maverick-instruct": ("Llama-4-Maverick-17B-128E-Instruct",),
    "llama-guard-2-8b": ("Llama-Guard-2-8B",),
    "llama-guard-3-1b": ("Llama-Guard-3-1B",),
    "llama-guard-3-8b": ("Llama-Guard-3-8B",),
    "llama-guard-3-11b-vision": ("Llama-Guard-3-11B-Vision",),
    "llama-guard-4-12b": ("Llama-Guard-4-12B",),
}
"""Preset -> repositories of `meta-llama` whose config it is; some carry a `Meta-` before the name."""

_FP8 = "stores part of its weights as fp8"
_INT4 = "stores its weights as int4 and limits the context to 8192"

RELEASES_APART: dict[str, tuple[str, str]] = {
    "llama-3.1-405b-fp8": ("llama-3.1-405b", _FP8),
    "llama-3.1-405b-instruct-fp8": ("llama-3.1-405b", _FP8),
    "llama-3.2-1b-instruct-qlora_int4_eo8": ("llama-3.2-1b", _INT4),
    "llama-3.2-1b-instruct-spinquant_int4_eo8": ("llama-3.2-1b", _INT4),
    "llama-3.2-3b-instruct-qlora_int4_eo8": ("llama-3.2-3b", _INT4),
    "llama-3.2-3b-instruct-spinquant_int4_eo8": ("llama-3.2-3b", _INT4),
    "llama-4-maverick-17b-128e-instruct-fp8": ("llama-4-maverick-instruct", _FP8),
    "llama-guard-3-1b-int4": ("llama-guard-3-1b", "is pruned to 12 layers and stored as int4"),
    "llama-guard-3-8b-int8": ("llama-guard-3-8b", "stores its weights as int8"),
}
"""Official releases that no preset describes, by bare name -> the nearest preset, and what sets them apart."""


def bare_name(name: str) -> str:
    """A repository's name in small letters, without organization and without a leading `Meta-`."""
    return name.lower().removeprefix(ORGANIZATION).removeprefix("meta-")

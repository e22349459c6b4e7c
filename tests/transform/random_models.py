"""Random small models by seed: every respect in which a Llama that llamac compiles may differ from another."""

from __future__ import annotations

import random
from dataclasses import replace

from small_models import BASE, LLAMA4, SmallModel

from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling

DENSE = {"f32": ("f32", "f16", "bf16"), "f16": ("f16",), "bf16": ("bf16",)}
"""Working dtype -> encodings of float weights."""

SMALL_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
LARGE_BLOCKS = ("q4_k", "q5_k", "q6_k")
SCHEMES = ("keep", "f32", "f16", "bf16", "fp8", "int8", "int8:asym", "int8:g64", "int4", "int4:g64:asym", "int4:g128")
ROLES = ("q", "k", "v", "o", "gate", "up", "down", "embed", "head")


def random_model(seed: int) -> SmallModel:
    """The model of a seed; the same on every machine."""
    r = random.Random(seed)
    blocks = r.choice([(), (), SMALL_BLOCKS, (*SMALL_BLOCKS, *LARGE_BLOCKS)])
    config = _config(r, 256 if len(blocks) > 5 else 32 if blocks else 0)
    floats = DENSE[config.dtype]
    matrix = r.choice(blocks or floats)
    special = {}
    for role in r.sample(ROLES, r.choice([0, 0, 1, 3])):
        special[role] = r.choice([*blocks, *floats])
    quantize = r.choice(SCHEMES if not blocks else ("keep", "keep", *SCHEMES))
    return SmallModel(config, matrix, quantize, r.choice(("f16", "f32", "bf16")), tuple(sorted(special.items())))


def _config(r: random.Random, block: int) -> LlamaConfig:
    group, kv_heads = r.choice([1, 2, 3, 4, 7]), r.choice([1, 2, 3])
    head_dim = r.choice([2, 6, 8, 16, 32])
    if block:
        # Rows of o are heads times head_dim values wide: whole blocks.
        group, kv_heads, head_dim = (r.choice([1, 2, 4]), 2, 16) if block == 32 else (r.choice([2, 4]), 2, 64)
    return replace(
        BASE,
        hidden_size=block * r.choice([1, 2] if block == 32 else [1]) or r.choice([8, 17, 40, 72]),
        intermediate_size=block * r.choice([1, 3] if block == 32 else [1]) or r.choice([9, 56, 100, 136]),
        layers=r.choice([1, 2, 2, 3]),
        heads=group * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=r.choice([7, 61, 67]),
        rms_norm_eps=r.choice([1e-5, 1e-6]),
        rope_theta=r.choice([1e4, 5e5]),
        rope_scaling=_scaling(r, head_dim),
        tied_head=r.random() < 0.5,
        dtype="f32" if block else r.choice(["f32", "bf16", "f16"]),
        rope_style=r.choice(["half_split", "interleaved"]),
    )


def _scaling(r: random.Random, head_dim: int) -> RopeScaling | None:
    divisors = tuple(r.choice([1.0, 2.5, 8.0]) for _ in range(head_dim // 2))
    return r.choice(
        [
            None,
            RopeScaling("linear", 4.0),
            RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
            RopeScaling("llama3", 32.0, 2.0, 2.0, 32),
            RopeScaling("divisors", divisors=divisors),
        ]
    )


def random_llama4(seed: int) -> SmallModel:
    """The Llama 4 of a seed: any pattern of rotation, chunks, norms, temperature and mixtures."""
    r = random.Random(f"llama4 {seed}")
    layers, dtype = r.choice([1, 2, 3, 4, 5]), r.choice(["f32", "bf16", "f16"])
    moe = _random_mixture(r, layers)
    group, kv_heads, head_dim = r.choice([1, 2, 3]), r.choice([1, 2, 3]), r.choice([2, 6, 8, 16])
    config = replace(
        LLAMA4,
        # What leads back from experts has a row for each element of the hidden state: whole panels of 16.
        hidden_size=r.choice([16, 48, 64]) if moe is not None else r.choice([8, 17, 40]),
        intermediate_size=r.choice([9, 56, 100]),
        layers=layers,
        heads=group * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=r.choice([7, 61, 67]),
        rms_norm_eps=r.choice([1e-5, 1e-3]),
        rope_scaling=r.choice(
            [None, RopeScaling("llama3", 16.0, 1.0, 1.0, 32), RopeScaling("llama3", 8.0, 1.0, 4.0, 64)]
        ),
        tied_head=r.random() < 0.5,
        dtype=dtype,
        moe=moe,
        attention=_random_pattern(r, layers),
    )
    special = {role: r.choice(DENSE[dtype]) for role in r.sample((*ROLES, "router"), r.choice([0, 0, 1, 3]))}
    kv_dtype = r.choice(("f16", "f32", "bf16"))
    return SmallModel(config, r.choice(DENSE[dtype]), r.choice(SCHEMES), kv_dtype, tuple(sorted(special.items())))


def _random_mixture(r: random.Random, layers: int) -> MixtureOfExperts | None:
    experts = r.choice([2, 3, 5, 8])
    mixed = tuple(layer for layer in range(layers) if r.random() < 0.6)
    return MixtureOfExperts(experts, r.randint(1, min(experts, 4)), r.choice([16, 32, 48]), mixed) if mixed else None


def _random_pattern(r: random.Random, layers: int) -> AttentionPattern:
    interval = r.choice([0, 1, 2, 4])
    return AttentionPattern(
        unrotated=tuple(layer for layer in range(layers) if interval and (layer + 1) % interval == 0),
        chunk=r.choice([0, 1, 5, 8, 12, 16, 64]),
        qk_norm=r.random() < 0.6,
        temperature_floor=r.choice([1.0, 2.5, 5.0]),
        temperature_scale=r.choice([0.0, 0.1, 0.5]),
    )

"""Finds the llama3 rescaling that divisors of rotary frequencies were made from, or says that there is none.

GGUF files hold the divisors alone (`rope_freqs.weight`); Hugging Face's and Meta's configs hold the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig, RopeScaling

_CONTEXTS = tuple(1 << power for power in range(5, 21))
_HIGH_FACTORS = (4.0, 1.0, 2.0, 8.0, 16.0, 32.0)
"""A low factor of 1 loses nothing: context, low and high factor times one number are the same rescaling."""
_TOLERANCE = 1e-6
"""Largest relative difference: what single precision leaves of a divisor between 1 and the factor."""


def with_parameters(config: LlamaConfig, form: str) -> LlamaConfig:
    """`config` with its divisors as llama3 parameters; LLC0951 where no parameters give them."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "divisors":
        return config
    found = fitted_scaling(scaling.divisors, config.rope_theta, config.head_dim)
    if found is None:
        reason = f"its rope divisors are those of no llama3 scaling, and {form} has no list of them"
        raise LlamacError("LLC0951", "rope", reason, "export to gguf, which keeps them")
    return replace(config, rope_scaling=found if found.factor != 1.0 else None)


def fitted_scaling(divisors: Sequence[float], theta: float, head_dim: int) -> RopeScaling | None:
    """The parameters whose divisors these are, or None."""
    factor = float(str(np.float32(max(divisors))))
    if factor == 1.0:
        return RopeScaling("llama3", 1.0, 1.0, 4.0, 8192) if min(divisors) == 1.0 else None
    wanted = np.asarray(divisors, np.float64)
    for high in _HIGH_FACTORS:
        for context in sorted(_CONTEXTS, key=lambda length: length != 8192):
            scaling = RopeScaling("llama3", factor, 1.0, high, context)
            if np.allclose(rope_divisors(scaling, theta, head_dim), wanted, rtol=_TOLERANCE, atol=0):
                return scaling
    return None


def rope_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """What llama3 parameters divide the frequencies by, f64 [head_dim / 2] (transformers, modeling_rope_utils.py)."""
    wavelengths = 2 * math.pi * np.asarray(theta, np.float64) ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, context = scaling.low_frequency_factor, scaling.high_frequency_factor, scaling.original_context
    divisors = np.where(wavelengths > context / low, scaling.factor, 1.0)
    middle = (wavelengths <= context / low) & (wavelengths >= context / high)
    if high > low:
        smooth = (context / wavelengths[middle] - low) / (high - low)
        divisors[middle] = 1 / ((1 - smooth) / scaling.factor + smooth)
    return divisors

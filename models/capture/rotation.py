"""Reads rotary frequencies off tables of cosines and sines, and says them in a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..llama.config import LlamaConfig, RopeScaling
from ..llama.graph import inverse_frequencies

Floats = NDArray[np.float64]

TABLE_TOLERANCE = 4e-7
"""Two ways of computing a cosine in f32, per position: the angle is rounded, and grows with the position."""

HINT = "a Llama turns pair i of position p by p times the frequency of i"


def read_frequencies(
    cosines: NDArray[np.float32],
    sines: NDArray[np.float32],
    known: Sequence[NDArray[np.float32]],
    rounding: float = 0.0,
    first: int = 0,
) -> NDArray[np.float32]:
    """The frequencies [head_dim / 2] of two tables [positions, head_dim / 2], f32, of the positions from `first` on.

    known: frequencies that the graph holds as they are: one of them is taken where it makes the tables. rounding: how
    far the tables may be off because their type is narrow. LLC0318 when nothing makes them; one position says nothing
    of the rotation, unless it is the first, which is not turned, or what turns it is known.
    """
    angles = np.arctan2(sines, cosines).astype(np.float64)
    usual = [1e4 ** (-np.arange(angles.shape[1], dtype=np.float32) / angles.shape[1])] if first == 0 else []
    for found in (*known, *([_refined(angles - angles[0])] if len(angles) > 1 else usual)):
        if found.shape == angles.shape[1:] and _makes(found, cosines, sines, rounding, first):
            frequencies: NDArray[np.float32] = found.astype(np.float32)
            return frequencies
    if len(angles) == 1:
        reason = "one position alone says nothing of the rotation, and the module holds no frequencies"
        raise LlamacError("LLC0318", "rope", reason, "call the module with at least two tokens first")
    raise LlamacError("LLC0318", "rope", "the tables of cosines and sines are those of no frequencies", HINT)


def _refined(angles: Floats) -> NDArray[np.float32]:
    """Frequencies from the angles of ever longer distances; each tells the next how often it has gone round."""
    frequency, distance = angles[1], 1
    while distance * 2 < len(angles):
        distance *= 2
        turns = np.round((frequency * distance - angles[distance]) / (2 * np.pi))
        frequency = (angles[distance] + 2 * np.pi * turns) / distance
    found: NDArray[np.float32] = frequency.astype(np.float32)
    return found


def _makes(
    found: NDArray[np.float32], cosines: NDArray[np.float32], sines: NDArray[np.float32], rounding: float, first: int
) -> bool:
    positions = np.arange(first, first + len(cosines), dtype=np.float32)
    angles = (positions[:, None] * found[None, :]).astype(np.float64)
    allowed = rounding + TABLE_TOLERANCE * (1 + np.abs(angles))
    close = np.abs(np.cos(angles) - cosines) <= allowed
    return bool((close & (np.abs(np.sin(angles) - sines) <= allowed)).all())


def with_frequencies(config: LlamaConfig, wanted: NDArray[np.float32]) -> LlamaConfig:
    """`config` with a theta, and divisors where there is need, that give these frequencies."""
    half = config.head_dim // 2
    guess = float(np.float64(wanted[-1]) ** (-half / (half - 1))) if half > 1 and wanted[0] == 1 else 1e4
    for theta in (float(f"{guess:.3g}"), float(f"{guess:.6g}")):
        plain = replace(config, rope_theta=theta, rope_scaling=None)
        if np.allclose(inverse_frequencies(plain), wanted, rtol=2e-7, atol=0):
            return plain
    plain = replace(config, rope_theta=1e4, rope_scaling=None)
    divisors = inverse_frequencies(plain).astype(np.float64) / wanted
    return replace(plain, rope_scaling=RopeScaling("divisors", divisors=tuple(float(np.float32(d)) for d in divisors)))

"""The rotary base and the frequencies, from a table of sines or from the frequencies themselves.

sin(f) at position 1 is the frequency f itself, told by its angle; later positions make it sharper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..llama.config import LlamaConfig
from .proto import FLOAT, OnnxModel, TensorProto
from .stored import locate

ROTATING = {
    "com.microsoft.GroupQueryAttention": (8, "rotary_interleaved"),
    "com.microsoft.RotaryEmbedding": (3, "interleaved"),
}
"""Op -> its input with the table of sines, and its attribute for interleaved pairs."""
THETA_ERROR = 4e-6
"""Of the base that such frequencies tell. Bases are round numbers: the shortest within it is meant."""
FREQUENCY_ERROR = 2.0**-22
"""Of a frequency that is read from a table in f32."""


def sine_tables(model: OnnxModel) -> Iterator[TensorProto]:
    """The tables of sines by position that nodes rotate with."""
    for node in model.nodes:
        place = ROTATING.get(node.key, (0, ""))[0]
        if place and place < len(node.inputs) and node.inputs[place] in model.tensors:
            yield model.tensors[node.inputs[place]]


def frequencies_of_table(table: TensorProto, file: Path, config: LlamaConfig) -> NDArray[np.float64]:
    """The frequencies that a table has: angles at position 1, in (0, 1], made sharper by later positions."""
    half = config.head_dim // 2
    if len(table.shape) != 2 or table.shape[0] < 2 or table.shape[1] != half or table.type != FLOAT:
        reason = f"a table of sines of shape {list(table.shape)}, expected float32 [positions, {half}]"
        raise LlamacError("LLC0937", table.name, reason, "put the model's config.json beside it")
    stored = locate(table, file)
    rows = min(table.shape[0], 4096)
    sines = replace(stored, shape=(rows, half)).read(rows * half).astype(np.float64)
    frequency: NDArray[np.float64] = np.arcsin(np.clip(sines[1], -1, 1))
    position = 2
    while position < rows:
        turns = frequency * position
        near = np.arcsin(np.clip(sines[position], -1, 1))
        candidates = np.stack([near + 2 * np.pi * np.round((turns - near) / (2 * np.pi)),
                               np.pi - near + 2 * np.pi * np.round((turns - np.pi + near) / (2 * np.pi))])  # fmt: skip
        best = np.take_along_axis(candidates, np.abs(candidates - turns).argmin(axis=0)[None], 0)[0]
        is_steep = np.abs(sines[position]) < 0.9
        frequency = np.where(is_steep, best / position, frequency)
        position *= 2
    return np.asarray(frequency, np.float64)


def base_of(frequencies: NDArray[np.float64]) -> float:
    """theta: frequency i is theta ** (-2i / head size) as far as no scaling touches it, which is for the first ones.

    Each of them tells theta, the later the better; the first that contradicts those before it is a scaled one.
    """
    half = len(frequencies)
    if half < 2 or not (0 < frequencies[1] < 1 and math.isclose(frequencies[0], 1, rel_tol=1e-5)):
        raise LlamacError(
            "LLC0937",
            "rope",
            "the graph's table is none of rotary frequencies",
            "put the model's config.json beside it",
        )
    theta = float(frequencies[1]) ** -float(half)
    for index in range(2, half):
        told = float(frequencies[index]) ** (-half / index)
        if not math.isclose(told, theta, rel_tol=half / (index - 1) * FREQUENCY_ERROR):
            break
        theta = told
    shortest = (float(f"{theta:.{digits}g}") for digits in range(1, 12))
    return next((number for number in shortest if math.isclose(number, theta, rel_tol=THETA_ERROR)), theta)

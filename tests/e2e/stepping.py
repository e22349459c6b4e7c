"""Ways to run the same ids through a model: whole, in chunks, one by one, beside other sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llamac.runtime.model import Model
from llamac.runtime.session import Feed

Floats = NDArray[np.float32]


def in_chunks(model: Model, ids: list[int], sizes: Sequence[int]) -> Floats:
    """Logits after every id of one fresh sequence, cut into steps of `sizes` (the last size repeats to the end)."""
    sequence = model.session.open()
    rows, start, step = [], 0, 0
    try:
        while start < len(ids):
            stop = start + sizes[min(step, len(sizes) - 1)]
            rows.append(model.session.step([Feed(sequence, ids[start:stop], "all")]))
            start, step = stop, step + 1
    finally:
        sequence.close()
    return np.concatenate(rows)


def side_by_side(model: Model, prompts: list[list[int]], cuts: list[list[int]]) -> list[Floats]:
    """Logits after every id of each prompt, all stepped together; prompt i is cut at the places `cuts[i]`.

    A prompt that has ended takes no part in later steps. The order of the sequences turns from step to step.
    """
    sequences = [model.session.open() for _ in prompts]
    rows: list[list[Floats]] = [[] for _ in prompts]
    bounds = [[0, *sorted(c), len(p)] for c, p in zip(cuts, prompts, strict=True)]
    parts = [[p[a:b] for a, b in pairwise(e) if b > a] for p, e in zip(prompts, bounds, strict=True)]
    try:
        for step in range(max(map(len, parts))):
            running = [i for i in range(len(prompts)) if step < len(parts[i])]
            order = running[step % len(running) :] + running[: step % len(running)]
            found = model.session.step([Feed(sequences[i], parts[i][step], "all") for i in order])
            for i in order:
                count = len(parts[i][step])
                rows[i].append(found[:count])
                found = found[count:]
    finally:
        for sequence in sequences:
            sequence.close()
    return [np.concatenate(part) for part in rows]


def assert_same_bits(found: Floats, expected: Floats, what: str) -> None:
    """Equal bit for bit; the message names the first row and column that are not."""
    different = found.view(np.uint32) != expected.view(np.uint32)
    if different.any():
        row, column = (int(i) for i in np.argwhere(different)[0])
        values = f"{found[row, column]!r} instead of {expected[row, column]!r}"
        raise AssertionError(f"{what}: {different.sum()} values differ, first row {row}, column {column}: {values}")

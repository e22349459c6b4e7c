"""What validation runs a model on: token sequences around the places where something changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .far_positions import FarSequence, far_sequence
from .pictures import Pictures

FAR = 4096
"""Where the far sequence of a scenario goes on."""


@dataclass(frozen=True)
class Scenario:
    """Token sequences, how the ragged step cuts them, and one that goes on far from its start."""

    sequences: tuple[tuple[int, ...], ...]
    seed: int
    far: FarSequence | None = None

    def partitions(self, page: int) -> Iterator[list[tuple[int, int]]]:
        """Steps of the ragged run, each a list of (sequence, position) rows, every sequence in order."""
        generator = np.random.Generator(np.random.Philox(key=self.seed))
        position = [0] * len(self.sequences)
        while any(p < len(s) for p, s in zip(position, self.sequences, strict=True)):
            rows: list[tuple[int, int]] = []
            for index in generator.permutation(len(self.sequences)):
                left = len(self.sequences[index]) - position[index]
                take = min(int(generator.integers(0, page + 2)), left)
                rows += [(int(index), position[index] + i) for i in range(take)]
                position[index] += take
            if rows:
                yield rows

    def pictures(self, page: int) -> Pictures:
        """What the sequences show of pictures, to graphs that take them."""
        return Pictures(tuple(map(len, self.sequences)), page, self.seed)


def make_scenario(vocabulary: int, page: int, seed: int) -> Scenario:
    """Sequences of one token, around a page, over two pages; with the embedding's awkward rows and repeated tokens.

    The last goes on at position `FAR`.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    lengths = (1, page - 1, page, page + 1, 2 * page + 3)
    sequences = [tuple(int(t) for t in generator.integers(0, vocabulary, n)) for n in lengths]
    awkward = [0, 1, 2, 3, 4, 4, vocabulary - 1]
    sequences.append(tuple(t % vocabulary for t in awkward))
    return Scenario(tuple(sequences), seed, far_sequence(vocabulary, page, FAR, generator))

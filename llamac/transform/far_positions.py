"""Positions thousands of tokens into a sequence, validated without thousands of tokens.

A graph knows positions as numbers: what goes wrong far into a context (a narrow dtype, a table that ends, a page or a
chunk counted wrongly) goes wrong at a large number, whatever the tokens before it were. So one block of tokens is run,
what it leaves in the cache stands for every block before the far ones, and a few tokens follow. With explicit past the
keys and values are repeated; in the ragged step the page table names the same page again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.ir.definition import Array

PLACE = 4
"""The place of the far sequence among those of a ragged step, and in what is shown of pictures."""


@dataclass(frozen=True)
class FarSequence:
    """`block` is run at position 0 and stands there `blocks` times; `tail` follows. A block fills a page."""

    block: tuple[int, ...]
    blocks: int
    tail: tuple[int, ...]

    @property
    def start(self) -> int:
        """The position of the tail's first token."""
        return len(self.block) * self.blocks

    def repeated(self, values: Array) -> Array:
        """Keys or values of the block, [heads, block, width], as those of all positions before the tail."""
        return np.tile(values, (1, self.blocks, 1))

    def steps(self) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
        """The two steps of a ragged run: rows (place, position), and their tokens."""
        yield [(PLACE, n) for n in range(len(self.block))], list(self.block)
        yield [(PLACE, self.start + n) for n in range(len(self.tail))], list(self.tail)

    def page_table(self, near: Array, cross: bool) -> Array:
        """`near`, [sequences, pages], as wide as the far sequence needs, which has page 0 over and over, then page 1.

        cross: the pages of pictures stay as they are.
        """
        table = np.pad(near, ((0, 0), (0, self.blocks + 1 - near.shape[1])), constant_values=-1)
        if not cross:
            table[:] = -1
            table[PLACE] = [0] * self.blocks + [1]
        return table


def far_sequence(vocabulary: int, page: int, start: int, generator: np.random.Generator) -> FarSequence:
    """Random tokens around position `start`, rounded down to a page: past 2048, where f16 stops counting by ones."""
    tokens = [int(t) for t in generator.integers(0, vocabulary, page + 3)]
    return FarSequence(tuple(tokens[:page]), start // page, tuple(tokens[page:]))


def inputs_of(rows: list[tuple[int, int]], tokens: list[int], wanted: Array) -> dict[str, Any]:
    """The arguments of a ragged step over (sequence, position) rows; `wanted` are those whose logits are asked for."""
    return {
        "token_ids": np.array(tokens, np.int32),
        "positions": np.array([position for _, position in rows], np.int32),
        "sequence_of_token": np.array([sequence for sequence, _ in rows], np.int32),
        "logit_rows": wanted,
    }

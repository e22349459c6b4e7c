"""What a step that draws tokens on the GPU is told of each row, and what it tells: rows of 32-bit words.

The random number of a draw is the host's own, that of `Sampler`: word n of the Philox stream of the seed. It depends on
nothing that a step computes, so it goes in with the step's other inputs, and the GPU needs no generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import LISTED, SAMPLED_WORDS, SAMPLING_WORDS

from ..sampler import SamplerOptions

Int32s = npt.NDArray[np.int32]
_LOW_BITS = 21
_LARGEST = (1 << 31) - 1


def sampling_rows(rows: Sequence[tuple[SamplerOptions, int]]) -> Int32s:
    """i32 [R, SAMPLING_WORDS] of the options of each row and the 53 random bits of its draw.

    Words: the low 21 and the high 32 of these bits; temperature, 0 for the best token; top-k, 0 for off; top-p; the log
    of min-p; two unused. The repetition penalty is not among them: it needs the history.
    """
    words = np.zeros((len(rows), SAMPLING_WORDS), np.int32)
    floats = words.view(np.float32)
    for row, (options, bits) in enumerate(rows):
        words[row, :2] = np.array([bits & ((1 << _LOW_BITS) - 1), bits >> _LOW_BITS], np.uint32).view(np.int32)
        floats[row, 2] = options.temperature
        words[row, 3] = min(options.top_k, _LARGEST)
        floats[row, 4] = options.top_p
        floats[row, 5] = math.log(options.min_p) if options.min_p > 0 else -math.inf
    return words


@dataclass(frozen=True)
class DrawnToken:
    """A token that was drawn on the device.

    token_id: -1 where the logits are no distribution. logprob: before temperature and filters. best_ids,
    best_logprobs: the likeliest tokens, the best first, at most LISTED.
    """

    token_id: int
    logprob: float
    best_ids: Int32s
    best_logprobs: npt.NDArray[np.float32]


def drawn_token(words: Int32s) -> DrawnToken:
    """What a row of the output `sampled`, i32 [SAMPLED_WORDS], says."""
    floats = words.view(np.float32)
    ids, values = words[4 : 4 + LISTED], floats[4 + LISTED : SAMPLED_WORDS]
    there = ids >= 0
    return DrawnToken(int(words[0]), float(floats[1]), ids[there], values[there] - floats[2])

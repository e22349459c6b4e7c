"""One row of a step's results: its best logits where they were ranked, and all of them for who needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .gpu.sampling import DrawnToken

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepRow:
    """A row of logits, in whole or in part.

    logits: gives the whole row, [vocab_size], computing it again where it was not written. ids, values: the best
    logits, [count], and total, as in `RankedRows`; None where they were not ranked or not summed. drawn: the token that
    the device has drawn from it.
    """

    logits: Callable[[], Float32s]
    ids: npt.NDArray[np.int32] | None = None
    values: Float32s | None = None
    total: float | None = None
    vocab_size: int = 0
    drawn: DrawnToken | None = None

"""Replays an artifact's golden vectors: does this machine give the tokens and logits that were recorded?

Logits are compared within a tolerance: instruction sets differ in the last bits of exp and sums, and an outside oracle
computes in f32 what the artifact computes in its own formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .device_cpu import Float32s
from .model import Model

TOLERANCE: dict[tuple[str, str], float] = {
    ("dense", "absent"): 1e-3,
    ("dense", "outside"): 2e-2,
    ("grouped", "absent"): 5e-2,
    ("grouped", "outside"): 1.0,
}
"""(weights, oracle) -> largest difference of a logit. Grouped formats also round activations to 8 bits, so a last bit
that differs can become a whole step. A manifest's own `golden.tolerance` comes first."""

DENSE_FORMATS = frozenset({"f32", "bf16", "f16", "e4m3fn"})


@dataclass(frozen=True)
class Verdict:
    """One golden vector: the largest difference of its recorded logits, and where the greedy ids part, if they do.

    A greedy id counts as reproduced when its logit is within the tolerance of the largest: a tie may fall either way.
    """

    vector: int
    passed: bool
    logit_difference: float
    tolerance: float
    parted_at: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def tolerance_of(manifest: Mapping[str, Any]) -> float:
    """The tolerance for this artifact's golden vectors, by its manifest or by the table."""
    golden = manifest["golden"]
    if "tolerance" in golden:
        return float(golden["tolerance"])
    formats = {row["format"] for weights in manifest["weights"] for row in weights["tensors"]}
    weights = "dense" if formats <= DENSE_FORMATS else "grouped"
    return TOLERANCE[weights, "absent" if golden["oracle"] == "absent" else "outside"]


def replay(model: Model) -> list[Verdict]:
    """Run every golden vector of the artifact; one verdict each, in order."""
    tolerance = tolerance_of(model.manifest)
    return [_judge(model, index, row, tolerance) for index, row in enumerate(model.manifest["golden"]["vectors"])]


def _judge(model: Model, index: int, vector: Mapping[str, Any], tolerance: float) -> Verdict:
    prompt, greedy = vector["prompt_ids"], vector["greedy_ids"]
    # One pass over prompt and continuation gives the logits before each recorded id.
    logits = model.logits([*prompt, *greedy[:-1]])[len(prompt) - 1 :]
    difference = _largest_difference(logits[0], vector["top"])
    parted = next((step for step, token in enumerate(greedy) if not _is_greedy(logits[step], token, tolerance)), None)
    return Verdict(index, difference <= tolerance and parted is None, difference, tolerance, parted)


def _largest_difference(logits: Float32s, top: Sequence[Sequence[float]]) -> float:
    return max((abs(float(logits[int(token)]) - value) for token, value in top), default=0.0)


def _is_greedy(logits: Float32s, token: int, tolerance: float) -> bool:
    return bool(float(np.max(logits)) - float(logits[token]) <= tolerance)

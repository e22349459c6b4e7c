"""Replays an artifact's golden vectors: does this machine give the tokens and logits that were recorded?

Logits are compared within a tolerance: instruction sets differ in the last bits of exp and sums, and an outside oracle
computes in f32 what the artifact computes in its own formats. Its vectors are made on the artifact's own weights (those
of its scheme), so the tolerance has to cover the arithmetic only, and a wrong rope_theta or a misplaced weight shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llamac.errors import LlamacError

from .device_cpu import Float32s
from .model import Model

TOLERANCE: dict[tuple[str, str], float] = {
    ("f32", "absent"): 1e-3,
    ("dense", "absent"): 1e-3,
    ("grouped", "absent"): 5e-2,
    ("int4", "absent"): 5e-2,
    ("f32", "outside"): 1e-3,
    ("dense", "outside"): 2e-2,
    ("grouped", "outside"): 1.0,
    ("int4", "outside"): 2.0,
}
"""(arithmetic, oracle) -> largest difference of a logit.

"outside" is at least 1.7 times what SmolLM2-135M shows on the packaged vectors: 5e-5 with f32 weights and cache, 5e-3
with f16 or bf16 (the cache is f16), 0.45 with weights in groups, which round activations to 8 bits in blocks of 32, and
1.2 with int4 (after a prompt of five tokens; 0.35 otherwise). The mistakes that tests/bench makes on purpose exceed it.
"absent" compares llamac with itself on another instruction set; there a last bit can become a whole step of 8 bits."""

_LARGEST_TOLERANCE = 1e9

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
        given = golden["tolerance"]
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < _LARGEST_TOLERANCE:
            reason = f"is {ascii(given)[:40]}, must be a number from 0"
            raise LlamacError("LLC0802", "manifest key golden.tolerance", reason, "compile the model again")
        return float(given)
    return TOLERANCE[_arithmetic(manifest), "absent" if golden["oracle"] == "absent" else "outside"]


def _arithmetic(manifest: Mapping[str, Any]) -> str:
    formats = {row["format"] for weights in manifest["weights"] for row in weights["tensors"]}
    if formats == {"f32"} and manifest["memory"]["kv_dtype"] == "f32":
        return "f32"
    if formats <= DENSE_FORMATS:
        return "dense"
    return "int4" if manifest["quantization"].startswith("int4") else "grouped"


def replay(model: Model) -> list[Verdict]:
    """Run every golden vector of the artifact; one verdict each, in order."""
    tolerance = tolerance_of(model.manifest)
    return [_judge(model, index, row, tolerance) for index, row in enumerate(model.manifest["golden"]["vectors"])]


def _judge(model: Model, index: int, vector: Mapping[str, Any], tolerance: float) -> Verdict:
    prompt, greedy = vector["prompt_ids"], vector["greedy_ids"]
    _check_ids(model, index, vector)
    # One pass over prompt and continuation gives the logits before each recorded id.
    logits = model.logits([*prompt, *greedy[:-1]])[len(prompt) - 1 :]
    difference = _largest_difference(logits[0], vector["top"])
    parted = next((step for step, token in enumerate(greedy) if not _is_greedy(logits[step], token, tolerance)), None)
    return Verdict(index, difference <= tolerance and parted is None, difference, tolerance, parted)


def _check_ids(model: Model, index: int, vector: Mapping[str, Any]) -> None:
    """Every id that a logit is looked up for has one; LLC0802 otherwise."""
    named = [token for pair in vector["top"] for token in pair[:1]]
    is_id = [isinstance(token, int) and 0 <= token < model.vocab_size for token in (*vector["greedy_ids"], *named)]
    if not all(is_id) or any(len(pair) != 2 for pair in vector["top"]):
        reason = f"it names ids outside the vocabulary of {model.vocab_size}, or pairs that are none"
        raise LlamacError("LLC0802", f"manifest key golden.vectors[{index}]", reason, "compile the model again")


def _largest_difference(logits: Float32s, top: Sequence[Sequence[float]]) -> float:
    return max((abs(float(logits[int(token)]) - value) for token, value in top), default=0.0)


def _is_greedy(logits: Float32s, token: int, tolerance: float) -> bool:
    return bool(float(np.max(logits)) - float(logits[token]) <= tolerance)

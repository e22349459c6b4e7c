"""Runs an artifact's model a second time, by TVM, and compares: `llamac verify --against tvm`.

TVM gets the IR that lies in the artifact and the artifact's own weights, and shares nothing else with the C that the
artifact's code was made of. Two things are compared on each prompt. *Op by op*, each op of TVM works on the very values
that the C code had, so a difference is that op's own, and the bound is tight whatever the quantization. *End to end*,
TVM computes the logits from the token ids alone; that is bounded where activations are floats. Where they are rounded
to int8, a last bit that falls the other way moves a value by a whole step, and a deep model makes much of that in both
implementations alike: then the difference is reported and the ops decide.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamac.artifact.read import Artifact
from llamac.artifact.tvm_plan import require_tvm
from llamac.ir.graph import Module

from .divergence import TOLERANCE, Divergence, compare
from .recording import Floats, Recording, record_interpreter, stored_module, stored_weights, weight_arrays
from .traced_build import record_artifact

PROMPT_TOKENS = 24
"""Of the prompt that is made up for an artifact without golden vectors."""

MOST_PROMPTS = 2
"""Golden vectors that are run a second time."""


@dataclass(frozen=True)
class Agreement:
    """One prompt: the comparison of its ops, and of the logits of all its tokens.

    absolute, relative: largest difference of logits, the second to the largest logit. bound: of `relative`, None where
    the logits are only reported.
    """

    ids: tuple[int, ...]
    ops: Divergence
    absolute: float
    relative: float
    bound: float | None

    @property
    def agrees(self) -> bool:
        return self.ops.agrees and (self.bound is None or self.relative <= self.bound)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        logits = {"absolute": self.absolute, "relative": self.relative, "bound": self.bound}
        return {"agrees": self.agrees, "ids": list(self.ids), "logits": logits, "ops": self.ops.to_json()}


def run_against_tvm(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[Agreement]:
    """Compare an artifact's code with TVM on its golden prompts, or on one made up. **This runs the artifact's code.**

    LLC0940, LLC0941 (TVM), LLC0942 for an op without a rule, LLC0801 for an artifact without code for CPUs.
    """
    require_tvm()
    with Artifact.open(path) as artifact, tempfile.TemporaryDirectory(prefix="llamac-second-") as folder:
        prompts = _prompts(artifact)
        found = []
        for number, ids in enumerate(prompts):
            own = Path(folder) / str(number)  # a library that is loaded must not be written to
            own.mkdir()
            found.append(_compared(artifact, ids, own))
            if progress is not None:
                progress(number + 1, len(prompts))
        return found


def _prompts(artifact: Artifact) -> list[tuple[int, ...]]:
    """The token ids that are run: prompts and continuations of golden vectors, else ids all over the vocabulary."""
    manifest = artifact.manifest
    most = min(manifest["memory"]["max_step_tokens"], manifest["model"]["context_length"])
    vectors = manifest["golden"]["vectors"][:MOST_PROMPTS]
    if vectors:
        return [tuple([*row["prompt_ids"], *row["greedy_ids"]][:most]) for row in vectors]
    ids = np.random.default_rng(0).integers(0, manifest["model"]["vocab_size"], min(PROMPT_TOKENS, most))
    return [tuple(int(i) for i in ids)]


def _compared(artifact: Artifact, ids: Sequence[int], folder: Path) -> Agreement:
    compiled = record_artifact(artifact, ids, folder)
    ops = compare(compiled, record_tvm(artifact, ids, compiled), ids)
    logits = tvm_logits(artifact, ids)
    difference = np.abs(logits.astype(np.float64) - compiled.logits)
    largest = float(np.nan_to_num(difference, nan=np.inf).max())
    relative = largest / max(float(np.abs(compiled.logits).max()), 1e-30)
    bound = None if compiled.quantized or _rounds_inputs(stored_module(artifact)) else TOLERANCE["float"]
    return Agreement(tuple(ids), ops, largest, relative, bound)


def _rounds_inputs(module: Module) -> bool:
    """Whether products round their inputs to bf16."""
    return any(str(op.attributes.get("format", "")).endswith("x2") for _, op in module.ops())


def record_tvm(artifact: Artifact, ids: Sequence[int], compiled: Recording) -> Recording:
    """Run the artifact's IR op by op with TVM on its own weights, each op on what `compiled` had for it."""
    from llamac.backends.tvm.interpreting import TvmInterpreter

    return record_interpreter(artifact, ids, compiled, TvmInterpreter, "TVM")


def tvm_logits(artifact: Artifact, ids: Sequence[int]) -> Floats:
    """The logits of every token, by TVM from the artifact's IR and weights alone."""
    from llamac.backends.tvm.step_run import step_logits

    module, weights = stored_module(artifact), stored_weights(artifact)
    return step_logits(module, weight_arrays(module, weights), ids)

"""What code for GPUs computes, without a GPU: the kernel-level graph of a model in the IR's interpreter."""

from __future__ import annotations

import numpy as np
from _reference import Floats

from llamac.driver import compile_graph
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import whole_sequences
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization

STEP = 512
"""Tokens of a step: a window in one, which is what prefill makes of it."""


class InterpretedModel:
    """A checkpoint by the pipeline of GPUs, in f32 with every rounding that the graph says; slow, for small models."""

    def __init__(self, source: str, quantize: str, kv: str | None) -> None:
        checkpoint = open_source(source)
        compiled = compile_graph(checkpoint, parse_quantization(quantize), kv, STEP, None, [], kind="gpu")
        self.module = compiled.module
        self.name = f"{checkpoint.name} on a GPU, {compiled.kv_dtype} cache"
        self._interpreter = Interpreter(compiled.module, checkpoint.read_rows)

    def logits(self, ids: list[int]) -> Floats:
        """Logits [tokens, vocabulary] behind every id."""
        (found, *_) = self._interpreter.run(whole_sequences(self.module.step, [ids]))
        return np.asarray(found, np.float32)

"""A checkpoint's graphs run by the numpy interpreter: the meaning against which compiled code is checked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.driver import CompiledGraph, compile_graph
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import whole_sequences, without_pictures
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization

Floats = NDArray[np.float32]


def captured_logits(checkpoint: Checkpoint, ids: list[int], first: int | None = None) -> Floats:
    """Logits of the captured graph with f32 activations; the first `first` ids in a call of their own (none: all)."""
    config = replace(checkpoint.config, dtype="f32")
    module = build_graph(config, checkpoint.tensors)
    interpreter = Interpreter(module, checkpoint.read_rows)
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    past = [empty] * (2 * config.layers)
    rows: list[Floats] = []
    cuts = [0, len(ids)] if first is None else [0, first, len(ids)]
    for start, stop in pairwise(cuts):
        inputs: dict[str, Any] = {"ids": ids[start:stop], "positions": np.arange(start, stop)}
        inputs |= without_pictures(module.step, stop - start)
        for layer in range(config.layers):
            inputs[f"past_k.{layer}"], inputs[f"past_v.{layer}"] = past[2 * layer : 2 * layer + 2]
        logits, *past = interpreter.run(inputs)
        rows.append(logits)
    return np.concatenate(rows).astype(np.float32)


def inverse_frequencies(config: LlamaConfig) -> Floats:
    """The angle per position of each rotated pair, as the captured graph computes it."""
    module = build_graph(replace(config, dtype="f32"), random_checkpoint(config, 0).tensors)
    angles = next(op.operands[0] for op in module.step.ops if op.opcode == "cos")
    while angles.producer is not None and angles.producer.opcode == "concat":
        angles = angles.producer.operands[0]
    assert angles.producer is not None
    columns = next(v for v in angles.producer.operands if v.tensor.shape[0] == 1)
    module.step.outputs = [columns]
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    inputs: dict[str, Any] = {"ids": [0], "positions": [0]}
    for layer in range(config.layers):
        inputs[f"past_k.{layer}"] = inputs[f"past_v.{layer}"] = empty
    module.step.remove_dead_ops()
    return np.asarray(Interpreter(module).run(inputs)[0], np.float32).reshape(-1)


def kernel_graph(checkpoint: Checkpoint, quantize: str, kv: str | None = None) -> CompiledGraph:
    """What the driver would generate code from."""
    return compile_graph(checkpoint, parse_quantization(quantize), kv, 512, None, [])


def kernel_logits(checkpoint: Checkpoint, compiled: CompiledGraph, ids: list[int]) -> Floats:
    """Logits of the kernel-level graph after every id of one sequence, [len(ids), vocab]."""
    return kernel_logits_of(checkpoint, compiled, [ids])[0]


def kernel_logits_of(checkpoint: Checkpoint, compiled: CompiledGraph, prompts: list[list[int]]) -> list[Floats]:
    """Logits of the kernel-level graph after every id of several sequences, all in one ragged step."""
    interpreter = Interpreter(compiled.module, checkpoint.read_rows)
    outputs = interpreter.run(whole_sequences(compiled.module.step, prompts))
    return np.split(np.asarray(outputs[0], np.float32), np.cumsum([len(prompt) for prompt in prompts])[:-1])

"""Logits by the numpy interpreter: what an exported model is compared with, whatever consumer it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import without_pictures
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph

MOST_PARAMETERS = 600_000_000
"""Models up to this size are run whole; the interpreter holds all their weights as f32."""

PROMPT = "The capital of France is Paris, a city on the Seine. The capital of Germany is Berlin, and its river is"


def check_prompt(vocabulary: int, length: int = 12) -> list[int]:
    """Ids that every vocabulary has, spread over it."""
    return [int(i) for i in np.random.default_rng(7).integers(0, vocabulary, length)]


def prompt_of(checkpoint: Checkpoint, text: str = PROMPT) -> list[int]:
    """The ids of `text` where the source has a tokenizer; `check_prompt` where it has none."""
    source = checkpoint.tokenizer
    if source is None:
        return check_prompt(checkpoint.config.vocab_size)
    from llamac.runtime.text.tokenizer import load_tokenizer

    return load_tokenizer(source.kind, source.files, source.info).encode(text)


def interpreted_logits(checkpoint: Checkpoint, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits after every id of one text, [ids, vocabulary], with activations in f32."""
    config = replace(checkpoint.config, dtype="f32")
    module = build_graph(config, checkpoint.tensors)
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    inputs: dict[str, Any] = {"ids": list(ids), "positions": np.arange(len(ids))}
    inputs |= without_pictures(module.step, len(ids))
    unseen = np.zeros((config.kv_heads, 1, config.head_dim), np.float32)
    for layer in config.cross_layers:
        inputs[f"cross_k.{layer}"] = inputs[f"cross_v.{layer}"] = unseen
    for layer in (layer for layer in range(config.layers) if layer not in config.cross_layers):
        inputs[f"past_k.{layer}"] = inputs[f"past_v.{layer}"] = empty
    logits, *_ = Interpreter(module, checkpoint.read_rows).run(inputs)
    return np.asarray(logits, np.float32)


def relative_rms(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The root mean square of the difference over that of the reference around each row's mean."""
    centered = reference - reference.mean(axis=1, keepdims=True)
    difference = (found - reference) - (found - reference).mean(axis=1, keepdims=True)
    return float(np.sqrt(np.square(difference).mean() / np.square(centered).mean()))


def relative_largest(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The largest difference over the largest magnitude of the reference."""
    return float(np.abs(found - reference).max() / np.abs(reference).max())

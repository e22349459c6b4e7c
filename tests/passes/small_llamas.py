"""Small random Llamas of any shape and storage, and running their graphs at any level through the interpreter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.ops.cache_ops import CacheState
from llamac.models.checkpoint import BLOCKS, StoredTensor
from llamac.models.llama.config import LlamaConfig, RopeScaling
from llamac.models.llama.graph import build_llama
from llamac.models.llama.weights import expected_shapes

Array = np.ndarray
HALVES = {"q4_0": 1, "q4_1": 2, "q5_0": 1, "q5_1": 2, "q8_0": 1, "q4_k": 2, "q5_k": 2, "q6_k": 1}
"""How many f16 numbers a block holds: at its start, but for q6_k at its end."""
LARGEST = {"q4_0": 8, "q4_1": 15, "q5_0": 16, "q5_1": 31, "q8_0": 128, "q4_k": 945, "q5_k": 1953, "q6_k": 4064}
"""The largest integer (times its 6- or 8-bit scale) that the first of them multiplies."""


def config(**changes: Any) -> LlamaConfig:
    """A Llama of two layers; `changes` are fields of `LlamaConfig`."""
    fields: dict[str, Any] = {
        "name": "small",
        "hidden_size": 24,
        "intermediate_size": 40,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 29,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "context_length": 2048,
        "tied_head": False,
        "dtype": "f32",
        "rope_style": "half_split",
    }
    return LlamaConfig(**(fields | changes))


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


@dataclass
class SmallLlama:
    """A config with random weights; `encodings` maps the end of a weight's name to how it is stored."""

    config: LlamaConfig
    encodings: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    bytes: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.tensors: dict[str, StoredTensor] = {}
        for name, shape in expected_shapes(self.config).items():
            fits = (e for end, e in self.encodings.items() if name.endswith(end) and len(shape) == 2)
            encoding = next(fits, self.config.dtype)
            rows = _random_rows(random, shape, encoding)
            self.bytes[name] = rows
            self.tensors[name] = StoredTensor(name, name, shape, encoding, Path("nowhere"), 0, rows.size)

    def read_rows(self, name: str, lo: int, hi: int) -> Array:
        """The checkpoint's row reader."""
        return self.bytes[name][lo:hi]

    def module(self) -> Module:
        """The captured module."""
        return build_llama(self.config, self.tensors)


def _random_rows(random: np.random.Generator, shape: tuple[int, ...], encoding: str) -> Array:
    if encoding in ("f32", "bf16", "f16"):
        import ml_dtypes

        kinds: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
        matrix = len(shape) == 2
        values = random.standard_normal(shape) / np.sqrt(shape[-1]) if matrix else random.uniform(0.5, 1.5, shape)
        return values.reshape(-1, shape[-1]).astype(kinds[encoding]).view(np.uint8)
    values, size = BLOCKS[encoding]
    count = shape[0] * shape[1] // values
    raw = random.integers(0, 256, (count, size), dtype=np.uint8)
    at = 208 if encoding == "q6_k" else 0
    # Scales that give values of about a unit over the square root of the columns, minima alike.
    halves = random.uniform(0.5, 1, (count, HALVES[encoding])) / np.sqrt(shape[1])
    halves[:, 0] *= 1.5 / LARGEST[encoding]
    if HALVES[encoding] == 2:
        halves[:, 1] *= -0.7 if encoding.endswith("_1") else 0.7 / 63
    raw[:, at : at + 2 * HALVES[encoding]] = halves.astype(np.float16).view(np.uint8)
    return raw.reshape(shape[0], -1)


def tokens_of(llama: SmallLlama, count: int, seed: int = 0) -> Array:
    """Random token ids, the last of the vocabulary among them."""
    ids = np.random.default_rng(seed).integers(0, llama.config.vocab_size, count).astype(np.int32)
    ids[-1] = llama.config.vocab_size - 1
    return ids


def sequence_logits(
    module: Module,
    llama: SmallLlama,
    ids: Array,
    exact: bool,
    cuts: Sequence[int] = (),
    interpreter: Interpreter | None = None,
) -> Array:
    """Logits [len(ids), vocab] of one sequence through a graph with explicit past, cut into calls at `cuts`."""
    interpreter = interpreter or Interpreter(module, llama.read_rows, exact)
    c = llama.config
    past: list[Array] = [np.zeros((c.kv_heads, 0, c.head_dim))] * (2 * c.layers)
    rows, edges = [], [0, *cuts, len(ids)]
    names = [f"past_{part}.{layer}" for layer in range(c.layers) for part in "kv"]
    for start, stop in pairwise(edges):
        inputs = {"ids": ids[start:stop], "positions": np.arange(start, stop), **dict(zip(names, past, strict=True))}
        logits, *past = interpreter.run(inputs)
        rows.append(logits)
    return np.concatenate(rows)


Row = tuple[int, int]
"""(sequence, position)."""


def ragged_logits(
    module: Module, llama: SmallLlama, sequences: Sequence[Array], steps: Iterable[Sequence[Row]], exact: bool
) -> list[Array]:
    """Logits of every token of every sequence through the ragged step, the rows of each call given by `steps`."""
    interpreter = Interpreter(module, llama.read_rows, exact)
    cache = module.step.argument("cache").cache
    pages = [-(-len(s) // cache.page) for s in sequences]
    tables = np.full((len(sequences), max(pages)), 10**6, np.int32)
    numbers = list(range(sum(pages)))
    for index, count in enumerate(pages):
        for place in range(count):
            tables[index, place] = numbers.pop()  # from the end, so that numbers and places differ
    state = CacheState.empty(cache, sum(pages), exact)
    found = [np.full((len(s), llama.config.vocab_size), np.nan) for s in sequences]
    for rows in steps:
        wanted = list(range(len(rows)))[::-1]
        logits, state = interpreter.run(
            {
                "token_ids": np.array([sequences[s][p] for s, p in rows]),
                "positions": np.array([p for _, p in rows]),
                "sequence_of_token": np.array([s for s, _ in rows]),
                "page_tables": tables,
                "logit_rows": np.array(wanted),
                "cache": state,
            }
        )
        for row, value in zip(wanted, logits, strict=True):
            sequence, position = rows[row]
            found[sequence][position] = value
    return found


def is_ragged(module: Module) -> bool:
    """Whether `lower-kv-cache` has run."""
    return any(a.name == "cache" for a in module.step.arguments)


def logits(module: Module, llama: SmallLlama, ids: Array, exact: bool) -> Array:
    """Logits of one sequence at any level: whole, then its last third with the rest as past."""
    if not is_ragged(module):
        return sequence_logits(module, llama, ids, exact, [2 * len(ids) // 3])
    cut = 2 * len(ids) // 3
    steps = [[(0, p) for p in range(cut)], [(0, p) for p in range(cut, len(ids))]]
    return ragged_logits(module, llama, [ids], [s for s in steps if s], exact)[0]


def difference(found: Array, expected: Array) -> float:
    """Largest difference over the largest magnitude."""
    assert found.shape == expected.shape and np.isfinite(found).all() and np.isfinite(expected).all()
    return float(np.abs(found - expected).max() / np.abs(expected).max())

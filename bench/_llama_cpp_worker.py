"""llama.cpp for the benchmarks, in a Python that has `llama_cpp`.

    PYTHON _llama_cpp_worker.py MODEL.gguf THREADS TOKENS SEQUENCES

It runs llama.cpp's C functions directly, with its own defaults beside threads and sizes, and greedy choice by numpy, as
the run of llamac beside it does. `_worker.py` has the protocol.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from _worker import serve
from numpy.typing import NDArray

LARGEST = 512
"""Tokens in one call, as llama.cpp's own programs have it."""


class Engine:
    """A loaded GGUF file with one context."""

    def __init__(self, path: str, threads: int, tokens: int, sequences: int) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens * sequences
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = LARGEST
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(LARGEST, 0, 1)

    def run(self, prompt: list[int], new: int) -> dict[str, Any]:
        """Prefill and greedy decode of a fresh sequence."""
        self._forget()
        started = time.perf_counter()
        ids = [self._prefill(0, prompt)]
        first = time.perf_counter()
        for step in range(new - 1):
            ids += self._greedy([(ids[-1], len(prompt) + step, 0, True)])
        return {"first": first - started, "rest": time.perf_counter() - first, "ids": ids}

    def together(self, prompt: list[int], new: int, sequences: int) -> dict[str, Any]:
        """Greedy decode of several sequences in the same steps, each after a prompt of its own."""
        self._forget()
        tokens = [self._prefill(number, prompt[number:] + prompt[:number]) for number in range(sequences)]
        started = time.perf_counter()
        for step in range(new - 1):
            tokens = self._greedy([(token, len(prompt) + step, n, True) for n, token in enumerate(tokens)])
        return {"rest": time.perf_counter() - started}

    def logits(self, ids: list[int], path: str) -> dict[str, Any]:
        """The logits after every id, as a file."""
        self._forget()
        parts = []
        for start in range(0, len(ids), LARGEST):
            rows = [(token, start + n, 0, True) for n, token in enumerate(ids[start : start + LARGEST])]
            parts.append(self._decode(rows))
        np.save(path, np.concatenate(parts))
        return {}

    def quantize(self, path: str, output: str, file_type: int) -> dict[str, Any]:
        """Another file of floats through llama.cpp's own quantizer."""
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = file_type
        if llama_cpp.llama_model_quantize(path.encode(), output.encode(), ctypes.byref(parameters)):
            raise SystemExit(f"llama.cpp cannot quantize {path}")
        return {}

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _prefill(self, sequence: int, prompt: list[int]) -> int:
        last, found = len(prompt) - 1, []
        for start in range(0, len(prompt), LARGEST):
            piece = enumerate(prompt[start : start + LARGEST], start)
            found = self._greedy([(token, place, sequence, place == last) for place, token in piece])
        return found[0]

    def _greedy(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        return [int(token) for token in self._decode(rows).argmax(axis=1)]

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> NDArray[np.float32]:
        """Append (token, position, sequence, whether its logits are wanted); the wanted logits, until the next call."""
        self.batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[index] = token
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = wanted
        if llama_cpp.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        wanted_rows = sum(row[3] for row in rows)
        if not wanted_rows:
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (wanted_rows, self.vocab_size))


_SILENT: Any = llama_cpp.llama_log_callback(lambda level, text, data: None)
"""The C side keeps a pointer to it, so it must live as long as the process."""


if __name__ == "__main__":
    serve(Engine(sys.argv[1], *map(int, sys.argv[2:5])), llama_cpp.__version__)

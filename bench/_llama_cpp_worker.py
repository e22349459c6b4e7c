"""Times llama.cpp for day_one.py, in a Python that has `llama_cpp`: one JSON line out for every line in.

    PYTHON _llama_cpp_worker.py MODEL.gguf THREADS PROMPT_TOKENS

A line on stdin holds the prompt's ids and the number of new tokens; the line on stdout seconds of prefill and decode.
It runs llama.cpp's C functions directly, with its own defaults beside threads and sizes, and greedy choice by numpy, as
the run of llamac beside it does.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np


class Context:
    """A loaded GGUF file with one context."""

    def __init__(self, path: str, threads: int, tokens: int) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def feed(self, ids: list[int]) -> int:
        """Append ids, at most 512; the likeliest next id."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab_size,))))

    def run(self, prompt: list[int], new_tokens: int) -> tuple[float, float]:
        """Prefill and greedy decode of a fresh sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        started = time.perf_counter()
        token = 0
        for start in range(0, len(prompt), 512):
            token = self.feed(prompt[start : start + 512])
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = self.feed([token])
        return first - started, time.perf_counter() - first


_SILENT: Any = llama_cpp.llama_log_callback(lambda level, text, data: None)
"""The C side keeps a pointer to it, so it must live as long as the process."""


def main() -> None:
    """Answer lines until stdin ends."""
    context = Context(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prefill, decode = context.run(request["prompt"], request["new_tokens"])
        print(json.dumps({"prefill_seconds": prefill, "decode_seconds": decode}), flush=True)


if __name__ == "__main__":
    main()

"""ONNX Runtime GenAI for the benchmark, in a Python that has `onnxruntime_genai`.

PYTHON onnxruntime_worker.py FOLDER THREADS TOKENS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnxruntime_genai as genai
from _worker import serve


class Engine:
    """The model in `folder`."""

    def __init__(self, folder: str, threads: int, tokens: int) -> None:
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model, self.tokens = genai.Model(config), tokens

    def run(self, prompt: list[int], new: int) -> dict[str, Any]:
        """Prefill and greedy decode of a fresh sequence."""
        generator = self._generator(len(prompt) + new)
        started = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        rest = time.perf_counter() - first
        return {"first": first - started, "rest": rest, "ids": generator.get_sequence(0)[len(prompt) :].tolist()}

    def logits(self, ids: list[int], path: str) -> dict[str, Any]:
        """The logits after every id, as a file; the model must have been written with --all-logits."""
        generator = self._generator(len(ids) + 1)
        generator.append_tokens(ids)
        np.save(path, generator.get_output("logits")[0])
        return {}

    def _generator(self, length: int) -> Any:
        parameters = genai.GeneratorParams(self.model)
        # No end before the length: the end of a sequence is an id like any other here.
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        return genai.Generator(self.model, parameters)


if __name__ == "__main__":
    serve(Engine(sys.argv[1], *map(int, sys.argv[2:4])), genai.__version__)

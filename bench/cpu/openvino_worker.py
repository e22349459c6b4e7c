"""OpenVINO GenAI for the benchmark, in a Python that has `openvino_genai`.

    PYTHON openvino_worker.py FOLDER THREADS TOKENS

`run` is its `LLMPipeline` as it comes (continuous batching over paged attention) but without the cache of prefixes,
which would answer a repeated prompt from memory. `logits` runs the same model without the pipeline, which gives none.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import openvino as ov
import openvino_genai as genai
from _worker import serve


class _Clock(genai.StreamerBase):  # type: ignore[misc]
    """Notes when every token comes."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.ids: list[int] = []

    def write(self, token: int | list[int]) -> Any:
        self.times.append(time.perf_counter())
        self.ids += [token] if isinstance(token, int) else token
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


class Engine:
    """The model in `folder`; pipeline and plain model are made when they are first asked for."""

    def __init__(self, folder: str, threads: int, tokens: int) -> None:
        self.folder, self.tokens = folder, tokens
        self.properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline: Any = None
        self._request: Any = None

    def run(self, prompt: list[int], new: int) -> dict[str, Any]:
        """Prefill and greedy decode of a fresh sequence."""
        if self._pipeline is None:
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = max(self.tokens, 512)
            self._pipeline = genai.LLMPipeline(self.folder, "CPU", scheduler_config=scheduler, **self.properties)
        config = genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        config.set_eos_token_id(0)
        clock, ids = _Clock(), ov.Tensor(np.array([prompt], np.int64))
        started = time.perf_counter()
        self._pipeline.generate(ids, config, clock)
        if len(clock.ids) != new:
            raise SystemExit(f"OpenVINO gave {len(clock.ids)} tokens, not {new}")
        return {"first": clock.times[0] - started, "rest": clock.times[-1] - clock.times[0], "ids": clock.ids}

    def logits(self, ids: list[int], path: str) -> dict[str, Any]:
        """The logits after every id, as a file."""
        if self._request is None:
            model = Path(self.folder) / "openvino_model.xml"
            self._request = ov.Core().compile_model(model, "CPU", self.properties).create_infer_request()
        self._request.reset_state()
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        np.save(path, self._request.infer(inputs)["logits"][0])
        return {}


if __name__ == "__main__":
    serve(Engine(sys.argv[1], *map(int, sys.argv[2:4])), genai.__version__)

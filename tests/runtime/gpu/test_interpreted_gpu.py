"""A compiled artifact through the whole runtime, Triton's interpreter in the GPU's place, against the IR's meaning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "backends" / "gpu"))
from planned_models import Tiny, relative_error

from llamac.driver import compile, compile_graph
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import whole_sequences
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.runtime.sampler import Sampler, SamplerOptions

PROMPTS = [[7, 0, 34, 3, 21, 9, 30], [5, 6, 12], [1, 2, 3, 4]]
NEW_TOKENS = 4
SAMPLING: dict[str, Any] = {"temperature": 3.0, "top_k": 20, "top_p": 0.95, "seed": 5}
TOLERANCE = 3e-6
"""Largest error of an f32 logit, relative to the largest."""


def _meaning(prompts: list[list[int]]) -> list[Any]:
    """Logits after every id of each prompt, as the IR means them."""
    checkpoint = random_checkpoint(Tiny("f32").config(), 3)
    graph = compile_graph(checkpoint, parse_quantization("keep"), "f32", 24, None, [], kind="gpu")
    interpreter = Interpreter(graph.module, checkpoint.read_rows, exact=True)
    (found, *_) = interpreter.run(whole_sequences(graph.module.step, prompts))
    return np.split(np.asarray(found, np.float64), np.cumsum([len(p) for p in prompts])[:-1])


def _texts(samplers: list[Sampler]) -> list[list[int]]:
    """What the host's sampler makes of the meaning."""
    texts: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(NEW_TOKENS):
        logits = _meaning([prompt + text for prompt, text in zip(PROMPTS, texts, strict=True)])
        for text, rows, sampler in zip(texts, logits, samplers, strict=True):
            text.append(sampler.sample(rows[-1]).token_id)
    return texts


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interpreted") / "tiny.llamac"
    checkpoint = random_checkpoint(Tiny("f32").config(), 3)
    compile(checkpoint, target=["h100", "mi300x"], output=path, kv="f32", max_step_tokens=24, validate=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_a_compiled_model_on_an_interpreted_gpu(artifact: Path, architecture: str, tmp_path: Path) -> None:
    program = Path(__file__).with_name("interpreted_gpu.py")
    command = [sys.executable, str(program), str(artifact), architecture, str(tmp_path / "found.npz")]
    done = subprocess.run(command, input=json.dumps([PROMPTS, SAMPLING]), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = np.load(tmp_path / "found.npz"), _meaning(PROMPTS)
    assert relative_error(found["prompt"], expected[0]) < TOLERANCE
    assert relative_error(found["batch"], np.stack([rows[-1] for rows in expected])) < TOLERANCE
    assert found["texts"].tolist() == _texts([Sampler(SamplerOptions()) for _ in PROMPTS])
    drawn = _texts([Sampler(SamplerOptions(**SAMPLING)) for _ in PROMPTS])
    assert found["drawn"].tolist() == drawn != found["texts"].tolist()

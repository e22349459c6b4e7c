"""Pictures through a compiled artifact and the runtime, Triton's interpreter in the GPU's place, against the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
from picture_prompts import Prompt, generated
from tiny_pictures import SHAPE4, make_llama4, make_mllama

from llamac.driver import compile
from llamac.runtime.loader import load

PROMPTS: list[Prompt] = [("Hi <|image|>?", [(60, 50)]), ("No.", []), ("<|image|><|image|>c", [(25, 27), (20, 30)])]
TOLERANCE = 4e-6
"""Largest difference of a logit, relative to the largest: both compute in f32."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama4", "mllama"])
def test_a_model_that_sees_on_an_interpreted_gpu(name: str, tmp_path: Path) -> None:
    """Logits behind pictures, of a batch with and without, and greedy texts that run ahead."""
    if name == "llama4":
        make_llama4(tmp_path, replace(SHAPE4, chunk=32))
    else:
        make_mllama(tmp_path)
    path = tmp_path / "m.llamac"
    compile(tmp_path, target=["cpu", "mi300x"], output=path, kv="f32", max_step_tokens=24)
    program = Path(__file__).with_name("interpreted_pictures.py")
    command = [sys.executable, str(program), str(path), "gfx942", str(tmp_path / "found.npz")]
    done = subprocess.run(command, input=json.dumps(PROMPTS), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with load(path, device="cpu", sequences=3, images=2, context=256) as model:
        wanted = generated(model, PROMPTS)
    found = np.load(tmp_path / "found.npz")
    for key, values in wanted.items():
        if key == "texts":
            assert found[key].tolist() == values.tolist()
        else:
            assert np.abs(found[key] - values).max() < TOLERANCE * np.abs(values).max(), key

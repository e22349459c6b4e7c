"""Pictures on ONNX Runtime's device: logits are transformers', greedy text is that of llamac's own code."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import relative_error
from tiny_pictures import Floats, llama4_logits, make_llama4, make_mllama, mllama_logits, picture

import llamac
from llamac.runtime.images.placed import PicturePrompt
from llamac.runtime.session import Feed

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[test]'")

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {"quantize": "f32", "kv": "f32", "context": 1024, "validate": False, "max_step_tokens": 256}
TEXT = "Both <|image|><|image|>of them, and<|image|>."
SHOWN = ((20, 100, 2), (25, 27, 3), (60, 50, 1))
KINDS: dict[str, Any] = {"llama4": (make_llama4, llama4_logits), "mllama": (make_mllama, mllama_logits)}


def stepped(model: llamac.runtime.model.Model, prompt: PicturePrompt, cuts: tuple[int, ...]) -> Floats:
    """The logits of every position, its ids given in pieces that end at `cuts`."""
    found = []
    with closing(model.session.open()) as sequence:
        model.session.place(sequence, prompt.images)
        for start, stop in pairwise([0, *cuts, len(prompt.ids)]):
            found.append(model.session.step([Feed(sequence, prompt.ids[start:stop], "all")]).copy())
    return np.concatenate(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_text(kind: str, tmp_path: Path) -> None:
    make, reference = KINDS[kind]
    meant, path = make(tmp_path / "source"), tmp_path / "m.llamac"
    llamac.compile(tmp_path / "source", output=path, target=["cpu", "onnxruntime"], **OPTIONS)
    shown, texts = [picture(*one) for one in SHOWN], {}
    for device in ("cpu", "onnxruntime"):
        with llamac.load(path, threads=1, images=4, device=device) as model:
            made = model.generate(TEXT, images=shown, max_new_tokens=6, ignore_stop_ids=True)
            texts[device] = made.token_ids
            if device == "cpu":
                continue
            prompt, plain = model.encode_with_images(TEXT, shown), model.encode_with_images("No picture here", [])
            expected = reference(meant, prompt)
            for cuts in ((), (2,), (9, 10, 12)):
                assert relative_error(stepped(model, prompt, cuts), expected) < TOLERANCE
            assert relative_error(stepped(model, plain, (3,)), reference(meant, plain)) < TOLERANCE
    assert texts["onnxruntime"] == texts["cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_integers_and_files_with_this_target_alone(kind: str, tmp_path: Path) -> None:
    """The encoder stays as it is stored; the text follows the scheme. Pictures matter."""
    make, _ = KINDS[kind]
    make(tmp_path / "source")
    options = {**OPTIONS, "quantize": "int8"}
    llamac.compile(tmp_path / "source", output=tmp_path / "m.llamac", target="onnxruntime", **options)
    with llamac.load(tmp_path / "m.llamac", threads=1, images=1) as model:
        prompts = [model.encode_with_images("A<|image|>b", [picture(25, 27, seed)]) for seed in (3, 9)]
        found = [stepped(model, prompt, ()) for prompt in prompts]
        assert relative_error(found[0], found[1]) > 1e-3
        assert relative_error(stepped(model, prompts[0], ()), found[0]) == 0

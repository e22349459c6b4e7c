"""Image encoders and the text models that see their pictures, by TVM in f32, against transformers."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import relative_error
from tiny_pictures import llama4_logits, make_llama4, make_mllama, mllama_logits, picture

import llamac
from llamac.artifact.read import Artifact
from llamac.backends.tvm.step_run import EncoderRun, StepRun
from llamac.errors import LlamacError
from llamac.recording import stored_image_module, stored_module, stored_weights, weight_arrays
from llamac.runtime.images.mllama_spans import encoder_input
from llamac.runtime.images.placed import PicturePrompt
from llamac.runtime.session import Feed

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {"quantize": "f32", "kv": "f32", "context": 1024, "validate": False, "max_step_tokens": 256}


def _runs(path: Path) -> tuple[StepRun, EncoderRun]:
    with Artifact.open(path) as artifact:
        weights = stored_weights(artifact)
        step, image = stored_module(artifact), stored_image_module(artifact)
        assert image is not None
        return StepRun(step, weight_arrays(step, weights)), EncoderRun(image, weight_arrays(image, weights))


@pytest.mark.slow
def test_llama4(tmp_path: Path) -> None:
    reference = make_llama4(tmp_path / "source")
    llamac.compile(tmp_path / "source", output=tmp_path / "m.llamac", **OPTIONS)
    step, encoder = _runs(tmp_path / "m.llamac")
    with llamac.load(tmp_path / "m.llamac", threads=1) as model, closing(model.session.open()) as sequence:
        prompt = model.encode_with_images("Look: <|image|>what is it?", [picture(60, 50, 1)])
        model.session.place(sequence, prompt.images)
        rows, embeddings = sequence.images.rows(0, len(prompt.ids))
    tiles = [tile for image in prompt.images for tile in image.pixels]
    found = np.concatenate([encoder.encode(tile[None])[0] for tile in tiles])
    assert relative_error(found, np.concatenate(embeddings)) < TOLERANCE
    pictures = {"image_rows": rows, "image_embeddings": found}
    logits, _ = step.forward(prompt.ids, step.empty_past(), pictures=pictures)
    assert relative_error(logits, llama4_logits(reference, prompt)) < TOLERANCE


@pytest.mark.slow
def test_mllama(tmp_path: Path) -> None:
    """Pictures of one tile and of several, with padding, and positions before the first of them."""
    reference = make_mllama(tmp_path / "source")
    llamac.compile(tmp_path / "source", output=tmp_path / "m.llamac", **OPTIONS)
    step, encoder = _runs(tmp_path / "m.llamac")
    with llamac.load(tmp_path / "m.llamac", threads=1, images=4) as model, closing(model.session.open()) as sequence:
        prompt = model.encode_with_images(
            "Both <|image|><|image|>of them, and<|image|>.",
            [picture(20, 100, 2), picture(25, 27, 3), picture(60, 50, 1)],
        )
        model.session.place(sequence, prompt.images)
        start, stop = sequence.images.ranges(0, len(prompt.ids))
    made = []
    for image in prompt.images:
        tiles = image.picture.tiles
        tokens = tiles.tiles * (stop.max() // sum(i.picture.tiles.tiles for i in prompt.images))
        made.append(encoder.encode(encoder_input(tiles, 4), image.aspect_ratio, int(tokens)))
    own, cross = step.empty_past(), iter([np.concatenate(parts, axis=1) for parts in zip(*made, strict=True)])
    past = [
        next(cross) if "cross" in place.cache else empty for place, empty in zip(step.lowered.past, own, strict=True)
    ]
    seen = {"vision_start": start, "vision_stop": stop}
    logits, present = step.forward(prompt.ids[:9], past, pictures={name: rows[:9] for name, rows in seen.items()})
    kept = iter(present)
    past = [old if "cross" in place.cache else next(kept) for place, old in zip(step.lowered.past, past, strict=True)]
    rest, _ = step.forward(prompt.ids[9:], past, 9, {name: rows[9:] for name, rows in seen.items()})
    assert relative_error(np.concatenate([logits, rest]), mllama_logits(reference, prompt)) < TOLERANCE


TARGETS = {"target": ["x86-64-v3", "tvm:llvm"], **OPTIONS}
TEXT = "Both <|image|><|image|>of them, and<|image|>."
SHOWN = ((20, 100, 2), (25, 27, 3), (60, 50, 1))


def _logits(model: Any, prompt: PicturePrompt, cuts: tuple[int, ...]) -> Any:
    """The logits of every position, its ids given in pieces that end at `cuts`."""
    found = []
    with closing(model.session.open()) as sequence:
        model.session.place(sequence, prompt.images)
        for start, stop in pairwise([0, *cuts, len(prompt.ids)]):
            ids = prompt.ids[start:stop]
            found.append(model.session.step([Feed(sequence, ids, "all")]).copy())
    return np.concatenate(found)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "reference"), [(make_llama4, llama4_logits), (make_mllama, mllama_logits)])
def test_the_device_takes_pictures(make: Any, reference: Any, tmp_path: Path) -> None:
    """Logits are transformers' however a prompt is cut, in a picture too; greedy text is that of llamac's own code."""
    meant = make(tmp_path / "source")
    path = tmp_path / "m.llamac"
    llamac.compile(tmp_path / "source", output=path, **TARGETS)
    shown = [picture(*one) for one in SHOWN]
    texts = {}
    for device in ("cpu", "tvm"):
        with llamac.load(path, threads=1, images=4, device=device) as model:
            prompt = model.encode_with_images(TEXT, shown)
            made = model.generate(TEXT, images=shown, max_new_tokens=6, ignore_stop_ids=True)
            texts[device] = made.token_ids
            if device == "tvm":
                expected = reference(meant, prompt)
                for cuts in ((), (2,), (9, 10, 12)):
                    assert relative_error(_logits(model, prompt, cuts), expected) < TOLERANCE
                plain = model.encode_with_images("No picture here", [])
                assert relative_error(_logits(model, plain, (3,)), reference(meant, plain)) < TOLERANCE
    assert texts["tvm"] == texts["cpu"]


@pytest.mark.slow
def test_sequences_of_one_step_see_their_own_pictures(tmp_path: Path) -> None:
    make_mllama(tmp_path / "source")
    llamac.compile(tmp_path / "source", output=tmp_path / "m.llamac", **{**OPTIONS, "target": "tvm:llvm"})
    with llamac.load(tmp_path / "m.llamac", threads=1, images=2, sequences=2) as model:
        prompts = [model.encode_with_images("A<|image|>b", [picture(25, 27, n)]) for n in (3, 9)]
        alone = [_logits(model, prompt, ()) for prompt in prompts]
        with closing(model.session.open()) as one, closing(model.session.open()) as two:
            feeds = []
            for sequence, prompt in zip((one, two), prompts, strict=True):
                model.session.place(sequence, prompt.images)
                feeds.append(Feed(sequence, prompt.ids, "all"))
            together = model.session.step(feeds)
    assert relative_error(together, np.concatenate(alone)) < TOLERANCE
    assert relative_error(alone[0], alone[1]) > 100 * TOLERANCE


@pytest.mark.slow
def test_sources_of_kernels_are_those_of_the_step(tmp_path: Path) -> None:
    """No encoder of Llama 4, which the ledger says; vision tokens not at all."""
    make_llama4(tmp_path / "llama4")
    options = {**OPTIONS, "target": ["x86-64-v3", "tvm:webgpu"]}
    llamac.compile(tmp_path / "llama4", output=tmp_path / "4.llamac", **options)
    with Artifact.open(tmp_path / "4.llamac") as artifact:
        assert [e["what"] for e in artifact.manifest["ledger"] if e["where"] == "pictures"]
    make_mllama(tmp_path / "mllama")
    with pytest.raises(LlamacError) as caught:
        llamac.compile(tmp_path / "mllama", output=tmp_path / "3.llamac", **options)
    assert caught.value.code == "LLC0943" and "layers.1" in caught.value.where

"""Image encoders and the text models that see their pictures, by TVM in f32, against transformers."""

from __future__ import annotations

from contextlib import closing
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


@pytest.mark.slow
def test_targets_say_what_their_device_does_not_do(tmp_path: Path) -> None:
    """Llama 4 without its pictures, in the ledger; vision tokens not at all."""
    make_llama4(tmp_path / "llama4")
    llamac.compile(tmp_path / "llama4", target="tvm:llvm", output=tmp_path / "4.llamac", **OPTIONS)
    with llamac.load(tmp_path / "4.llamac") as model:
        assert [e["what"] for e in model.manifest["ledger"] if e["where"] == "pictures"]
        assert len(model.generate("No picture", max_new_tokens=3, ignore_stop_ids=True).token_ids) == 3
    make_mllama(tmp_path / "mllama")
    with pytest.raises(LlamacError) as caught:
        llamac.compile(tmp_path / "mllama", target="tvm:llvm", output=tmp_path / "3.llamac", **OPTIONS)
    assert caught.value.code == "LLC0943" and "layers.1" in caught.value.where

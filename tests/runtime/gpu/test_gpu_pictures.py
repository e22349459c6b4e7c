"""Pictures through the runtime on the stub driver: every launch of the encoder and of steps that show what it made."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from planned_runs import PlannedRun, prompt, running
from seeing_models import pixels_of, planned_seeing
from test_whole_models import check_step, shown

from llamac.errors import LlamacError
from llamac.runtime.images.placed import PromptImage
from llamac.runtime.run_plan import ImagePlan
from llamac.runtime.running_ahead import rows_ahead
from llamac.runtime.session import Feed
from llamac.runtime.step_pictures import StepPictures


class Tiles:
    """A loaded picture as a sequence keeps it: its pixels, and what it is recognized by."""

    def __init__(self, pixels: Any) -> None:
        self.tiles, self.digest = self, b"picture"
        self.pixels = pixels


def image(run: PlannedRun, start: int, tiles: int, ratio: int = 0) -> PromptImage:
    """A picture at a place of a prompt: of patches for Llama 4, of vision tokens else."""
    config = run.model.checkpoint.config
    pixels, vision = pixels_of(config, tiles), config.vision
    assert vision is not None
    picture: Any = Tiles(pixels)
    if ratio:
        return PromptImage(start, start + 1, picture, None, vision.tile_tokens * tiles, ratio)
    count = vision.tile_tokens * tiles
    return PromptImage(start, start + count, picture, np.arange(count, dtype=np.int32), 0, 0)


def check_encoder(run: PlannedRun, vision_tokens: int, results: int) -> None:
    """One recording of the plan's launches, and a copy in and a replay for each run."""
    assert shown(run.launches()) == run.expected_encoder(vision_tokens)
    calls = [row["call"] for row in run.stub.log() if row["call"] not in ("begin_capture", "launch", "instantiate")]
    reads = ["copy_out", "finish"] if results else []
    assert [call for call in calls if call != "finish_event"] == (["copy_in", "replay", *reads]) * max(results, 1)


def test_tiles_and_a_step_with_their_rows(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4: two tiles by one recording; prefill takes their rows, of which no more are sent than it shows."""
    cuda.be("sm_90")
    model = planned_seeing("llama4", "bf16", "sm_90")
    with running(cuda, model, monkeypatch, context=256, sequences=2) as run:
        session, other = run.session, run.session.open()
        sequence = session.open()
        cuda.clear()
        session.place(sequence, [image(run, 3, 2)])
        check_encoder(run, 1, results=2)
        ids = prompt(20)
        cuda.clear()
        session.step([Feed(sequence, ids[:6]), Feed(other, [3])])
        bucket = run.plan.choose(7, 2, 6, pictures=True)
        assert not bucket.is_replayed
        named = [launch.where for launch in bucket.launches].count("embed")
        assert named == 2, "the table's rows, then those of the picture"
        expected = run.expected(bucket, bucket.steps("logits"), run.sizes(bucket, 7, 2, 3, images=3))
        assert shown(run.launches()) == expected
        (sent,) = cuda.log("copy_in")
        plain = run.device._inputs.offsets(run.sizes(bucket, 7, 2, 3))[1]
        width = model.checkpoint.config.hidden_size
        assert sent["bytes"] - plain == -(-3 * 4 * width // 256) * 256
        cuda.clear()
        session.step([Feed(sequence, ids[6:20])])
        check_images(run, 14, 5)
        cuda.clear()
        session.step([Feed(sequence, [4])])
        check_step(run, run.plan.choose(1, 1, 1), "logits", 1, 1, 2)


def check_images(run: PlannedRun, tokens: int, images: int) -> None:
    bucket = run.plan.choose(tokens, 1, tokens, pictures=True)
    assert shown(run.launches()) == run.expected(
        bucket, bucket.steps("logits"), run.sizes(bucket, tokens, 1, 2, images)
    )


def test_vision_tokens_and_steps_that_see_them(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3.2 Vision: one recording for each number of tiles; decode steps are replayed, the ranges their inputs."""
    cuda.be("sm_90")
    model = planned_seeing("mllama", "bf16", "sm_90")
    with running(cuda, model, monkeypatch, context=256, vision_tokens=300) as run:
        session, sequence = run.session, run.session.open()
        cuda.clear()
        session.place(sequence, [image(run, 1, 4, 6)])
        check_encoder(run, 20, results=0)
        cuda.clear()
        session.place(sequence, [image(run, 4, 2, 2)])
        check_encoder(run, 10, results=0)
        cuda.clear()
        session.step([Feed(sequence, prompt(18))])
        check_step(run, run.plan.choose(18, 1, 18), "logits", 18, 1, 2)
        cuda.clear()
        session.step([Feed(sequence, [3])])
        bucket = run.plan.choose(1, 1, 1)
        check_step(run, bucket, "logits", 1, 1, 2)
        by_layer = [launch.where.split(".")[1] for launch in bucket.launches if launch.where.startswith("layers.")]
        assert [by_layer.count(str(layer)) for layer in range(3)] == [5, 6, 6]


def test_what_is_out_of_range_never_reaches_the_gpu(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.be("sm_90")
    model = planned_seeing("mllama", "bf16", "sm_90")
    with running(cuda, model, monkeypatch, context=256, vision_tokens=300) as run:
        device, pixels = run.device, pixels_of(model.checkpoint.config, 2)
        good = {"aspect_ratio": 2, "pages": np.array([1, 0], np.int32), "first": 0}
        cuda.clear()
        wrong_pages = [None, np.array([2, 0], np.int32), np.array([-1], np.int32)]
        shapes, places = [{"aspect_ratio": n} for n in (0, 6, 9)], [{"first": n} for n in (505, -1)]
        for wrong in (*shapes, *places, *({"pages": pages} for pages in wrong_pages)):
            with pytest.raises(LlamacError, match=r"LLC0806.*picture"):
                device.encode_image(pixels, **(good | wrong))
        one, tables = np.zeros(1, np.int32), np.zeros((2, 1, 1), np.int32)
        logits = np.zeros((1, device.vocab_size), np.float32)
        for start, stop in ((0, 300), (-1, 4)):
            ranges = StepPictures(vision_start=one + start, vision_stop=one + stop)
            with pytest.raises(LlamacError, match=r"LLC0806.*vision tokens"):
                device.step(one, one, one, tables, one, logits, ranges)
        rows = StepPictures(one, np.zeros((1, 40), np.float32))
        with pytest.raises(LlamacError, match=r"LLC0867.*pictures"):
            device.step(one, one, one, tables, one, logits, rows)
        assert not cuda.log("launch") and not cuda.log("replay")


def test_the_memory_of_the_encoder_is_in_the_sum(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run takes and gives counts with inputs and outputs, and its scratch is that of the plan."""
    cuda.be("sm_90")
    model = planned_seeing("llama4", "bf16", "sm_90")
    with running(cuda, model, monkeypatch, context=256) as run:
        needs, (taken, given) = run.device.needs, run.device.needs.image_bytes
        assert taken == -(-3 * 28 * 28 * 4 // 256) * 256 and given == 4 * 40 * 4
        assert needs.rows["inputs and outputs"] == needs.input_bytes + needs.output_bytes + taken + given
        assert needs.total == sum(needs.rows.values())


def test_text_runs_ahead_with_what_it_sees(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step that is on its way has the ranges of its rows among its inputs; no row of text needs another bucket."""
    cuda.be("sm_90")
    model = planned_seeing("mllama", "bf16", "sm_90")
    sent = []
    with running(cuda, model, monkeypatch, context=256, vision_tokens=300, sequences=2) as run:
        sequences = [run.session.open() for _ in range(2)]
        run.session.place(sequences[1], [image(run, 1, 4, 6)])
        run.session.step([Feed(sequence, prompt(3), "none") for sequence in sequences])
        for sequence in sequences:
            sequence.reserve(8, sequence.images.vision_tokens)
        inputs = run.device._inputs
        fill = inputs.fill
        monkeypatch.setattr(inputs, "fill", lambda block, step, sizes: (sent.append(step), fill(block, step, sizes)))
        with closing(rows_ahead(run.session, sequences, [5, 6], 3)) as found:
            assert len(list(found)) == 3
    assert [step.positions.tolist() for step in sent] == [[3, 3], [4, 4], [5, 5]]
    for step in sent:
        assert step.pictures is not None
        assert (step.pictures.vision_start.tolist(), step.pictures.vision_stop.tolist()) == ([0, 0], [0, 20])


def test_an_encoder_that_takes_other_pictures_is_refused(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.be("sm_90")
    model = planned_seeing("llama4", "bf16", "sm_90")
    other = ImagePlan((1, 3, 14, 14), (4, 40), False)
    monkeypatch.setattr("planned_runs.image_plan", lambda model: other)
    with pytest.raises(LlamacError, match=r"LLC0802.*pictures"), running(cuda, model, monkeypatch, context=256):
        pass

"""The next step on its way before the tokens of the last one are read: greedy and drawn text, on both vendors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import toy_gpu
from gpu_stub_library import Stub
from toy_gpu import ToyGpuArtifacts

from llamac.artifact.launch_plan import NEEDED_RESULTS, SAMPLED_WORDS, LaunchPlan
from llamac.errors import LlamacError
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.gpu.sampling import sampling_rows
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.session import Feed

Logits = Callable[[list[int]], np.ndarray[Any, np.dtype[np.float32]]]


@pytest.fixture
def model(gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> Iterator[Model]:
    path = toy_gpu_artifacts.make(gpu.architecture)
    with load(path, device=gpu.vendor, sequences=4) as loaded:
        yield loaded


def test_greedy_text_runs_ahead(model: Model, gpu: Stub) -> None:
    model.generate([65], max_new_tokens=2)
    gpu.clear()
    found = model.generate([65, 66], max_new_tokens=12)
    assert found.token_ids == list(range(67, 79))
    calls = [row["call"] for row in gpu.log() if row["call"] in ("replay", "copy_out", "copy_within", "finish")]
    assert calls.count("replay") == 12, "the prompt, and each token but the last"
    assert calls.count("copy_within") == 10
    assert calls.count("finish") == 1, "only the prompt is waited for by itself"
    assert {row["bytes"] for row in gpu.log("copy_out")[1:]} == {4}, "ids come back, logits do not"
    started = [n for n, row in enumerate(gpu.log()) if row["call"] == "replay"]
    waited = [n for n, row in enumerate(gpu.log()) if row["call"] == "finish_event" and n > started[2]]
    assert started[2] < waited[0], "the second step starts before the first one's id is waited for"


def test_texts_that_end_at_different_times(model: Model, toy_artifact: Any) -> None:
    prompts = [[65], [1, 2, 3], [9] * 6, [200, 201]]
    limits = {"max_new_tokens": 25, "stop_ids": [30]}
    with load(toy_artifact, sequences=4) as on_cpu:
        expected = [one.token_ids for one in on_cpu.generate_batch(prompts, **limits)]
    assert [one.token_ids for one in model.generate_batch(prompts, **limits)] == expected
    assert len({len(ids) for ids in expected}) > 1


def test_a_stream_that_is_closed_leaves_the_device_usable(model: Model) -> None:
    stream = model.stream([65], max_new_tokens=50)
    next(stream)
    stream.close()
    assert model.generate([70], max_new_tokens=3).token_ids == [71, 72, 73]


def test_a_full_context_ends_a_greedy_text(model: Model) -> None:
    found = model.generate([0], max_new_tokens=None, ignore_stop_ids=True)
    assert found.stop_reason == "context" and len(found.token_ids) == model.context


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 3.0, "seed": 1},
    {"temperature": 9.0, "seed": 2, "top_k": 40},
    {"temperature": 20.0, "seed": 3, "top_p": 0.7},
    {"temperature": 8.0, "seed": 4, "min_p": 0.2, "top_k": 90, "top_p": 0.9},
]


@pytest.mark.parametrize("options", SAMPLINGS)
def test_sampled_text_runs_ahead(model: Model, toy_artifact: Any, gpu: Stub, options: dict[str, Any]) -> None:
    """The same text as on the CPU, and its logits stay where they are."""
    with load(toy_artifact) as on_cpu:
        expected = on_cpu.generate([65, 66], max_new_tokens=20, ignore_stop_ids=True, **options).token_ids
    model.generate([65], max_new_tokens=1)
    gpu.clear()
    found = model.generate([65, 66], max_new_tokens=20, ignore_stop_ids=True, **options).token_ids
    assert found == expected and len(set(found)) > 4
    assert len(gpu.log("copy_within")) == 18
    assert {row["bytes"] for row in gpu.log("copy_out")[1:]} == {4 * SAMPLED_WORDS}
    # The step after the last is never started, and its random number not used up.
    first, *rest = (model.generate([65, 66], max_new_tokens=n, ignore_stop_ids=True, **options) for n in (1, 7))
    assert first.token_ids == expected[:1] and rest[0].token_ids == expected[:7]


def test_texts_drawn_together_are_those_drawn_alone(model: Model) -> None:
    """Rows side by side, each with its own count of draws: the numbers do not depend on the company."""
    prompts = [[65], [1, 2, 3], [9] * 6, [200, 201]]
    given = {"ignore_stop_ids": True, **SAMPLINGS[1]}
    alone = [model.generate(p, max_new_tokens=9 + n, **given).token_ids for n, p in enumerate(prompts)]
    together = model.generate_batch(prompts, max_new_tokens=12, **given)
    for one, other in zip(alone, together, strict=True):
        assert other.token_ids[: len(one)] == one


def test_logits_stay_where_they_are_beside_prompts(model: Model, gpu: Stub) -> None:
    """First tokens and steps of prompts beside running texts are drawn there too."""
    gpu.clear()
    prompts = [[65] * 20, [1, 2, 3], [9] * 15]
    model.generate_batch(prompts, max_new_tokens=5, ignore_stop_ids=True, **SAMPLINGS[3])
    assert all(row["bytes"] % (4 * SAMPLED_WORDS) == 0 for row in gpu.log("copy_out"))


def test_more_rows_than_a_bucket_gives_at_once(model: Model, toy_logits: Logits) -> None:
    """Five rows of a prefill step, two at a time, each drawn by its own options."""
    device = model._device
    assert isinstance(device, GpuDevice)
    ids, places = np.arange(20, 25, dtype=np.int32), np.arange(5, dtype=np.int32)
    options = [SamplerOptions(4.0 + n, top_k=5 * n) for n in range(5)]
    sampling = sampling_rows([(each, (2 * n + 1) << 49) for n, each in enumerate(options)])
    found = device.step_drawn(ids, np.zeros(5, np.int32), places, places.reshape(1, 5, 1), places, sampling)
    wanted = [toy_gpu.drawn(toy_logits([int(t)])[-1], words) for t, words in zip(ids, sampling, strict=True)]
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="8 words for each of 5 rows"):
        device.step_drawn(ids, np.zeros(5, np.int32), places, places.reshape(1, 5, 1), places, sampling[:4])


@pytest.mark.parametrize("options", [{}, {"temperature": 5.0, "seed": 3}])
def test_log_probabilities_come_with_the_ids(
    model: Model, toy_artifact: Any, gpu: Stub, options: dict[str, Any]
) -> None:
    """The likeliest tokens of each step, as the host finds them in the logits."""
    given = {"max_new_tokens": 6, "logprobs": 5, "ignore_stop_ids": True, **options}
    with load(toy_artifact) as on_cpu:
        expected = on_cpu.generate([65], **given)
    gpu.clear()
    found = model.generate([65], **given)
    assert found.token_ids == expected.token_ids and len(gpu.log("copy_within")) == 5
    assert found.logprobs is not None and expected.logprobs is not None
    for own, other in zip(found.logprobs, expected.logprobs, strict=True):
        assert own.token_id == other.token_id and own.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [t for t, _ in own.top] == [t for t, _ in other.top] and len(own.top) == 5
        np.testing.assert_allclose([v for _, v in own.top], [v for _, v in other.top], atol=1e-5)


def test_a_row_that_is_no_distribution_is_refused(model: Model, gpu: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU says so, and takes token 0 along until the host has heard of it."""
    monkeypatch.setattr(toy_gpu, "drawn", lambda logits, words: np.full(SAMPLED_WORDS, -1, np.int32))
    with pytest.raises(LlamacError, match="LLC0853"):
        model.generate([65], max_new_tokens=8, **SAMPLINGS[0])
    monkeypatch.undo()
    assert len(model.generate([65], max_new_tokens=8, ignore_stop_ids=True, **SAMPLINGS[0]).token_ids) == 8


def test_whoever_needs_the_history_or_more_log_probabilities_does_not_run_ahead(model: Model, gpu: Stub) -> None:
    for options in ({"logprobs": 65}, {"repetition_penalty": 1.1}, {"temperature": 1.0, "repetition_penalty": 1.1}):
        gpu.clear()
        model.generate([65], max_new_tokens=4, **options)
        assert not gpu.log("copy_within")


def test_code_that_draws_nothing_leaves_it_to_the_host(gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    """A plan of an older compiler: greedy text runs ahead, drawn text does not."""

    def older(plan: LaunchPlan) -> LaunchPlan:
        buckets = [replace(b, tails={name: b.tails[name] for name in NEEDED_RESULTS}) for b in plan.buckets]
        named = [b for b in plan.buffers if b.name not in ("sampling", "chosen", "sampled")]
        kernels = [k for k in plan.kernels if k.source != "draw"]
        return replace(plan, buckets=tuple(buckets), buffers=tuple(named), kernels=tuple(kernels))

    with load(toy_gpu_artifacts.make(gpu.architecture, change=older), device=gpu.vendor) as model:
        assert model.generate([65], max_new_tokens=4).token_ids == [66, 67, 68, 69] and gpu.log("copy_within")
        gpu.clear()
        assert len(model.generate([65], max_new_tokens=4, **SAMPLINGS[0]).token_ids) == 4
        assert not gpu.log("copy_within")


def test_steps_out_of_turn_are_refused(model: Model) -> None:
    device = model._device
    assert isinstance(device, GpuDevice)
    one, tables = np.zeros(1, np.int32), np.zeros((1, 1, 1), np.int32)
    with pytest.raises(ValueError, match="the one on its way"):
        device.start_ahead(None, one, one, tables)
    device.start_ahead(one, one, one, tables)
    with pytest.raises(ValueError, match="the one on its way"):
        device.start_ahead(one, one, one, tables)
    device.start_ahead(None, one + 1, one, tables)
    with pytest.raises(ValueError, match="the one on its way"):
        device.start_ahead(None, one + 2, one, tables)
    assert [device.finish_ahead().tolist() for _ in range(2)] == [[[1]], [[2]]]


@pytest.mark.parametrize("options", [{}, SAMPLINGS[1]])
def test_streams_in_turn_do_not_take_each_others_steps(model: Model, gpu: Stub, options: dict[str, Any]) -> None:
    """Several streams of one thread, each left standing with a step on its way while the next one is read."""
    given = {"max_new_tokens": 20, "ignore_stop_ids": True, **options}
    prompts = [[65], [3, 4], [120] * 9]
    alone = [model.generate(prompt, **given).token_ids for prompt in prompts]
    streams = [model.stream(prompt, **given) for prompt in prompts]
    for _ in range(3):
        next(streams[0])
    for stream in streams:
        next(stream, "")
    streams[2].close()
    assert [streams[n].outcome.token_ids for n in (1, 0)] == [alone[1], alone[0]]
    gpu.clear()
    assert model.generate(prompts[2], **given).token_ids == alone[2]
    assert len(gpu.log("copy_within")) > 15, "alone again it runs ahead"


def test_threads_share_a_gpu(model: Model) -> None:
    def text(number: int) -> list[int]:
        return model.generate([number], max_new_tokens=12, **(SAMPLINGS[1] if number % 2 else {})).token_ids

    alone = [text(number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(12))) == alone


def test_a_step_that_somebody_else_wrote_over_is_begun_again(model: Model, gpu: Stub) -> None:
    """The low-level session between two tokens of a stream: its draws lie where those of the step on its way did."""
    given = {"max_new_tokens": 12, "ignore_stop_ids": True, **SAMPLINGS[1]}
    alone = model.generate([65], **given).token_ids
    stream, sequence = model.stream([65], **given), model.session.open()
    for token in range(200, 204):
        next(stream)
        model.session.step_drawn([Feed(sequence, [token])], sampling_rows([(SamplerOptions(), 0)]))
    sequence.close()
    assert stream.outcome.token_ids == alone

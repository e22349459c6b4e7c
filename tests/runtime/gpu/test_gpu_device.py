"""The GPU device against a driver that records: the toy model through whole prompts, on both vendors' interfaces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from toy_gpu import ToyGpuArtifacts

from llamac.errors import LlamacError
from llamac.runtime import device_gpu
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

Logits = Callable[[list[int]], np.ndarray[Any, np.dtype[np.float32]]]


@pytest.fixture
def model(gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> Iterator[Model]:
    path = toy_gpu_artifacts.make(gpu.architecture)
    with load(path, device=gpu.vendor, sequences=4) as loaded:
        yield loaded


def test_a_prompt_in_one_prefill(model: Model, toy_logits: Logits) -> None:
    sequence = model.session.open()
    found = model.session.prefill(sequence, [1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(found, toy_logits([1, 2, 3, 4, 5, 6, 7])[-1])


def test_every_row_of_a_long_prompt(model: Model, toy_logits: Logits) -> None:
    """20 tokens are three steps, and each asks for more logit rows than a bucket gives at once."""
    ids = [(7 * n) % 256 for n in range(20)]
    np.testing.assert_array_equal(model.logits(ids), toy_logits(ids))


def test_logits_come_through_little_pinned_memory(
    gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts, toy_logits: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one row alone: logits of every row of a large vocabulary would be a gigabyte of it."""
    monkeypatch.setattr(device_gpu, "RESULT_BYTES", 1)
    with load(toy_gpu_artifacts.make(gpu.architecture), device=gpu.vendor, sequences=4) as model:
        ids = [(7 * n) % 256 for n in range(20)]
        np.testing.assert_array_equal(model.logits(ids), toy_logits(ids))
        assert {row["bytes"] for row in gpu.log("copy_out")} == {4 * 260}


def test_sequences_together_give_what_each_gives_alone(model: Model, toy_logits: Logits) -> None:
    session = model.session
    texts: list[list[int]] = [[5], [9, 8, 7], [1] * 6]
    sequences = [session.open() for _ in texts]
    for sequence, ids in zip(sequences, texts, strict=True):
        session.prefill(sequence, ids)
    for round_number in range(9):
        token = 40 + round_number
        found = session.step([Feed(sequence, [token + n]) for n, sequence in enumerate(sequences)])
        for n, ids in enumerate(texts):
            ids.append(token + n)
            np.testing.assert_array_equal(found[n], toy_logits(ids)[-1])


def test_a_prompt_beside_running_texts(model: Model, toy_logits: Logits) -> None:
    session = model.session
    first, second = session.open(), session.open()
    session.prefill(first, [3, 1, 4])
    found = session.step([Feed(first, [1]), Feed(second, [2, 7, 1, 8, 2])])
    np.testing.assert_array_equal(found[0], toy_logits([3, 1, 4, 1])[-1])
    np.testing.assert_array_equal(found[1], toy_logits([2, 7, 1, 8, 2])[-1])


def test_the_end_of_the_process_waits_for_a_step(model: Model, gpu: Stub) -> None:
    """Its finalizers run while daemon threads go on: memory must not go from under a step."""
    device = model.session.device
    assert isinstance(device, GpuDevice)
    with device._at_work():
        end = threading.Thread(target=device._close)
        end.start()
        end.join(0.2)
        assert end.is_alive() and not gpu.log("free")
    end.join()
    assert gpu.log("free")
    with pytest.raises(LlamacError, match="LLC0815"):
        model.session.prefill(model.session.open(), [1, 2])


def test_generated_text_is_that_of_the_cpu(model: Model, toy_artifact: Any) -> None:
    with load(toy_artifact) as on_cpu:
        expected = on_cpu.generate("ab", max_new_tokens=30)
    found = model.generate("ab", max_new_tokens=30)
    assert (found.text, found.token_ids) == (expected.text, expected.token_ids)


def test_the_best_ids_without_the_logits(model: Model, gpu: Stub, toy_logits: Logits) -> None:
    device = model._device
    assert isinstance(device, GpuDevice)
    arrays = [np.array(row, np.int32) for row in ([4, 6], [0, 0], [0, 1], [[[0], [1]]], [0, 1])]
    gpu.clear()
    found = device.step_greedy(*arrays)
    assert found.tolist() == [int(toy_logits([4])[-1].argmax()), int(toy_logits([6])[-1].argmax())]
    assert [row["bytes"] for row in gpu.log("copy_out")] == [8]


def test_rows_without_logits_are_not_waited_for(model: Model, gpu: Stub) -> None:
    sequence = model.session.open()
    gpu.clear()
    model.session.step([Feed(sequence, [1, 2, 3, 4, 5], "none")])
    assert not gpu.log("finish") and not gpu.log("copy_out")
    assert {row["kernel"] for row in gpu.log("launch")} == {"remember", "see_tiles"}
    assert gpu.toy.runs == [], "the stub does work only when somebody waits"


def test_inputs_of_a_waiting_step_are_not_overwritten(model: Model, toy_logits: Logits) -> None:
    """Five steps are on their way before the first is waited for; each has inputs of its own until it ran."""
    sequence = model.session.open()
    ids = list(range(10, 50))
    for start in range(0, 40, 8):
        model.session.step([Feed(sequence, ids[start : start + 8], "none")])
    found = model.session.step([Feed(sequence, [99])])
    np.testing.assert_array_equal(found[0], toy_logits([*ids, 99])[-1])


def test_decode_steps_are_one_graph_launch_each(model: Model, gpu: Stub) -> None:
    sequence = model.session.open()
    model.session.prefill(sequence, [1, 2, 3])
    model.session.step([Feed(sequence, [4])])
    gpu.clear()
    for token in range(5, 9):
        model.session.step([Feed(sequence, [token])])
    calls = [row["call"] for row in gpu.log()]
    one_step = ["finish_event", "copy_in", "replay", "copy_out", "finish"]
    assert calls == one_step * 4
    assert len({row["graph"] for row in gpu.log("replay")}) == 1


def test_a_graph_is_recorded_once_for_each_bucket_and_result(model: Model, gpu: Stub) -> None:
    sequences = [model.session.open() for _ in range(4)]
    for _ in range(3):
        model.session.step([Feed(sequences[0], [1])])
        model.session.step([Feed(sequence, [1]) for sequence in sequences[:3]])
        model.session.step([Feed(sequences[3], [1], "none")])
    assert len(gpu.log("begin_capture")) == len(gpu.log("instantiate")) == 3


def test_any_thread_may_step(model: Model, toy_logits: Logits) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [[n, n + 1, n + 2] for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: model.generate(ids, max_new_tokens=1).token_ids, texts))
    assert found == [[int(toy_logits(ids)[-1].argmax())] for ids in texts]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({0: [260]}, "token id out of range"),
        ({1: [-1]}, "position out of range"),
        ({1: [4]}, "position out of range"),
        ({2: [1]}, "sequence index out of range"),
        ({3: [[[-1]]]}, "page out of range or missing"),
        ({3: [[[1000]]]}, "page out of range or missing"),
        ({4: [1]}, "logit row out of range"),
    ],
)
def test_numbers_that_would_be_wild_reads_are_refused(model: Model, changes: dict[int, Any], text: str) -> None:
    rows: list[Any] = [[1], [0], [0], [[[0]]], [0]]
    arrays = [np.array(changes.get(n, row), np.int32) for n, row in enumerate(rows)]
    with pytest.raises(LlamacError, match=f"LLC0806 toy-.*{text}"):
        model._device.step(*arrays, np.empty((1, 260), np.float32))


def test_arrays_of_the_wrong_kind_are_refused(model: Model) -> None:
    good = np.array([0], np.int32)
    logits = np.empty((1, 260), np.float32)
    with pytest.raises(TypeError):
        model._device.step(good.astype(np.int64), good, good, good[None, None], good, logits)
    with pytest.raises(ValueError, match="float32 logits of shape"):
        model._device.step(good, good, good, good[None, None], good, logits[:, :-1])
    with pytest.raises(ValueError, match="one length"):
        model._device.step(good, good[:0], good, good[None, None], good, logits)


def test_what_the_gpu_cannot_do_is_said(model: Model) -> None:
    from llamac.runtime.step_pictures import StepPictures

    good = np.array([0], np.int32)
    with pytest.raises(LlamacError, match=r"LLC0867.*pictures"):
        model._device.step(good, good, good, good[None, None], good, np.empty((1, 260), np.float32), StepPictures())
    assert model.expert_counts() == {}
    with pytest.raises(LlamacError, match=r"LLC0867.*profile"):
        model.profile()


def test_a_step_with_more_tokens_than_any_bucket(model: Model) -> None:
    many = np.arange(9, dtype=np.int32)
    owners = np.zeros(9, np.int32)
    with pytest.raises(LlamacError, match="LLC0715"):
        model._device.step(
            many, many, owners, np.array([[[0, 1, 2]]], np.int32), many[:1], np.empty((1, 260), np.float32)
        )


def test_a_closed_model_refuses_and_holds_nothing(model: Model, gpu: Stub) -> None:
    model.logits([1, 2])
    model.close()
    assert (gpu.blocks, gpu.handles) == (0, 0)
    with pytest.raises(LlamacError, match="LLC0815"):
        model.logits([1])
    model.close()


def test_a_forgotten_model_gives_the_gpu_back(gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    import gc

    load(toy_gpu_artifacts.make(gpu.architecture), device=gpu.vendor).logits([1, 2])
    gc.collect()
    assert (gpu.blocks, gpu.handles) == (0, 0)

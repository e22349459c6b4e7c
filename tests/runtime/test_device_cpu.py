"""Loading code and stepping it: every status and every unusable library is a coded error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.cpu_memory import anonymous_memory
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.host_cpu import HostCpu
from llamac.runtime.loader import load
from llamac.runtime.model import Model

VOCAB = 260


@pytest.fixture
def model(toy_artifact: Path) -> Iterator[Model]:
    with load(toy_artifact) as loaded:
        yield loaded


def _step(device: CpuDevice, **changes: Any) -> None:
    arrays: dict[str, list[Any]] = {
        "token_ids": [1, 2],
        "positions": [0, 1],
        "sequence_of_token": [0, 0],
        "page_tables": [[[0, -1]]],
        "logit_rows": [1],
    }
    arrays |= changes
    logits = np.empty((len(arrays["logit_rows"]), VOCAB), np.float32)
    ids, positions, owners, pages, rows = (np.array(value, np.int32) for value in arrays.values())
    device.step(ids, positions, owners, pages, rows, logits)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"token_ids": [1, 260]}, "token id out of range"),
        ({"page_tables": [[[-1, 0]]]}, "page out of range or missing"),
        ({"page_tables": [[[1000, 0]]]}, "page out of range or missing"),
        ({"positions": [0, -1]}, "position out of range"),
        ({"logit_rows": [2]}, "logit row out of range"),
        ({"sequence_of_token": [0, 1]}, "sequence index out of range"),
    ],
)
def test_a_status_of_the_code_becomes_a_coded_error(model: Model, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(LlamacError, match=f"LLC0806.*{text}"):
        _step(model._device, **changes)


def test_too_many_tokens_are_refused_by_the_code(model: Model) -> None:
    many = {
        "token_ids": [1] * 9,
        "positions": list(range(9)),
        "sequence_of_token": [0] * 9,
        "page_tables": [[[0, 1, 2]]],
    }
    with pytest.raises(LlamacError, match=r"LLC0806.*too many tokens \(status 4\)"):
        _step(model._device, **many)


def test_arrays_of_the_wrong_kind_never_reach_the_code(model: Model) -> None:
    good = np.array([0], np.int32)
    logits = np.empty((1, VOCAB), np.float32)
    with pytest.raises(TypeError):
        model._device.step(good.astype(np.int64), good, good, good[None, None], good, logits)
    with pytest.raises(ValueError, match="float32 logits of shape"):
        model._device.step(good, good, good, good[None, None], good, logits[:, :-1])


def test_a_closed_model_refuses(model: Model) -> None:
    model.close()
    model.close()
    with pytest.raises(LlamacError, match="LLC0815"):
        _step(model._device)


def test_wrong_sizes_are_refused_at_create(toy: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["memory"]["arena_bytes"] = 64

    with pytest.raises(LlamacError, match=r"LLC0805.*wrong sizes at create"):
        load(toy.make(edit))


def test_code_of_another_interface_is_refused(toy: Any, code_of_abi_1: bytes) -> None:
    with pytest.raises(LlamacError, match=r"LLC0804.*native interface 1, this llamac speaks 3"):
        load(toy.make(code=code_of_abi_1))


def test_code_that_is_no_library_is_refused(toy: Any) -> None:
    with pytest.raises(LlamacError, match=r"LLC0803.*code/host.so"):
        load(toy.make(code=b"not a library"))


def test_two_models_in_one_process_keep_their_own_memory(toy: Any, toy_logits: Callable[..., Any]) -> None:
    with load(toy.make()) as first, load(toy.make()) as second:
        np.testing.assert_array_equal(first.logits([5, 6]), toy_logits([5, 6]))
        np.testing.assert_array_equal(second.logits([7, 8, 9]), toy_logits([7, 8, 9]))


def test_without_memory_files_a_temporary_file_serves(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with load(toy_artifact) as model:
        assert model.generate([97], max_new_tokens=1).token_ids == [98]
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_for_another_cpu(toy_artifact: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0800.*host needs a .* machine"):
        load(toy_artifact, host=HostCpu("riscv64", "linux", frozenset()))


def test_missing_features_are_named(toy: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["targets"][0]["requires"] = ["avx9000", "warp_drive"]

    with pytest.raises(LlamacError, match=r"LLC0800.*host needs avx9000, warp_drive"):
        load(toy.make(edit))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("memory", "kv_page_tokens", 0),
        ("memory", "caches", []),
        ("memory", "max_step_tokens", 1 << 40),
        ("memory", "arena_bytes", 1 << 60),
        ("model", "vocab_size", 0),
        ("model", "context_length", 0),
        ("generation", "bos_id", 260),
        ("generation", "stop_ids", [999]),
    ],
)
def test_numbers_out_of_range_are_refused(toy: Any, section: str, key: str, value: object) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest[section][key] = value

    with pytest.raises(LlamacError, match=f"LLC0802 manifest key {section}.{key}"):
        load(toy.make(edit))


def test_memory_is_zeroed_aligned_and_refused_in_words() -> None:
    memory = anonymous_memory(10_000, "test")
    assert memory.ctypes.data % 64 == 0
    assert not memory.any()
    with pytest.raises(LlamacError, match=r"LLC0807.*for the cache of the test"):
        anonymous_memory(1 << 62, "cache of the test")

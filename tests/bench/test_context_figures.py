"""`bench/cpu/context.py`: bytes that a row sees, pages that all hold something, and the figures of a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import context
import numpy as np
import pytest

import llamac
from llamac.runtime import read_bandwidth
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.run_plan import CachePlan


@pytest.mark.parametrize(("chunk", "length", "positions"), [(0, 700, 700), (256, 700, 188), (256, 512, 256)])
def test_bytes_that_the_last_row_sees(chunk: int, length: int, positions: int) -> None:
    cache = CachePlan(chunk, (0,), 256 * 10)
    assert context.kv_bytes(cache, 256, length) == positions * 10


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("context") / "tiny.llamac"
    llamac.compile("tiny-llama3", output=path, random_weights=0, tokenizer=False, kv="int8", validate=False)
    return path


def test_every_page_holds_keys(artifact: Path) -> None:
    with llamac.load(artifact, context=600) as model:
        device = model.session.device
        assert isinstance(device, CpuDevice)
        tables = context.fill(model, device, 600)
        assert tables.tolist() == [[[0, 1, 2]]]
        size = device.plan.caches[0].page_bytes
        pages = np.asarray(device._buffers[1][: 3 * size]).reshape(3, size)
        assert (pages == pages[0]).all() and (pages[0] != 0).mean() > 0.9


def test_figures(artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(read_bandwidth, "BUFFER_BYTES", 8 << 20)
    words = [str(artifact), "--contexts", "300", "--prompts", "20", "600", "--pairs", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["context.py", *words, "--json"])
    context.main()
    found = json.loads(capsys.readouterr().out)["models"]["tiny"]
    assert [p["tokens"] for p in found["prefill"]] == [20, 600]
    (decode,) = found["decode"]
    assert decode["kv_bytes"] > 0 and decode["weight_bytes"] > 0 and decode["ratio"] > 0
    (step,) = found["last_step"]
    assert step["context"] == step["tokens"] == 300
    assert step["peak_bytes"] > step["grown_bytes"] >= 0 and step["plan_bytes"] > 0
    monkeypatch.setattr(sys, "argv", ["context.py", *words])
    context.main()
    printed = capsys.readouterr().out
    assert "times the floor's time" in printed and "last 300 rows of     300" in printed


def test_a_whole_prompt_is_estimated_from_steps() -> None:
    """The cost of token t is 1 + t / 100: two steps that say so give the sum over all tokens."""
    steps = [context.LastStep(n, 100, 100 + (n - 50), 0, 0, 0) for n in (100, 1000)]
    assert context.estimated(steps, 900) == pytest.approx(sum(1 + max(t, 50) / 100 for t in range(900)))


def test_memory_that_is_held_at_most() -> None:
    context.forget_peak()
    before = context.held("VmHWM")
    assert before >= context.held() > 1 << 20
    taken = np.ones(32 << 20, np.uint8)
    assert context.held("VmHWM") >= before + taken.size // 2

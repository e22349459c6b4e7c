"""A compiled model on the CPU: profiles, pinned threads, copied weights, memory as planned, and idle when idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stepping import assert_same_bits, in_chunks
from tiny_llama import TinyShape, make_reference, save_checkpoint, some_ids

import llamac
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.runtime import loader
from llamac.runtime.host_cpu import allowed_cpus
from llamac.runtime.model import Model

SHAPE = TinyShape(group=3, head_dim=16, dtype="f32", width=72, inner=100, vocab=131, layers=3)
IDS = some_ids(131, 40)
LARGE = TinyShape(group=4, head_dim=64, dtype="bf16", width=1024, inner=4096, vocab=4000, layers=6, tied=True)
"""About 100 million parameters: its weights are far more than what the interpreter's memory varies by."""


@pytest.fixture(scope="module")
def artifact(make_once: Callable[..., Path]) -> Path:
    def make(path: Path) -> None:
        source = path.with_suffix(".source")
        save_checkpoint(make_reference(SHAPE), SHAPE, source)
        llamac.compile(source, output=path, quantize="int4", tokenizer=False, max_step_tokens=64, validate=False)

    return make_once("cpu-options.llamac", make)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Any:
    with llamac.load(artifact, threads=2, context=256) as loaded:
        yield loaded


def test_a_profile_accounts_for_every_op_and_all_the_time(model: Model) -> None:
    with model.profile() as profile:
        started = time.perf_counter()
        result = model.generate(IDS, max_new_tokens=9, temperature=0, ignore_stop_ids=True)
        seconds = time.perf_counter() - started
    assert len(result.token_ids) == 9
    assert {name: (p.steps, p.tokens) for name, p in profile.phases.items()} == {"prefill": (1, 40), "decode": (8, 8)}
    rows = {row.op.name: row for row in profile.rows("decode")}
    stored = {row["name"]: row["bytes"] for row in model.manifest["weights"][0]["tensors"]}
    for name, rows_of, columns in [("attn.qkv", 160, 72), ("mlp.gate_up", 200, 72), ("mlp.down", 72, 100)]:
        op, read = rows[name].op, [size for tensor, size in stored.items() if f".{name}." in f"{tensor}."]
        assert (op.function, op.detail) == ("layer", f"i4g32s16 {rows_of}x{columns}")
        assert rows[name].calls == 8 * 3
        assert rows[name].operations == 2 * rows_of * columns * 24
        assert len(read) == 3
        # The first of them puts the keys and values of a token into the cache, two heads of 16 in f16.
        appended = 3 * 2 * 2 * 16 * 2 if name == "attn.qkv" else 0
        assert rows[name].bytes == 8 * (sum(read) + appended)
    (attend,) = [row for row in profile.rows("decode") if row.op.kind == "attend"]
    keys = sum(range(41, 49))
    assert attend.operations == 4 * 6 * 16 * keys * 3
    assert attend.bytes == 2 * 2 * 16 * 2 * keys * 3
    spent = sum(phase.seconds for phase in profile.phases.values())
    assert 0 < spent < seconds
    assert sum(row.seconds for row in profile.rows("decode")) == pytest.approx(profile.phases["decode"].seconds)
    assert profile.read_bytes_per_second > 1e8
    assert profile.peaks["int8"] > 1e8
    assert profile.peaks["f32"] > 1e8


def test_a_profile_counts_only_what_it_surrounds(model: Model) -> None:
    model.generate(IDS, max_new_tokens=3, temperature=0, ignore_stop_ids=True)
    with model.profile() as profile:
        pass
    assert profile.phases == {}
    with model.profile() as second:
        model.generate(IDS[:5], max_new_tokens=2, temperature=0, ignore_stop_ids=True)
    assert second.phases["decode"].steps == 1
    assert max(row.calls for row in second.rows("decode")) == 3
    with model.profile(), pytest.raises(LlamacError, match="LLC0818"), model.profile():
        pass


def test_profiles_on_the_command_line(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--profile", "--threads", "2", "--context", "256"]
    run = ["run", str(artifact), "--prompt-ids", "1,2,3", "--max-new-tokens", "4", "--ignore-stop-ids", *words]
    assert main([*run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["profile"]
    assert (found["phases"]["prefill"]["steps"], found["phases"]["decode"]["steps"]) == (1, 3)
    assert {"kind", "name", "detail", "calls", "seconds", "waited_seconds", "bytes", "fraction_of_limit"} <= set(
        found["phases"]["decode"]["ops"][0]
    )
    assert main(run) == 0
    said = capsys.readouterr()
    assert "linear_grouped i4g32s16 200x72 mlp.gate_up" in said.err
    assert "limits measured here: read" in said.err
    assert "i4g32s16" not in said.out
    bench = ["bench", str(artifact), "--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1", *words]
    assert main(bench) == 0
    out = capsys.readouterr().out
    assert "prefill: 1 steps, 16 tokens" in out
    assert "decode: 3 steps, 3 tokens" in out


@pytest.mark.parametrize(
    "options",
    [{"weights": "copy"}, {"pin": True, "threads": 1}, {"pin": [allowed_cpus()[-1]]}, {"first_touch": True}],
    ids=lambda options: "-".join(options),
)
def test_the_same_bits_wherever_things_lie(artifact: Path, model: Model, options: dict[str, Any]) -> None:
    expected = in_chunks(model, IDS, (17,))
    with llamac.load(artifact, context=256, say=lambda line: None, **options) as other:
        assert_same_bits(in_chunks(other, IDS, (17,)), expected, str(options))
    assert sorted(os.sched_getaffinity(0)) == allowed_cpus()


def test_first_touch_says_when_it_changes_nothing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(loader, "memory_nodes", lambda: 1)
    llamac.load(artifact, context=256, first_touch=True, say=said.append).close()
    assert said == ["first touch changes nothing here: the machine has one memory node"]
    monkeypatch.setattr(loader, "memory_nodes", lambda: 2)
    with llamac.load(artifact, context=256, first_touch=True, weights="copy", say=said.append) as touched:
        assert len(said) == 1
        assert not touched._device._buffers[1].any(), "the cache is zeroed"  # type: ignore[union-attr]
        assert touched.logits(IDS).shape == (40, 131)


def test_an_idle_model_uses_no_processor(model: Model) -> None:
    model.generate(IDS, max_new_tokens=4, temperature=0)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.01


MEASURE = """
import sys, llamac
from llamac.runtime.loader import load
def held():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(rows["VmRSS"].split()[0]) * 1024
before = held()
with load(sys.argv[1], threads=2, context=2048, weights=sys.argv[2]) as model:
    sequence = model.session.open()
    for start in range(0, 256, 64):
        model.session.prefill(sequence, list(range(start, start + 64)))
    memory = model.plan.memory
    planned = memory.weight_bytes + memory.arena_bytes + sum(cache.page_bytes for cache in memory.caches)
    print(held() - before, planned)
"""


@pytest.fixture(scope="module")
def large(make_once: Callable[..., Path]) -> Path:
    def make(path: Path) -> None:
        source = path.with_suffix(".source")
        save_checkpoint(make_reference(LARGE), LARGE, source)
        llamac.compile(source, output=path, quantize="bf16", tokenizer=False, max_step_tokens=64, validate=False)

    return make_once("cpu-memory.llamac", make)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["map", "copy"])
def test_a_process_holds_what_was_planned(large: Path, weights: str) -> None:
    """All weights, the arena, and the pages of the cache that were filled; with a copy the file's pages are let go."""
    words = [sys.executable, "-c", MEASURE, str(large), weights]
    held, planned = map(int, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    assert planned > 150e6
    assert 0.9 * planned < held < 1.1 * planned, f"{held / 1e6:.0f} MB held, {planned / 1e6:.0f} MB planned"


def test_a_machine_without_the_features_runs_none_of_the_code(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose /proc/cpuinfo shows the first x86-64 processors, or the first Armv8."""
    monkeypatch.setattr("llamac.runtime.host_cpu.cpu_features", lambda architecture: frozenset({"fpu", "sse2", "fp"}))
    monkeypatch.setattr(loader, "load_library", lambda code, where: pytest.fail("the code was loaded"))
    with pytest.raises(LlamacError, match=r"LLC0800 .* needs (abm, avx|asimd)"):
        llamac.load(artifact)

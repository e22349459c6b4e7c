"""Steps of a model that GPUs share, as the driver and NCCL see them: what is summed and joined, and when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import planned_runs
import pytest
from gpu_stub_library import Stub, build
from planned_models import Planned, Tiny, planned
from planned_runs import PlannedRun, prompt, running

from llamac.artifact.launch_plan import SAMPLED_WORDS, Bucket, evaluate
from llamac.errors import LlamacError
from llamac.passes.pipelines import Share
from llamac.runtime.device_gpu_ranks import LeadingGpu
from llamac.runtime.gpu import nccl
from llamac.runtime.gpu.nccl import Nccl, unique_id
from llamac.runtime.gpu.sampling import sampling_rows
from llamac.runtime.running_ahead import rows_ahead
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.session import Feed

DENSE = Tiny("bf16", heads=8, kv_heads=4, hidden=64, inner=128, vocab=64)
EXPERTS = Tiny("bf16", heads=8, kv_heads=4, hidden=64, inner=128, vocab=64, experts=4)
COLLECTIVE = ("all_reduce", "all_gather")


@pytest.fixture
def nccl_stub(cuda: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """NVIDIA's driver and NCCL, which are one stub."""
    monkeypatch.setitem(nccl.LIBRARIES, "cuda", (str(build("cuda")),))
    cuda.be("sm_90")
    return cuda


def share_of(tiny: Tiny, rank: int) -> Planned:
    """What one of two GPUs runs."""
    return planned(tiny.config(), share=Share(2, rank), quantize="bf16")


def expected(run: PlannedRun, bucket: Bucket, result: str, sizes: dict[str, int]) -> list[tuple[Any, ...]]:
    """The calls of a step that ends in `result`, meetings at their places."""
    device = run.device._runs[bucket.name]
    base = {**run.device._memory.base, **device.output_at}
    found: list[tuple[Any, ...]] = []
    for name, launches in (("launches", bucket.launches), (result, bucket.tails[result])):
        met: dict[int, list[tuple[Any, ...]]] = {}
        for m in bucket.meetings.get(name, ()):
            source, to = (base[p.buffer] + p.offset for p in (m.source, m.to))
            rows = evaluate(m.rows, sizes)
            if m.kind == "all_reduce":
                met.setdefault(m.at, []).append(("all_reduce", source, to, rows * m.columns))
            else:
                each = [
                    ("all_gather", source + 4 * r * m.columns, to + 8 * r * m.columns, m.columns) for r in range(rows)
                ]
                met.setdefault(m.at, []).extend(each)
        for number, launch in enumerate(launches):
            found += [*met.pop(number, []), ("launch", run.plan.kernels[launch.kernel].name)]
        found += met.pop(len(launches), [])
        assert not met, "a meeting behind the end"
    return found


def seen(run: PlannedRun) -> list[tuple[Any, ...]]:
    """The launches and meetings since the log was cleared."""
    found: list[tuple[Any, ...]] = []
    for row in run.stub.log():
        if row["call"] == "launch":
            found.append(("launch", row["kernel"]))
        elif row["call"] in COLLECTIVE:
            found.append((row["call"], row["from"], row["to"], row["count"]))
    return found


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("tiny", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_the_calls_of_a_step(nccl_stub: Stub, tiny: Tiny, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill of two sequences, then decoding: two sums a layer, one join of the logits, where the plan says."""
    model, group = share_of(tiny, rank), Nccl("cuda", rank, 2, unique_id("cuda"))
    assert nccl_stub.log("group") == [{"call": "group", "rank": rank, "ranks": 2}]
    with running(nccl_stub, model, monkeypatch, sequences=2, collectives=group) as run:
        session, plan = run.session, run.plan
        first, second = session.open(), session.open()
        nccl_stub.clear()
        session.step([Feed(first, prompt(19)), Feed(second, prompt(3))])
        bucket = plan.choose(22, 2, 19)
        assert seen(run) == expected(run, bucket, "logits", run.sizes(bucket, 22, 2, 3))
        nccl_stub.clear()
        session.step([Feed(first, [1])])
        bucket = plan.choose(1, 1, 1)
        calls = seen(run)
        assert calls == expected(run, bucket, "logits", run.sizes(bucket, 1, 1, 2))
        kinds = [call[0] for call in calls]
        assert kinds.count("all_reduce") == 2 * 2 and kinds.count("all_gather") == 1
        # Recorded with the launches: the second step like it makes no call at all.
        nccl_stub.clear()
        session.step([Feed(first, [2])])
        assert seen(run) == [] and nccl_stub.log("replay")
    assert len(nccl_stub.log("leave")) == 1


def test_one_rank_brings_the_residual() -> None:
    """The launches of the ranks are as many; only the first one's products add a residual."""
    plans = [share_of(DENSE, rank).plan for rank in (0, 1)]
    for bucket, other in zip(plans[0].buckets, plans[1].buckets, strict=True):
        assert len(bucket.launches) == len(other.launches) and bucket.meetings.keys() == other.meetings.keys()
        where = [[(m.at, m.kind, m.rows, m.columns) for m in b.meetings["launches"]] for b in (bucket, other)]
        assert where[0] == where[1]
    residuals = [sum("residual_ptr" in [q.name for q in k.parameters] for k in plan.kernels) for plan in plans]
    assert residuals[0] > 0 and residuals[1] == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("result", ["greedy", "sample"])
def test_steps_ahead(nccl_stub: Stub, rank: int, result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same launches and meetings on every rank; the tokens of the next step are copied on the GPU."""
    model, group = share_of(DENSE, rank), Nccl("cuda", rank, 2, unique_id("cuda"))
    sampling = sampling_rows([(SamplerOptions(1.0, top_k=5), 7)]) if result == "sample" else None
    with running(nccl_stub, model, monkeypatch, collectives=group) as run:
        device, tables = run.device, np.zeros((1, 1, 1), np.int32)
        one = np.zeros(1, np.int32)
        nccl_stub.clear()
        device.start_ahead(one, one, one, tables, sampling)
        bucket = run.plan.choose(1, 1, 1)
        assert seen(run) == expected(run, bucket, result, run.sizes(bucket, 1, 1, 2))
        nccl_stub.clear()
        device.start_ahead(None, one + 1, one, tables, sampling)
        assert seen(run) == [] and len(nccl_stub.log("replay")) == len(nccl_stub.log("copy_within")) == 1
        shapes = [device.finish_ahead().shape for _ in range(2)]
        assert shapes == [(1, 1 if sampling is None else SAMPLED_WORDS)] * 2
        with pytest.raises(ValueError, match="no step is on its way"):
            device.finish_ahead()


class Orders:
    """Another rank that notes what it is asked, and answers as it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: list[str | None] = []

    def order(self, name: str, given: tuple[Any, ...]) -> None:
        self.asked.append(name)
        self.answers.append(None)

    def answer(self) -> str | None:
        return self.answers.pop(0)

    def end(self) -> None:
        self.asked.append("end")


def test_the_other_ranks_run_ahead_as_well(nccl_stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are ordered before an answer is taken; what a rank refuses is said; later steps are in time again."""
    other, group = Orders(), Nccl("cuda", 0, 2, unique_id("cuda"))
    made = partial(LeadingGpu, [other])
    monkeypatch.setattr(planned_runs, "GpuDevice", lambda *given, collectives, **_: made(*given, None, collectives))
    with running(nccl_stub, share_of(DENSE, 0), monkeypatch, collectives=group) as run:
        sequence = run.session.open()
        sequence.reserve(9, 0)
        found = rows_ahead(run.session, [sequence], [3], 4)
        next(found)
        assert other.asked == ["start_ahead", "start_ahead", "finish_ahead"] and not other.answers
        next(found)
        assert other.asked[3:] == ["start_ahead", "finish_ahead"]
        found.close()
        assert other.asked[5:] == ["forget_ahead"] and not other.answers
        run.session.step([Feed(sequence, [1])])
        assert other.asked[6:] == ["step"] and not other.answers
        found = rows_ahead(run.session, [sequence], [3], 4)
        next(found)
        monkeypatch.setattr(other, "answer", lambda: other.answers.pop(0) or "rank 1 has ended")
        with pytest.raises(LlamacError, match=r"LLC0868.*rank 1 has ended"):
            next(found)
        monkeypatch.undo()
        assert not other.answers


@pytest.mark.parametrize("call", ["ncclCommInitRank", "ncclAllReduce", "ncclAllGather"])
def test_a_call_that_fails(nccl_stub: Stub, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with the library's word for it; and nothing is left allocated."""

    def whole() -> None:
        group = Nccl("cuda", 0, 2, unique_id("cuda"))
        with running(nccl_stub, share_of(DENSE, 0), monkeypatch, collectives=group) as run:
            run.session.all_logits(prompt(5))

    nccl_stub.fail(call, 1)
    with pytest.raises(LlamacError) as found:
        whole()
    assert found.value.code == "LLC0869" and call in found.value.reason and "unhandled" in found.value.reason


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(LlamacError) as found:
        work()
    return found.value.code


def test_a_part_alone(nccl_stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for two GPUs does not run on one, nor that of another rank."""

    def run(rank: int, group: Nccl | None) -> None:
        with running(nccl_stub, share_of(DENSE, rank), monkeypatch, collectives=group):
            raise AssertionError("it runs")

    assert refused(lambda: run(0, None)) == "LLC0867"
    assert refused(lambda: run(0, Nccl("cuda", 1, 2, unique_id("cuda")))) == "LLC0867"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nccl.LIBRARIES, "hip", ("librccl-that-is-not-there.so",))
    assert refused(lambda: unique_id("hip")) == "LLC0869"


RUN = """
import sys, numpy, llamac
from llamac.runtime.session import Feed
with llamac.load(sys.argv[1], device="hip", say=lambda line: None) as model:
    device = model.session.device
    sequence = model.session.open()
    model.session.prefill(sequence, [1, 2, 3])
    for _ in range(4):
        model.session.step([Feed(sequence, [5])])
    text = model.generate([5], max_new_tokens=5, ignore_stop_ids=True)
    print(len(text.token_ids), device._owed)
    given = [numpy.zeros(1, numpy.int32)] * 2 + [numpy.zeros((1, 1, 1), numpy.int32)]
    for ids in (given[0], None):
        device.start_ahead(ids, *given, numpy.zeros((1, 8), numpy.int32))
    print([device.finish_ahead().shape for _ in range(2)], device._owed)
    print(type(device).__name__, len(device._others), [o._process.poll() for o in device._others])
print([o._process.poll() for o in device._others])
"""


@pytest.fixture(scope="module")
def for_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact for two GPUs."""
    from llamac.driver import compile as compile_model
    from llamac.models.random_weights import random_checkpoint

    path = tmp_path_factory.mktemp("divided") / "m.llamac"
    tiny = random_checkpoint(DENSE.config(), 3)
    compile_model(tiny, target="mi300x:2", output=path, max_step_tokens=2, validate=False)
    return path


@pytest.mark.parametrize("devices", [2, 1])
def test_a_process_for_each_gpu(for_two: Path, tmp_path: Path, devices: int) -> None:
    """Two processes run the steps of an artifact for two; with one GPU it is said which rank has none."""
    path, library = for_two, build("hip")
    for name in ("libamdhip64.so.7", "librccl.so.1"):
        (tmp_path / name).symlink_to(library)
    config = f"devices={devices};driver=70051831;architecture=gfx942;name=Stub;shared=65536;units=304"
    room = f"total={80 << 30};free={80 << 30}"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LLAMAC_GPU_STUB": f"{config};{room}"}
    command = [sys.executable, "-c", RUN, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if devices == 2:
        assert done.stdout.splitlines() == ["5 0", "[(1, 132), (1, 132)] 0", "LeadingGpu 1 [None]", "[0]"], done.stderr
    else:
        assert "LLC0868" in done.stderr and "LLC0862 hip:1" in done.stderr and done.returncode != 0

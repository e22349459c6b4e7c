"""`make gpu-test`, `gpu-bench` and `gpu-tune` on a bad day: whatever fails is named, and the rest goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_gpu import ToyGpu, ToyGpuArtifacts

sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "gpu"))
sys.path.insert(0, str(Path(__file__).parents[2] / "gpu"))
import measure_gpu
import tune
import whole_model
from careful_driver import CarefulDriver
from check import Report
from children import Ended, run_child
from compile_kernels import kernel_tests, pytest_command
from gpu_cases import ROWS
from gpu_process import GpuProcess
from made_weights import repeat
from recorded_examples import record
from recorded_examples import repeat as repeat_examples

from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import LaunchShape
from llamac.runtime.loader import load
from llamac.runtime.sampler import SamplerOptions

ROOT = Path(__file__).parents[3]
PYTHON = sys.executable
SLEEPER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"


def test_a_child_is_ended_with_all_that_it_started() -> None:
    good = run_child([PYTHON, "-c", "print('found')"], 30, stdout=subprocess.PIPE)
    assert (good.status, good.output) == (0, "found\n")
    assert run_child([PYTHON, "-c", "raise SystemExit(3)"], 30).how == "exit status 3"
    start = time.monotonic()
    # The child's child holds the pipe: only when both have ended is its other end closed.
    stuck = run_child([PYTHON, "-c", SLEEPER], 1, stdout=subprocess.PIPE)
    assert stuck.status is None and stuck.how == "no end after 1 s" and time.monotonic() - start < 20


def link_tree(folder: Path) -> Path:
    """llamac as one package, as `make .typecheck` has it."""
    package = folder / "llamac"
    package.mkdir(parents=True)
    inner = [path for path in (ROOT / "llamac").iterdir() if path.name != "__pycache__"]
    for path in (*inner, *(ROOT / name for name in ("passes", "backends", "runtime", "models"))):
        (package / path.name).symlink_to(path)
    return folder


def test_kernels_are_tested_where_llamac_is_not_installed(tmp_path: Path) -> None:
    """A machine with a GPU has the checkout, and no package: -S leaves out that this one is installed."""
    python, *rest = pytest_command()
    paths = [str(link_tree(tmp_path)), *(path for path in sys.path if path.endswith("-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [python, "-S", *(word for word in rest if word not in kernel_tests()), *kernel_tests()[-1:]]
    done = subprocess.run([*command, "--collect-only"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "tests collected" in done.stdout, done.stdout + done.stderr


def test_every_file_of_kernel_tests_goes_to_the_gpu() -> None:
    there = set((ROOT / "tests" / "backends" / "gpu").glob("test_*_kernels.py"))
    assert set(map(Path, kernel_tests())) == there - {ROOT / "tests" / "backends" / "gpu" / "test_compiled_kernels.py"}


@settings(max_examples=7, database=None)
@given(size=st.integers(0, 1000), name=st.sampled_from(["a", "b"]))
def drawn(log: list[Any], size: int, name: str) -> None:
    log.append((size, name))
    assert name != "c"


def test_random_examples_are_done_again(tmp_path: Path) -> None:
    first: list[Any] = []
    again: list[Any] = []
    path = tmp_path / "new" / "examples.json"
    record(drawn, {"log": first}, path, "drawn")
    repeat_examples(drawn.hypothesis.inner_test, {"log": again}, path, "drawn")  # type: ignore[attr-defined]
    assert first == again and len(again) == 7
    with pytest.raises(LookupError, match="make gpu-code"):
        repeat_examples(None, {}, path, "another")
    path.write_text(json.dumps({"drawn": [{"size": 4, "name": "c"}]}))
    with pytest.raises(AssertionError) as caught:
        repeat_examples(drawn.hypothesis.inner_test, {"log": again}, path, "drawn")  # type: ignore[attr-defined]
    assert caught.value.__notes__ == ["the example: {'size': 4, 'name': 'c'}"]


def test_a_launch_that_ends_its_process_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the driver, a death and a hang; each launch gets a process that can work."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with GpuProcess("cuda", tmp_path, seconds=60) as process:
        for _ in range(2):
            with pytest.raises(AssertionError, match=r"(?s)linear.norm_rows failed on the GPU.*LLC086"):
                process.launch("linear.norm_rows", (1,), x_ptr=np.zeros(1, np.float32))
            assert process._process is None
        process._command = [PYTHON, "-c", "raise SystemExit(5)"]
        with pytest.raises(AssertionError, match=r"head.draw: the process .* ended"):
            process.launch("head.draw", (1,))
        process._command, process.seconds = [PYTHON, "-c", SLEEPER], 0.5
        with pytest.raises(AssertionError, match=r"head.draw gave no answer"):
            process.launch("head.draw", (1,))


class Refusing:
    """A driver whose third launch does something wild."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def function(self, module: int, name: str) -> int:
        return 100 + len(self.calls)

    def launch(self, function: int, shape: LaunchShape, parameters: int, stream: int) -> None:
        self.calls.append((function, shape.dependent, parameters))

    def wait_for_stream(self, stream: int) -> None:
        if len(self.calls) == 3:
            raise LlamacError("LLC0864", "cuda", "cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS")


def test_the_launch_that_fails_is_named() -> None:
    inner = Refusing()
    driver = CarefulDriver(inner)  # type: ignore[arg-type]
    function = driver.function(1, "decode_linear")
    shape = LaunchShape((2, 1, 1), 128, dependent=True)
    driver.launch(function, shape, 1, 7)
    driver.begin_capture(7)
    driver.launch(function, shape, 2, 7)
    graph = driver.end_capture(7)
    assert inner.calls == [(function, False, 1)]
    driver.launch_graph(graph, 7)
    with pytest.raises(LlamacError) as caught:
        driver.launch_graph(graph, 7)
    assert "in launch 2: kernel 0 of the plan, decode_linear" in caught.value.__notes__[0]


def test_the_report_of_the_checks(tmp_path: Path) -> None:
    """What fails is told at the end, and what there was no time for is not right."""
    ends = iter([Ended(0, "", 1.0), Ended(None, "", 90.0)])
    report = Report(1.0, lambda *given, **others: next(ends))
    assert report.child("code", "code", []) and not report.child("1b", "models", [])
    report._end = 0.0
    report.child("3b", "models", [])
    assert report.lines() == ["LEFT OUT 3b: no time was left", "FAILED 1b: no end after 90 s"]


LIMITS = {"gpu": "H100", "limits": {"read": 3e12, "copy": 3e12, "bf16": 7e14}}


class Bench:
    """In the place of `measured_row.py`: rows that fail are in `bad`."""

    def __init__(self) -> None:
        self.bad: set[str] = set()
        self.asked: list[list[str]] = []

    def __call__(self, command: list[str], seconds: float, **given: Any) -> Ended:
        what, *rest = command[2:]
        self.asked.append([what, *rest[:1]])
        if " ".join([what, *rest[:1]]) in self.bad:
            return Ended(1, "Traceback", 2.0)
        found = {"limits": LIMITS, "row": {"seconds": 1e-3, "bytes": 1_500_000_000}, "peer": {"peer_seconds": 2e-3}}
        return Ended(0, f"noise\n{json.dumps(found[what])}\n", 2.0)


def test_a_row_that_fails_is_said_and_measured_again(tmp_path: Path) -> None:
    out, page, bench = tmp_path / "result.json", tmp_path / "gpu.md", Bench()
    bench.bad = {"row 1", "peer 9"}

    def measured() -> dict[tuple[str, int], Any]:
        bench.asked.clear()
        measurement = measure_gpu.Measurement(out, page, 9.0, bench)
        measurement.start()
        for number in (0, 1, 9):
            measurement.row(number, Path("x"))
        for number in (0, 1, 9):
            measurement.peer(number, Path("x"))
        assert json.loads(out.read_text()) == measurement.found
        return {(row["case"], row["context"]): row for row in measurement.found["rows"]}

    found = measured()
    assert found["1b-fp8", 128]["failed"] == "exit status 1" and "| 1b-fp8 | " in page.read_text()
    assert "failed: exit status 1" in page.read_text()
    assert found["1b-bf16", 128]["floor"] == 5e-4 and found["1b-bf16", 128]["peer_seconds"] == 2e-3
    assert found["1b-bf16", 32_768]["peer_failed"] == "exit status 1"
    bench.bad = set()
    again = measured()
    assert bench.asked == [["limits"], ["row", "1"], ["peer", "9"]], "only what had failed"
    assert "failed" not in again["1b-fp8", 128] and len(again) == 3
    bench.bad = {"limits"}
    with pytest.raises(SystemExit, match="cannot be measured: exit status 1"):
        measured()
    assert ROWS[9].case == "1b-bf16"


def test_tuning_goes_on_after_a_case_that_ends_its_process(tmp_path: Path) -> None:
    table, asked = tmp_path / "sm_90.json", []

    def run(command: list[str], seconds: float, **given: Any) -> Ended:
        asked.append(command)
        noted = tune.Noted(table)
        if len(asked) == 1:
            noted.doing.write_text("bad case")
            return Ended(None, "", seconds)
        table.write_text(json.dumps({"rows": [{}]}))
        return Ended(tune.MORE if len(asked) == 2 else 0, "", 1.0)

    assert tune.supervise(tmp_path / "tune-sm_90.zip", table, 9.0, False, run) == 1
    assert len(asked) == 3 and tune.Noted(table).failures == {"bad case": "the process ended: no end after 105 s"}
    assert not tune.Noted(table).doing.exists()
    with pytest.raises(SystemExit, match="nothing can be measured"):
        tune.supervise(tmp_path / "x.zip", table, 9.0, False, lambda *given: Ended(1, "", 1.0))


def test_made_weights_repeat_their_pattern() -> None:
    rng = np.random.default_rng(1)
    for size, place, length in ((7, 3, 100), (7, 7, 7), (100, 250, 30), (3, 0, 0), (64, 63, 1), (5, 12, 5)):
        pattern = rng.integers(0, 256, size).astype(np.uint8)
        out = np.zeros(length, np.uint8)
        repeat(out, pattern, place)
        np.testing.assert_array_equal(out, pattern[np.arange(place, place + length) % size])


def test_code_that_the_driver_refuses_is_listed(cuda: Stub, tmp_path: Path) -> None:
    import zipfile

    from load_code import refused_kernels
    from planned_models import Tiny, planned
    from planned_runs import declared

    from llamac.artifact.launch_plan_file import write_plan
    from llamac.runtime.gpu.found import find_gpu

    cuda.be("sm_90")
    plan, code = declared(planned(Tiny("bf16").config(), "sm_90").plan)
    path = tmp_path / "tiny-h100.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plan.json", write_plan(plan))
        for name, data in code.items():
            archive.writestr(name, data)
    driver, _ = find_gpu("cuda")
    driver.open(0)
    assert refused_kernels(driver, path) == []
    cuda.fail("cuModuleLoadData", 209, 2)
    (found,) = refused_kernels(driver, path)
    assert found == f"{plan.kernels[1].member}: cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU"
    driver.close()


def test_what_is_asked_of_a_whole_model(
    cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, toy_logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy passes; a prompt whose logits are others, and a token that is not the best, are named."""
    texts = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [5]]
    monkeypatch.setattr(whole_model, "prompts", lambda vocab: texts)
    monkeypatch.setattr(whole_model, "TOGETHER", (1, 3, 4))
    cuda.be("sm_90")
    ToyGpu(cuda)
    with load(toy_gpu_artifacts.make("sm_90"), device="cuda", sequences=4) as model:
        case: Any = SimpleNamespace(session=model.session, device=model._device)
        found = whole_model.steps(case)
        assert len(found) == 3 + 8 and whole_model.unequal(found, whole_model.steps(case)) == []
        for draws in (None, lambda step: [(SamplerOptions(), 0)]):
            assert whole_model.ahead(case, draws) == []
        monkeypatch.setattr(model.session, "step", lambda feeds: toy_logits([100]))
        assert whole_model.ahead(case, None)[0].startswith("greedy token 0: ")
    about = {"case": "toy", "kv": "bf16", "quantize": "keep"}
    right = [toy_logits(ids)[-1] for ids in texts]
    assert whole_model.wrong(about, found, right) == []
    names = [line.partition(":")[0] for line in whole_model.wrong(about, found, [right[0], right[0], right[2]])]
    assert names == ["prompt 1", "row 1 of 3, prompt 1", "row 1 of 4, prompt 1"]
    assert len(whole_model.unequal(found, found | {"prompt 0": right[0] + 1})) == 1

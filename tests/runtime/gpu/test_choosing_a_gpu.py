"""Which device runs an artifact, what is said of it, and one coded error for each way in which none can."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub, build
from toy_gpu import ToyGpu, ToyGpuArtifacts

from llamac.artifact.launch_plan import LaunchPlan
from llamac.errors import LlamacError
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.gpu import cuda_driver, found, hip_driver
from llamac.runtime.loader import load
from llamac.runtime.model import Model

IDS = [1, 2, 3, 4, 5]


def _said(path: Path, **options: Any) -> tuple[Model, list[str]]:
    lines: list[str] = []
    return load(path, say=lines.append, **options), lines


def test_auto_takes_the_gpu_and_says_so(
    gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(toy_gpu_artifacts.make(gpu.architecture, cpu=True)) as model:
        assert isinstance(model._device, GpuDevice) and model.target.name == f"toy-{gpu.architecture}"
        model.logits(IDS)
    said = capsys.readouterr().err
    assert said.startswith(f"llamac: running on Stub {gpu.architecture} ({gpu.architecture}, ")
    assert said.endswith("driver)\n") and said.count("\n") == 1


def test_auto_without_a_gpu_takes_the_cpu_and_says_why(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    model, said = _said(toy_gpu_artifacts.make("sm_90", cpu=True))
    with model:
        assert isinstance(model._device, CpuDevice)
        model.logits(IDS)
    assert said == ["running on the CPU; cuda:0: there is no NVIDIA GPU number 0 here, the driver finds none"]


def test_auto_on_a_gpu_that_the_artifact_has_no_code_for(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_80")
    model, said = _said(toy_gpu_artifacts.make("sm_90", cpu=True))
    with model:
        assert isinstance(model._device, CpuDevice)
    assert len(said) == 1 and "runs none of the artifact's code: it has toy-sm_90 (sm_90); host (" in said[0]


def test_auto_with_code_for_both_vendors(cuda: Stub, hip: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    hip.be("gfx942")
    path = toy_gpu_artifacts.make("sm_90", "gfx942", cpu=True)
    model, said = _said(path)
    with model:
        assert model.target.name == "toy-gfx942"
    assert said == ["running on Stub gfx942 (gfx942, HIP 7.0 driver)"]


def test_an_artifact_for_cpus_touches_no_gpu_driver(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "load_driver", None)
    model, said = _said(toy_artifact)
    model.close()
    assert said == []


def test_the_cpu_when_it_is_asked_for(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_90")
    for options in ({"device": "cpu"}, {"target": "host"}):
        model, said = _said(toy_gpu_artifacts.make("sm_90", cpu=True), **options)
        with model:
            assert isinstance(model._device, CpuDevice)
        assert said == [] and cuda.log() == []


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cpu:0", "cuda:-1", "auto:2", "", "CUDA"])
def test_unknown_devices(device: str, toy_artifact: Path) -> None:
    with pytest.raises(LlamacError, match="LLC0811 device"):
        load(toy_artifact, device=device)


def test_a_gpu_by_its_number(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_90")
    with pytest.raises(LlamacError, match=r"LLC0862 cuda:1: there is no NVIDIA GPU number 1 here, .* only 1"):
        load(toy_gpu_artifacts.make("sm_90"), device="cuda:1")
    cuda.set("devices", 2)
    load(toy_gpu_artifacts.make("sm_90"), device="cuda:1").close()


def test_a_target_by_its_name(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_90")
    path = toy_gpu_artifacts.make("sm_90", "sm_80")
    with pytest.raises(LlamacError, match="LLC0863"):
        load(path, device="cuda", target="toy-sm_80")
    with pytest.raises(LlamacError, match=r"LLC0801.*no cuda target 'toy-sm90' \(did you mean 'toy-sm_90'\?\)"):
        load(path, device="cuda", target="toy-sm90")
    with pytest.raises(LlamacError, match="LLC0801"):
        load(path, target="nothing")


# No usable GPU


def test_no_gpu_and_nothing_else(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    with pytest.raises(LlamacError, match="LLC0862 cuda:0"):
        load(toy_gpu_artifacts.make("sm_90"))


def test_no_code_for_the_gpu_names_what_there_is(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_100")
    with pytest.raises(LlamacError) as caught:
        load(toy_gpu_artifacts.make("sm_90", "gfx942"), device="cuda")
    assert caught.value.message() == (
        "LLC0863 sm_100: Stub sm_100 (sm_100, CUDA 13.4 driver) runs none of the artifact's code: it has "
        "toy-sm_90 (sm_90); toy-gfx942 (gfx942). Next: compile the model for sm_100, or run on the CPU"
    )


def test_more_shared_memory_than_the_gpu_has(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    def greedy(plan: LaunchPlan) -> LaunchPlan:
        kernels = tuple(dataclasses.replace(kernel, shared_bytes=100 << 10) for kernel in plan.kernels)
        return dataclasses.replace(plan, kernels=kernels)

    path = toy_gpu_artifacts.make("sm_90", fallback=True, change=greedy)
    cuda.be("sm_89")
    with pytest.raises(LlamacError, match="LLC0863"):
        load(path, device="cuda")
    cuda.be("sm_80")
    load(path, device="cuda").close()


@pytest.mark.parametrize(("driver", "text"), [(12080, "supports CUDA 12.8.*cubin for sm_90 needs 13.0")])
def test_a_driver_older_than_machine_code_needs(
    cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, driver: int, text: str
) -> None:
    cuda.be("sm_90", driver=driver)
    with pytest.raises(LlamacError, match=f"LLC0865.*{text}"):
        load(toy_gpu_artifacts.make("sm_90", fallback=True), device="cuda")
    cuda.be("sm_90", driver=13000)
    load(toy_gpu_artifacts.make("sm_90"), device="cuda").close()


def test_a_driver_older_than_the_ptx(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    cuda.be("sm_89", driver=13030)
    with pytest.raises(LlamacError, match=r"LLC0865.*ptx for sm_80 needs 13\.4"):
        load(toy_gpu_artifacts.make("sm_90", fallback=True), device="cuda")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_100"])
def test_ptx_runs_where_there_is_no_machine_code(
    cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, architecture: str, toy_logits: Callable[[list[int]], Any]
) -> None:
    cuda.be(architecture)
    toy = ToyGpu(cuda)
    with load(toy_gpu_artifacts.make("sm_90", fallback=True), device="cuda") as model:
        np.testing.assert_array_equal(model.logits(IDS), toy_logits(IDS))
    assert toy.failure is None


def test_too_little_memory_is_told_before_it_starts(gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    gpu.be(gpu.architecture, memory=1 << 30, free=200 << 20)
    gpu.clear()
    with pytest.raises(LlamacError) as caught:
        load(toy_gpu_artifacts.make(gpu.architecture, cpu=True))
    message = caught.value.message()
    assert message.startswith(
        "LLC0866 GPU memory: the model needs weights 0.00 GB + scratch 0.00 GB + KV cache 0.00 GB"
    )
    assert (
        "the driver's own 0.27 GB = 0.27 GB" in message and "has 0.21 GB free of 1.07 GB: 0.06 GB too little" in message
    )
    assert not gpu.log("allocate") and not gpu.log("pin")


def test_a_smaller_context_is_the_way_out_where_the_cache_is_too_large(
    cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts
) -> None:
    cuda.be("sm_90", memory=1 << 30)
    path = toy_gpu_artifacts.make("sm_90", edit=lambda manifest: manifest["model"].update(context_length=1 << 26))
    with pytest.raises(LlamacError) as caught:
        load(path, device="cuda")
    assert caught.value.code == "LLC0866"
    most = int(caught.value.hint.split("at most ")[1].split()[0])
    load(path, device="cuda", context=most).close()


def _other_pages(plan: LaunchPlan) -> LaunchPlan:
    buffers = (dataclasses.replace(b, page_bytes=128) if b.role == "cache" else b for b in plan.buffers)
    return dataclasses.replace(plan, buffers=tuple(buffers))


def _other_input(plan: LaunchPlan) -> LaunchPlan:
    buffers = (dataclasses.replace(b, name="dice") if b.name == "attention_tiles" else b for b in plan.buffers)
    return dataclasses.replace(plan, buffers=tuple(buffers), buckets=plan.buckets[:2])


def _scratch(plan: LaunchPlan) -> LaunchPlan:
    kernels = (dataclasses.replace(kernel, global_scratch_bytes=16) for kernel in plan.kernels)
    return dataclasses.replace(plan, kernels=tuple(kernels))


def _more_weights(plan: LaunchPlan) -> LaunchPlan:
    buffers = (dataclasses.replace(b, bytes=8192) if b.role == "weights" else b for b in plan.buffers)
    return dataclasses.replace(plan, buffers=tuple(buffers))


@pytest.mark.parametrize(
    ("change", "text", "steps"),
    [
        (_other_pages, r"pages of \[128\] bytes, the manifest's \[64\]", 8),
        (lambda plan: plan, "steps take 8 tokens, the manifest says 9", 9),
        (_other_input, "wants the input 'dice'", 4),
        (_scratch, "needs scratch memory", 8),
        (_more_weights, "reads 8192 bytes of weights from 'weights/gpu.bin', which has 4096", 8),
    ],
)
def test_a_plan_that_does_not_fit_its_artifact(
    gpu: Stub, toy_gpu_artifacts: ToyGpuArtifacts, change: Any, text: str, steps: int
) -> None:
    path = toy_gpu_artifacts.make(
        gpu.architecture, change=change, edit=lambda manifest: manifest["memory"].update(max_step_tokens=steps)
    )
    with pytest.raises(LlamacError, match=f"LLC0802.*{text}"):
        load(path, device=gpu.vendor)


# What is not installed


def test_cuda_bindings_missing(toy_gpu_artifacts: ToyGpuArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(LlamacError, match=r'LLC0861 cuda: cuda-bindings, .*Next: pip install "llamac\[cuda\]"'):
        load(toy_gpu_artifacts.make("sm_90"), device="cuda")


def test_no_libcuda(toy_gpu_artifacts: ToyGpuArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibrary:
        def cuInit(self, flags: int) -> None:
            raise RuntimeError("libcuda.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(cuda_driver, "_bindings", NoLibrary)
    with pytest.raises(
        LlamacError, match=r"LLC0860 cuda: the driver library libcuda\.so\.1 cannot be loaded.*object file"
    ):
        load(toy_gpu_artifacts.make("sm_90"), device="cuda")


def test_no_libamdhip64(toy_gpu_artifacts: ToyGpuArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hip_driver, "LIBRARY_NAMES", ("libamdhip64-that-is-not-there.so",))
    with pytest.raises(LlamacError, match="LLC0860 hip: the driver library libamdhip64 cannot be loaded"):
        load(toy_gpu_artifacts.make("gfx942"), device="hip")


def test_a_library_older_than_rocm_6(hip: Stub, toy_gpu_artifacts: ToyGpuArtifacts, monkeypatch: Any) -> None:
    monkeypatch.setitem(hip_driver._SIGNATURES, "hipSomethingNew", ())
    with pytest.raises(LlamacError, match="LLC0860 hip: libamdhip64 has no function hipSomethingNew"):
        load(toy_gpu_artifacts.make("gfx942"), device="hip")


def test_running_on_a_gpu_imports_neither_torch_nor_triton(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts) -> None:
    program = (
        "import ctypes, sys\n"
        f"stub = ctypes.CDLL({str(build('cuda'))!r}, mode=ctypes.RTLD_GLOBAL)\n"
        "size = ctypes.c_uint64\n"
        "gpu = dict(devices=1, driver=13040, major=9, total=1 << 34, free=1 << 34, shared=1 << 17)\n"
        "for key, value in gpu.items():\n"
        "    stub.stub_set(key.encode(), size(value))\n"
        "import llamac\n"
        f"with llamac.load({str(toy_gpu_artifacts.make('sm_90'))!r}, device='cuda') as model: model.logits([1, 2])\n"
        "unneeded = ('torch', 'triton', 'ziglang', 'click', 'llamac.backends', 'llamac.ir', 'llamac.driver')\n"
        "print([name for name in unneeded if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What the command line shows


def test_the_command_line(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, capsys: pytest.CaptureFixture[str]) -> None:
    from llamac.cli.main import main

    cuda.be("sm_90")
    toy = ToyGpu(cuda)
    path = str(toy_gpu_artifacts.make("sm_90", cpu=True))
    texts = []
    for words in (["--device", "cuda"], ["--device", "cpu"], []):
        assert main(["run", path, "--prompt", "ab", "--max-new-tokens", "5", "--quiet", *words]) == 0
        captured = capsys.readouterr()
        texts.append(captured.out)
        assert ("running on Stub sm_90" in captured.err) == (not words)
    assert len(set(texts)) == 1 and toy.failure is None
    assert main(["verify", path, "--device", "cuda", "--json"]) == 0
    capsys.readouterr()
    assert main(["targets"]) == 0
    assert "this machine: Stub sm_90 (sm_90, CUDA 13.4 driver), 85.9 GB, --device cuda:0" in capsys.readouterr().out
    assert main(["run", path, "--prompt", "ab", "--device", "tpu"]) == 2
    assert "LLC0811 device: 'tpu' is no device" in capsys.readouterr().err


def test_the_bench_verb(cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from llamac.cli.main import main

    cuda.be("sm_90")
    toy = ToyGpu(cuda)
    words = ["--prompt-tokens", "6", "--new-tokens", "4", "--repeats", "1", "--device", "cuda", "--json"]
    assert main(["bench", str(toy_gpu_artifacts.make("sm_90")), *words]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "toy-sm_90" and toy.failure is None


def test_experts_on_a_gpu_are_not_counted(
    cuda: Stub, toy_gpu_artifacts: ToyGpuArtifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamac.cli.main import main

    def routed(plan: LaunchPlan) -> LaunchPlan:
        kernels = (dataclasses.replace(kernel, source="moe.route") for kernel in plan.kernels)
        return dataclasses.replace(plan, kernels=tuple(kernels))

    cuda.be("sm_90")
    ToyGpu(cuda)
    path = toy_gpu_artifacts.make("sm_90", change=routed)
    with load(path, device="cuda") as model, pytest.raises(LlamacError, match=r"LLC0867.*experts"):
        model.expert_counts()
    words = ["--prompt-tokens", "6", "--new-tokens", "4", "--repeats", "1", "--device", "cuda", "--json"]
    assert main(["bench", str(path), *words]) == 0
    assert '"tokens_per_expert": null' in capsys.readouterr().out

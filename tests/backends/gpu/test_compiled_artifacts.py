"""`llamac compile --target a100`: what is in the file, that it is the same every time, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_simulator import PlanSimulator, Rows
from planned_models import Tiny, relative_error

import llamac
from llamac.artifact.launch_plan_file import read_plan
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.cli.main import main
from llamac.divergence import INTERPRETER, diverge
from llamac.driver import STRICT_KINDS
from llamac.errors import LlamacError
from llamac.gpu_side import left_out
from llamac.models.checkpoint import Checkpoint
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import open_source
from llamac.runtime.session import Feed

STEPS = 2
"""Most tokens of a step: the fewest kernels, of each kind one."""


def compile_tiny(path: Path, *targets: str, **options: Any) -> dict[str, Any]:
    """The manifest of a tiny model in bf16."""
    checkpoint = random_checkpoint(Tiny("bf16").config(), 3)
    return llamac.compile(
        checkpoint, target=list(targets), output=path, max_step_tokens=STEPS, validate=False, **options
    ).manifest


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with code for this CPU and for an A100, whose own code and fallback are of one architecture."""
    path = tmp_path_factory.mktemp("mixed") / "m.llamac"
    compile_tiny(path, "cpu", "a100")
    return path


def test_what_is_in_the_file(mixed: Path) -> None:
    """Two targets, two layouts of weights, a plan and its fallback, and every kernel that they name."""
    assert not verify_file(mixed)
    with Artifact.open(mixed) as artifact:
        manifest = artifact.manifest
        cpu, gpu = manifest["targets"]
        assert cpu["kind"] == "cpu" and {**gpu} == {
            "name": "a100", "kind": "cuda", "triple": "cuda-sm_80", "requires": ["sm_80"], "code": "gpu/a100.json",
            "fallback": "gpu/a100-ptx.json", "source": None, "layout": "gpu-rows16", "truth": "compiled",
        }  # fmt: skip
        assert [row["layout"] for row in manifest["weights"]] == ["cpu-panel16", "gpu-rows16"]
        for name, code, start in ((gpu["code"], "cubin", b"\x7fELF"), (gpu["fallback"], "ptx", b"//")):
            plan = read_plan(artifact.member_bytes(name), name)
            assert (plan.code, plan.architecture) == (code, "sm_80")
            assert plan.buffer("weights").bytes == manifest["weights"][1]["bytes"]
            for kernel in plan.kernels:
                data = artifact.member_bytes(kernel.member)
                assert data.lstrip().startswith(start) and kernel.name.encode() in data
        assert b".version 8.0" in data and b".target sm_80" in data
        assert manifest["gpu"]["memory"]["weight_bytes"] == manifest["weights"][1]["bytes"]


def test_the_cpu_and_the_gpu_plan_of_one_file_agree(mixed: Path) -> None:
    """Prefill, then a token, through both; the CPU computes in f32, and so loosely do 16-bit activations agree."""
    with llamac.load(mixed) as model, PlanSimulator.of_artifact(mixed, "a100") as simulator:
        sequence = model.session.open()
        wanted = [model.session.step([Feed(sequence, ids, "all")]) for ids in ([4, 30], [7])]
        sequence.close()
        found = [simulator.step(Rows().add(0, 0, [4, 30])), simulator.step(Rows().add(0, 2, [7]))]
    assert relative_error(np.concatenate(found), np.concatenate(wanted)) < 0.03


def test_the_same_bytes_again(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled once more, with nothing kept from the first time."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compile_tiny(tmp_path / "m.llamac", "cpu", "a100")
    assert (tmp_path / "m.llamac").read_bytes() == mixed.read_bytes()


@pytest.mark.slow
def test_both_makers_in_one_file(tmp_path: Path) -> None:
    """Weights are there once, whoever made the GPU; AMD has no code that other GPUs can run."""
    manifest = compile_tiny(tmp_path / "m.llamac", "h100", "mi300x", quantize="fp8")
    assert [(t["name"], t["fallback"]) for t in manifest["targets"]] == [
        ("h100", "gpu/h100-ptx.json"),
        ("mi300x", None),
    ]
    assert len(manifest["weights"]) == 1 and not verify_file(tmp_path / "m.llamac")
    with pytest.raises(LlamacError, match="LLC0801"):
        diverge(tmp_path / "m.llamac", INTERPRETER, ids=[1, 2])
    assert {name.split("/")[1] for name in manifest["members"] if name.startswith("gpu/") and name.count("/") == 2} == {
        "sm_80",
        "sm_90",
        "gfx942",
    }


def refused(tmp_path: Path, source: str | Checkpoint, target: str, **options: Any) -> LlamacError:
    """The error of a compilation, which leaves no file behind."""
    with pytest.raises(LlamacError) as found:
        llamac.compile(source, target=target, output=tmp_path / "m.llamac", random_weights=0, **options)
    assert not list(tmp_path.iterdir())
    return found.value


def test_fp8_on_a_gpu_without_it(tmp_path: Path) -> None:
    error = refused(tmp_path, "tiny-llama3", "a100", quantize="fp8")
    assert error.code == "LLC0611" and "sm_90" in error.reason and "int8" in str(error)


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    """With the arithmetic, before anything is read or compiled."""
    few = replace(open_source("llama-3.1-405b", random_weights=0).config, layers=3)
    error = refused(tmp_path, random_checkpoint(few, 0), "rtx4090")
    assert error.code == "LLC0612" and "weights 27." in error.reason and "rtx4090 has 25.76 GB" in error.reason


def test_pictures(tmp_path: Path) -> None:
    """Several GPUs share no attention to vision tokens and no image encoder: refused, or left out and said to be."""
    assert refused(tmp_path, "llama-3.2-11b-vision", "h200:2").code == "LLC0605"
    (entry,) = left_out(open_source("llama-4-scout", random_weights=0).config)
    assert (entry.kind, entry.where) == ("absent", "pictures") and entry.kind in STRICT_KINDS


def test_a_cache_of_integers(tmp_path: Path) -> None:
    assert refused(tmp_path, "tiny", "h100", kv="int8").code == "LLC0611"


def test_without_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    error = refused(tmp_path, "tiny", "h100")
    assert error.code == "LLC0607" and "llamac[gpu]" in str(error)


def test_passes_of_a_gpu_paste_back(capsys: pytest.CaptureFixture[str]) -> None:
    """What `llamac passes` prints is a pipeline that `llamac opt` takes."""
    from llamac.transform.pipeline import parse_pipeline, pipeline_text

    assert main(["passes", "--pipeline", "h100", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["pipeline"]
    assert "pack-rows" in text and pipeline_text(parse_pipeline(text)) == text

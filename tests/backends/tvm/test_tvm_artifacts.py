"""Artifacts with TVM's code: reproducible, listed, refused with a code where they cannot run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamac
from llamac.artifact.read import Artifact
from llamac.artifact.tvm_plan import read_tvm_plan
from llamac.backends.tvm.rules.table import RULES
from llamac.cli.main import main
from llamac.errors import LlamacError

DEVICES = "tvm:metal,tvm:webgpu,tvm:opencl,tvm:cuda"
SCRIPT = """
import sys, llamac
options = {"tokenizer": False, "validate": False, "max_step_tokens": 64, "quantize": "int4"}
llamac.compile(sys.argv[1], target=["tvm:llvm", "tvm:webgpu"], output=sys.argv[2], **options)
"""


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tiny_source: Path, artifact_of: Any, tmp_path: Path) -> None:
    """In another process, with another seed of hashes."""
    other = tmp_path / "other.llamac"
    command = [sys.executable, "-c", SCRIPT, str(tiny_source), str(other)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert artifact_of("tvm:llvm,tvm:webgpu", quantize="int4").read_bytes() == other.read_bytes()


def test_inspect_and_verify(artifact_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(artifact_of("tvm:llvm", quantize="f32"))
    assert main(["inspect", path]) == 0
    assert "tvm:llvm" in (shown := capsys.readouterr().out) and "compiled" in shown
    assert main(["verify", path]) == 0


@pytest.mark.parametrize("device", DEVICES.split(","))
def test_sources_of_every_kernel(device: str, artifact_of: Any) -> None:
    """TVM writes every kernel of a quantized model for every device; nothing is in the ledger about them."""
    path = artifact_of(DEVICES, quantize="int4")
    with Artifact.open(path) as opened:
        (target,) = [t for t in opened.manifest["targets"] if t["name"] == device]
        plan = read_tvm_plan(opened.member_bytes(target["code"]), target["code"])
        source = opened.member_bytes(target["source"]).decode()
        assert target["truth"] == "generated"
        assert not [e for e in opened.manifest["ledger"] if e["where"] == device]
    assert any(name.startswith("linear_grouped") for name in plan.kernels)
    assert all(f"// {name}\n" in source for name in plan.kernels)
    assert {"tvm:metal": "kernel void", "tvm:webgpu": "@compute", "tvm:opencl": "__kernel", "tvm:cuda": "__global__"}[
        device
    ] in source


def test_a_kernel_without_source_is_in_the_ledger(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WebGPU has no integers of 64 bits: a rule that keeps one has no source there, and the others have."""
    select = RULES["select_rows"]

    def wide(k: Any) -> None:
        select(k)
        with k.code.once():
            k.code.filled(1, 0, "int64")

    monkeypatch.setitem(RULES, "select_rows", wide)
    out = tmp_path / "model.llamac"
    llamac.compile(tiny_source, target="tvm:webgpu", output=out, tokenizer=False, validate=False, quantize="f32")
    with Artifact.open(out) as opened:
        (entry,) = [e for e in opened.manifest["ledger"] if e["where"] == "tvm:webgpu"]
        plan = read_tvm_plan(opened.member_bytes("tvm/webgpu.json"), "plan")
    assert "select_rows" in entry["what"] and "TVM refused" in entry["reason"]
    assert plan.kernels and not any(name.startswith("select_rows") for name in plan.kernels)
    golden = tmp_path / "golden.json"
    vector = {"prompt_ids": [1], "greedy_ids": [1], "top": [[1, 0.5]]}
    golden.write_text(json.dumps({"oracle": "none", "vectors": [vector]}))
    options = {"tokenizer": False, "validate": False, "quantize": "f32", "golden": golden, "strict": True}
    with pytest.raises(LlamacError) as caught:
        llamac.compile(tiny_source, target="tvm:webgpu", output=tmp_path / "strict.llamac", **options)
    assert caught.value.code == "LLC0105" and "has no source" in caught.value.reason
    assert not (tmp_path / "strict.llamac").exists()


def test_running_source_says_what_to_do(artifact_of: Any) -> None:
    with pytest.raises(LlamacError) as caught:
        llamac.load(artifact_of(DEVICES, quantize="int4"))
    assert caught.value.code == "LLC0943" and "tvm:llvm" in caught.value.message()


def test_an_op_without_a_rule_is_named(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "attend")
    with pytest.raises(LlamacError) as caught:
        llamac.compile(tiny_source, target="tvm:llvm", output=tmp_path / "m.llamac", tokenizer=False, validate=False)
    assert caught.value.code == "LLC0942" and "attend" in caught.value.reason and "layers.0" in caught.value.where
    assert not (tmp_path / "m.llamac").exists()


@pytest.mark.parametrize(("package", "version", "code"), [
    ("apache-tvm", None, "LLC0940"), ("apache-tvm-ffi", None, "LLC0940"), ("apache-tvm-ffi", "0.1.15", "LLC0941"),
])  # fmt: skip
def test_tvm_that_is_not_there(
    package: str, version: str | None, code: str, tiny_source: Path, artifact_of: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Known before any work, by the compiler and by the runtime."""
    artifact = artifact_of("tvm:llvm", quantize="f32")
    real = importlib.metadata.version

    def stated(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", stated)
    for act in (
        lambda: llamac.compile(tiny_source, target="tvm:llvm", output=tmp_path / "m.llamac", tokenizer=False),
        lambda: llamac.load(artifact),
    ):
        with pytest.raises(LlamacError) as caught:
            act()
        assert caught.value.code == code and caught.value.where == package


def test_a_file_without_such_code(artifact_of: Any) -> None:
    with pytest.raises(LlamacError) as caught:
        llamac.load(artifact_of("x86-64-v3", quantize="f32"), device="tvm")
    assert caught.value.code == "LLC0801"


def test_plans_are_not_trusted(artifact_of: Any) -> None:
    with Artifact.open(artifact_of("tvm:llvm", quantize="f32")) as opened:
        data = opened.member_bytes("tvm/llvm.json")
    good = json.loads(data)
    changes: list[tuple[str, Any]] = [
        ("format", "other"), ("version", 2), ("weights", [["a", "float64", [1]]]), ("weights", [["a", "int8", [-1]]]),
        ("weights", 3), ("past", [[0, 0, 0, 1, 0, "float32"]]), ("past", [[0]]), ("inputs", [1]), ("kernels", None),
    ]  # fmt: skip
    for key, value in changes:
        with pytest.raises(LlamacError) as caught:
            read_tvm_plan(json.dumps({**good, key: value}).encode(), "plan")
        assert caught.value.code == "LLC0711", key
    for broken in (b"", b"[]", data[: len(data) // 2], b"\xff"):
        with pytest.raises(LlamacError):
            read_tvm_plan(broken, "plan")

"""Triton as a compiler: pinned, imported late, deterministic, and failing with coded errors."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_kernels import MODELS, decode_kernels, named

from llamac.backends.gpu import toolchain
from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.compile import compile_kernel, compile_request
from llamac.errors import LlamacError

ELSEWHERE = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from model_kernels import MODELS, decode_kernels, named
from llamac.backends.gpu.compile import compile_request
for target in ("sm_90", "gfx942"):
    kernel = compile_request(list(decode_kernels(named(target), MODELS["smollm2-135m"], "bf16", 1))[1], target)
    print(hashlib.sha256(kernel.code + kernel.assembly.encode()).hexdigest())
"""


def refused(code: str, *words: str) -> pytest.RaisesExc[LlamacError]:
    """Expect an error with this code that says all of these words."""
    return pytest.RaisesExc(LlamacError, check=lambda e: e.code == code and all(word in str(e) for word in words))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with refused("LLC0607", "llamac[gpu]"):
        toolchain.load_kernel("linear", "decode_linear")


def test_another_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.7.1")
    with refused("LLC0608", "3.7.1", toolchain.TRITON_VERSION):
        toolchain.require_triton()


def test_the_pin_is_that_of_the_extra() -> None:
    requirements = importlib.metadata.requires("llamac") or []
    pinned = [r for r in requirements if r.startswith("triton")]
    assert not pinned or pinned[0].startswith(f"triton=={toolchain.TRITON_VERSION}")


def test_unknown_kernels_and_instruction_sets() -> None:
    with refused("LLC0609", "no_such"):
        toolchain.load_kernel("linear", "no_such")
    with refused("LLC0609", "gfx942"):
        architecture("gfx941")
    assert architecture("sm_90a") is architecture("sm_90")


def test_parameters_that_do_not_fit() -> None:
    kernel = toolchain.load_kernel("head", "best_of_logits")
    with refused("LLC0609", "BLOCK"):
        compile_kernel(kernel, {"logits_ptr": "*fp32", "id_ptr": "*i32"}, {"N": 10}, "sm_80")


def test_what_a_target_cannot_do() -> None:
    """A100 has no 8-bit floats: a kernel that asks for them anyway is a coded error with Triton's reason."""
    kernel = toolchain.load_kernel("linear", "norm_rows")
    signature = {"x_ptr": "*fp32", "norm_ptr": "*fp32", "y_ptr": "*fp8e4nv", "scale_ptr": "*fp32"}
    constants = {"K": 64, "EPS": 1e-5, "LARGEST": 448.0, "BLOCK": 64, "PDL": False}
    with refused("LLC0610", "norm_rows for sm_80", "fp8e4nv"):
        compile_kernel(kernel, signature, constants, "sm_80")


def test_the_cache_is_kept_with_that_of_llamac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    request = next(decode_kernels(named("sm_90"), MODELS["smollm2-135m"], "bf16", 1))
    compile_request(request, "sm_90")
    assert list((tmp_path / "triton").rglob("*.cubin"))


def test_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    """Cold caches, another working folder, another hash seed."""
    expected = []
    for target in ("sm_90", "gfx942"):
        kernel = compile_request(list(decode_kernels(named(target), MODELS["smollm2-135m"], "bf16", 1))[1], target)
        expected.append(hashlib.sha256(kernel.code + kernel.assembly.encode()).hexdigest())
    environment = os.environ | {"LLAMAC_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", ELSEWHERE, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_requests_are_made_without_triton() -> None:
    """Which kernels a model needs, and where its weights lie, is known without the compiler."""
    program = (
        "import sys\n"
        "from llamac.backends.gpu import attention_requests, compile, expert_requests, launches, step_requests\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('triton', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

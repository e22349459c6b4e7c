"""Code cross-compiled for aarch64, run under qemu-user: the same tokens as on this machine, and the same bits.

Needs `qemu-aarch64` and an aarch64 C library: `apt-get install -y qemu-user-static libc6-arm64-cross`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from stepping import Floats, assert_same_bits
from tiny_llama import TinyShape, make_reference, save_checkpoint, some_ids

import llamac
from llamac.artifact.read import Artifact
from llamac.backends.cpu import abi
from llamac.backends.cpu.toolchain import compiler_environment, zig_command
from llamac.target import TARGETS

INSTALL = "apt-get install -y qemu-user-static libc6-arm64-cross"
SYSROOT = Path(os.environ.get("LLAMAC_AARCH64_SYSROOT", "/usr/aarch64-linux-gnu"))
SHAPE = TinyShape(group=3, head_dim=80, dtype="bf16", width=72, inner=100, vocab=131, layers=2)
PROMPT = some_ids(131, 20)
NEW_TOKENS = 12


def _emulator() -> str:
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        pytest.skip(f"qemu-aarch64 is not on PATH, so no aarch64 code is run: {INSTALL}")
    if not (SYSROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        pytest.skip(f"no aarch64 C library in {SYSROOT}, so no aarch64 code is run: {INSTALL}")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """step_driver.c as an aarch64 program."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "llamac_step.h").write_text(abi.header())
    shutil.copy(Path(__file__).with_name("step_driver.c"), folder)
    target = ["-target", TARGETS["aarch64"].triple]
    flags = ["-O1", "-fno-sanitize=all", "-o", "step_driver", "step_driver.c", "-ldl"]
    subprocess.run([*zig_command(), "cc", *target, *flags], cwd=folder, env=compiler_environment(), check=True)
    return folder / "step_driver"


def _emulated_logits(artifact: Path, driver: Path, threads: int, cpu: str = "max") -> Floats:
    """What the artifact's aarch64 code gives for PROMPT and its greedy continuation, [rows, vocab]."""
    emulator, folder = _emulator(), artifact.parent
    with Artifact.open(artifact) as opened:
        manifest = opened.manifest
        code = next(t["code"] for t in manifest["targets"] if t["name"] == "aarch64")
        (folder / "model.so").write_bytes(opened.member_bytes(code))
        (folder / "weights.bin").write_bytes(bytes(opened.map(manifest["weights"][0]["member"])))
    memory = manifest["memory"]
    numbers = [memory["caches"][0]["page_bytes"], memory["arena_bytes"], SHAPE.vocab, NEW_TOKENS, threads, *PROMPT]
    command = [emulator, "-cpu", cpu, "-L", str(SYSROOT), str(driver), "./model.so", "weights.bin", *map(str, numbers)]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr.decode()}"
    return np.frombuffer(done.stdout, np.float32).reshape(-1, SHAPE.vocab)


@pytest.mark.parametrize("scheme", ["f32", "keep", "int8", "int4:asym", pytest.param("fp8", marks=pytest.mark.slow)])
def test_tokens_and_bits(source: Path, driver: Path, tmp_path: Path, scheme: str) -> None:
    _emulator()
    path = tmp_path / "model.llamac"
    llamac.compile(source, target=["cpu", "aarch64"], output=path, quantize=scheme, tokenizer=False, validate=False)
    with llamac.load(path, threads=1, context=256) as model:
        greedy = model.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_stop_ids=True).token_ids
        expected = model.logits(PROMPT + greedy)
    found = _emulated_logits(path, driver, threads=2)
    assert found[len(PROMPT) - 1 : -1].argmax(axis=1).tolist() == greedy
    assert_same_bits(found, expected, f"aarch64 against this machine, {scheme}")


def test_cross_compiling_needs_no_emulator(source: Path, tmp_path: Path) -> None:
    """The code member is an ELF shared library for aarch64."""
    llamac.compile(source, target="aarch64", output=tmp_path / "m.llamac", tokenizer=False, validate=False)
    with Artifact.open(tmp_path / "m.llamac") as opened:
        header = opened.member_bytes("code/aarch64.so")[:20]
    assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183

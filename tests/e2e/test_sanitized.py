"""The generated code under watch: no byte outside its memory, nothing undefined, no value that was never written.

Four ways, on tiny models:

* clang's undefined-behaviour checks compiled in (they stop the process), every value of the arena, every weight and
  every input and output between inaccessible pages. Needs nothing but the compiler that llamac uses.
* an address sanitizer, which sees the stack too; needs a clang of version 16 or later on PATH.
* valgrind's memcheck, which sees values that were never written; needs valgrind on PATH.
* a thread sanitizer, which sees a barrier that is missing; needs the same clang.

A watched build gives the same bits as the shipped one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from exercises import exercise
from gguf import GGMLQuantizationType as Type
from spread_memory import Gaps, spread_memory
from tiny_gguf import SHAPE_256, write_tiny_gguf
from tiny_llama import TinyShape, make_reference, save_checkpoint
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_pictures import make_llama4, make_mllama

import llamac
from llamac.artifact.read import Artifact
from llamac.backends.cpu import abi
from llamac.backends.cpu.toolchain import BASE_FLAGS, compile_shared_library, compiler_environment, zig_command
from llamac.driver import resolve_targets

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SHAPE = TinyShape(group=3, head_dim=16, dtype="f32", width=72, inner=100, vocab=131, context=512)
WIDE_HEADS = TinyShape(group=3, head_dim=64, dtype="f32", width=96, inner=100, vocab=131, context=512)
"""Heads of several panels, which threads cut into pieces where the cache is one of floats."""
UNDEFINED = ("-fsanitize=undefined", "-fsanitize-trap=undefined")
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared-libsan", "-g1", "-O1")


def _llama(folder: Path) -> None:
    save_checkpoint(make_reference(SHAPE), SHAPE, folder)


def _wide_heads(folder: Path) -> None:
    save_checkpoint(make_reference(WIDE_HEADS), WIDE_HEADS, folder)


def _llama4(folder: Path) -> None:
    shape = Tiny4(step=1, top_k=2, chunk=256)
    save_model(make_model(shape), shape, folder)


def _gguf(kind: Type) -> Callable[[Path], None]:
    return lambda path: write_tiny_gguf(path, SHAPE_256, lambda name: kind) and None


SOURCES: dict[str, Callable[[Path], Any]] = {
    "llama": _llama,
    "llama wide heads": _wide_heads,
    "llama int8 cache": _wide_heads,
    "llama4": _llama4,
    "llama4 int8 cache": _llama4,
    "Q4_K.gguf": _gguf(Type.Q4_K),
    "Q6_K.gguf": _gguf(Type.Q6_K),
    "llama4 pictures": make_llama4,
    "mllama pictures": make_mllama,
}
CASES = [
    *(("llama", scheme) for scheme in ("f32", "f16", "bf16", "fp8", "int8", "int4", "int4:g128:asym")),
    *(("llama wide heads", scheme) for scheme in ("bf16", "int4")),
    *(("llama int8 cache", scheme) for scheme in ("bf16", "int4")),
    *(("llama4", scheme) for scheme in ("f32", "int4")),
    ("llama4 int8 cache", "int4"),
    *((kind, "keep") for kind in ("Q4_K.gguf", "Q6_K.gguf")),
    *((kind, scheme) for kind in ("llama4 pictures", "mllama pictures") for scheme in ("f32", "int4")),
]
PROMPT = list(range(3, 20))
TARGETS = [*dict.fromkeys([*(row.name for row in resolve_targets(["cpu"])), "x86-64-v3"])]


@dataclass
class Watched:
    """A model compiled with its memory spread out, and what its shipped code computes."""

    path: Path
    gaps: Gaps
    pictures: bool
    expected: dict[str, Any] = field(default_factory=dict)

    def source(self) -> str:
        with Artifact.open(self.path) as artifact:
            return artifact.member_bytes(artifact.manifest["targets"][0]["source"]).decode()

    def run(self, library: Path, target: str, folder: Path, **job: Any) -> subprocess.CompletedProcess[str]:
        """The child process of `guarded_run.py`."""
        words = {
            "artifact": str(self.path),
            "library": str(library),
            "target": target,
            "results": str(folder / "results.npz"),
            "arena_gaps": self.gaps.arena,
            "weight_gaps": self.gaps.weights,
            "threads": 3,
            "heap": False,
            "at_end": True,
        }
        environment = job.pop("environment", {})
        (folder / "job.json").write_text(json.dumps(words | job))
        command = [sys.executable, str(HERE / "guarded_run.py"), str(folder / "job.json")]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)

    def check(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        assert done.returncode == 0, f"the watched code ended with {done.returncode}:\n{done.stderr[-4000:]}"
        with np.load(folder / "results.npz") as found:
            assert sorted(found) == sorted(self.expected)
            for name, values in self.expected.items():
                assert found[name].tobytes() == values.tobytes(), f"other bits in {name!r}"


def _watched(kind: str, scheme: str, folder: Path) -> Watched:
    source = folder / kind.replace(" ", "-")
    SOURCES[kind](source)
    pictures = "pictures" in kind
    options = {"quantize": scheme, "max_step_tokens": 64, "context": 512, "validate": False, "tokenizer": pictures}
    options |= {"kv": "int8"} if "int8 cache" in kind else {}
    with spread_memory() as gaps:
        llamac.compile(source, target=TARGETS, output=folder / "m.llamac", **options)
    made = Watched(folder / "m.llamac", gaps, pictures)
    with llamac.load(made.path, threads=2, context=512, sequences=3, images=3) as model:
        made.expected = exercise(model, pictures)
    return made


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case).replace(" ", "-"))
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return _watched(*request.param, tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return _watched("llama", "int4", tmp_path_factory.mktemp("one"))


def _build(source: str, target: str, folder: Path) -> Path:
    """`source` with the checks for undefined behaviour. The usual flags switch them off, whatever comes after."""
    (row,) = resolve_targets([target])
    library = folder / f"{target}.so"
    usual = tuple(flag for flag in BASE_FLAGS if "sanitize" not in flag)
    with mock.patch("llamac.backends.cpu.toolchain.BASE_FLAGS", usual):
        compile_shared_library({"model.c": source}, triple=row.triple, cpu=row.cpu, out=library, extra_flags=UNDEFINED)
    return library


@pytest.mark.parametrize("target", TARGETS)
def test_no_wrong_access_and_no_undefined_behaviour(watched: Watched, target: str, tmp_path: Path) -> None:
    library = _build(watched.source(), target, tmp_path)
    for at_end in (True, False):
        watched.check(watched.run(library, target, tmp_path, at_end=at_end), tmp_path)


SEEDED = {
    "a row too wide": (r"(llamac_gather_rows\(th, .*), (\d+)\);", r"\1, \2 + 16);", -signal.SIGSEGV),
    "a weight too far": (r"s->weights \+ w\[5\]", "s->weights + w[5] + 4096", -signal.SIGSEGV),
    "an overflow": (
        r"(\nEXPORT int llamac_step\(.*\n{)", r"\1 volatile int32_t n = INT32_MAX; n = n + 1;", -signal.SIGILL
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", SEEDED)
def test_a_seeded_bug_ends_the_process(one: Watched, bug: str, tmp_path: Path) -> None:
    """What the test above relies on: one wrong access or one undefined operation is enough."""
    pattern, replacement, signal_number = SEEDED[bug]
    source, count = re.subn(pattern, replacement, one.source())
    assert count, f"there is no place for {bug}"
    done = one.run(_build(source, TARGETS[0], tmp_path), TARGETS[0], tmp_path)
    assert done.returncode == signal_number, done.stderr[-2000:]


@functools.cache
def _clang() -> str | None:
    """A clang that knows the vector types of the code and has its sanitizers with it."""
    for name in ("clang", *(f"clang-{version}" for version in range(30, 15, -1))):
        found = shutil.which(name)
        if found is None:
            continue
        said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)", said)
        if version and int(version[1]) >= 16 and Path(_sanitizer(found)).exists():
            return found
    return None


def _sanitizer(clang: str) -> str:
    words = [clang, "-print-file-name=libclang_rt.asan-x86_64.so"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def _compile_with_clang(source: str, folder: Path, *flags: str) -> None:
    """`source` as watched.so."""
    (folder / "model.c").write_text(source)
    base = [flag for flag in BASE_FLAGS if "sanitize" not in flag and flag not in ("-O3", "-Xclang")]
    libraries = "-shared -o watched.so -lpthread -lm".split()
    command = [str(_clang()), "-march=x86-64-v3", *base, *flags, "model.c", *libraries]
    subprocess.run(command, cwd=folder, check=True)


needs_clang = pytest.mark.skipif(_clang() is None, reason="no clang >= 16 with sanitizers (Debian: clang-19)")


@needs_clang
def test_the_address_sanitizer_finds_nothing(watched: Watched, tmp_path: Path) -> None:
    _compile_with_clang(watched.source(), tmp_path, *ADDRESS)
    preloaded = _sanitizer(str(_clang()))
    environment = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = watched.run(tmp_path / "watched.so", "x86-64-v3", tmp_path, heap=True, environment=environment)
    watched.check(done, tmp_path)


def _prepare_driver(scheme: str, folder: Path) -> tuple[Path, list[str]]:
    """A plain Llama for AVX2, its parts in `folder`; the artifact, and the words after the library's name."""
    _llama(folder / "llama")
    path = folder / "m.llamac"
    options = {"quantize": scheme, "max_step_tokens": 64, "context": 512, "validate": False, "tokenizer": False}
    result = llamac.compile(folder / "llama", target="x86-64-v3", output=path, **options)
    memory, (target,) = result.manifest["memory"], result.manifest["targets"]
    with Artifact.open(path) as artifact:
        (folder / "model.so").write_bytes(artifact.member_bytes(target["code"]))
        (folder / "plain.c").write_bytes(artifact.member_bytes(target["source"]))
        (folder / "weights.bin").write_bytes(artifact.member_bytes(result.manifest["weights"][0]["member"]))
    (folder / "llamac_step.h").write_text(abi.header())
    shutil.copy(HERE / "step_driver.c", folder)
    sizes = [memory["caches"][0]["page_bytes"], memory["arena_bytes"], SHAPE.vocab, 5, 3]
    return path, ["weights.bin", *map(str, sizes), *map(str, PROMPT)]


def _check_driver(done: subprocess.CompletedProcess[bytes], path: Path) -> None:
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    logits = np.frombuffer(done.stdout, np.float32).reshape(-1, SHAPE.vocab)
    with llamac.load(path, threads=1) as model:
        assert logits[: len(PROMPT)].tobytes() == model.logits(PROMPT).tobytes()


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not on PATH")
@pytest.mark.parametrize("scheme", ["f32", "int4", "int8", "fp8"])
def test_valgrind_finds_nothing(scheme: str, tmp_path: Path) -> None:
    """Memcheck follows every bit that was never written; it knows AVX2, not AVX-512."""
    path, words = _prepare_driver(scheme, tmp_path)
    command = [*zig_command(), *"cc -O1 -fno-sanitize=all -target x86_64-linux-gnu.2.28 step_driver.c -ldl".split()]
    subprocess.run([*command, "-o", "step_driver"], cwd=tmp_path, env=compiler_environment(), check=True)
    valgrind = ["valgrind", "--error-exitcode=9", "-q"]
    command = [*valgrind, "./step_driver", "./model.so", *words]
    _check_driver(subprocess.run(command, cwd=tmp_path, capture_output=True), path)


def _run_threads(source: str, words: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    _compile_with_clang(source, folder, "-fsanitize=thread", "-O1", "-g1")
    command = [str(_clang()), "-w", "-O1", "-fsanitize=thread", "step_driver.c", "-ldl", "-o", "step_driver"]
    subprocess.run(command, cwd=folder, check=True)
    # The sanitizer needs its own part of the address space, which a randomized one may lie in.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*fixed, "./step_driver", "./watched.so", *words], cwd=folder, capture_output=True)


@needs_clang
@pytest.mark.parametrize("scheme", ["f32", "int4"])
def test_no_two_threads_meet(scheme: str, tmp_path: Path) -> None:
    """Every value is behind a barrier from whoever writes it; without these barriers the sanitizer says so."""
    path, words = _prepare_driver(scheme, tmp_path)
    source = (tmp_path / "plain.c").read_text()
    _check_driver(_run_threads(source, words, tmp_path), path)
    start = source.index("void layer(")
    missing = source[:start] + source[start:].replace("  llamac_op_barrier(th, s->profile);\n", "")
    assert b"data race" in _run_threads(missing, words, tmp_path).stderr

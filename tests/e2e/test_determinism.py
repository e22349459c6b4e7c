"""Same input, same bits: whatever the chunks, the batch mates, the threads, the instruction set.

And same bytes of the artifact: whatever the folder, the compiler's cache, the memory bound, the process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import Floats, assert_same_bits, in_chunks, side_by_side
from tiny_llama import TinyShape, make_reference, save_checkpoint, some_ids

import llamac
from llamac.host import cpu_features, machine_architecture
from llamac.runtime.model import Model
from llamac.target import TARGETS

SHAPE = TinyShape(group=3, head_dim=16, dtype="f32", width=72, inner=100, vocab=131)
BF16_SHAPE = TinyShape(group=4, head_dim=64, dtype="bf16", tied=True, width=90, inner=150, vocab=257)
MAX_STEP = 640
IDS = some_ids(131, 600)
SCHEMES = ["f32", "keep", "f16", "bf16", "fp8", "int8", "int4", "int4:g128:asym"]
CHUNKS = [(1,), (2,), (3,), (16,), (31,), (255,), (256,), (257,), (512,), (1, 598, 1), (255, 1, 1), (256, 256, 1)]
"""Sizes of steps; the last one repeats. Pages of the cache end after 256 and 512 tokens."""

Load = Callable[..., Model]


@pytest.fixture(scope="module")
def sources(make_once: Callable[..., Path]) -> dict[str, Path]:
    """A checkpoint in f32, and one in bf16 for `keep`."""

    def writer(shape: TinyShape) -> Callable[[Path], None]:
        return lambda path: save_checkpoint(make_reference(shape), shape, path) and None

    return {shape.dtype: make_once(f"determinism-{shape.dtype}", writer(shape)) for shape in (SHAPE, BF16_SHAPE)}


@pytest.fixture(scope="module")
def artifact_of(sources: dict[str, Path], make_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The artifact of a scheme, compiled once."""

    def artifact(scheme: str, targets: tuple[str, ...] = ("cpu",)) -> Path:
        source = sources["bf16" if scheme == "keep" else "f32"]

        def make(path: Path) -> None:
            options = {"target": targets, "quantize": scheme, "tokenizer": False, "max_step_tokens": MAX_STEP}
            llamac.compile(source, output=path, **options)

        return make_once(f"{scheme.replace(':', '-')}-{'-'.join(targets)}.llamac", make)

    return artifact


@pytest.fixture(scope="module", params=SCHEMES)
def model(request: pytest.FixtureRequest, artifact_of: Callable[[str], Path]) -> Model:
    """One scheme's model with room for three sequences, on two threads."""
    loaded = llamac.load(artifact_of(request.param), threads=2, context=1024, sequences=3)
    request.addfinalizer(loaded.close)
    return loaded


@pytest.fixture(scope="module")
def whole(model: Model) -> Floats:
    """Logits after every id, computed in one step."""
    return in_chunks(model, IDS, (len(IDS),))


@pytest.mark.parametrize("sizes", CHUNKS, ids=lambda sizes: "-".join(map(str, sizes)))
def test_chunks(model: Model, whole: Floats, sizes: tuple[int, ...]) -> None:
    assert_same_bits(in_chunks(model, IDS, sizes), whole, f"chunks {sizes}")


QUICK = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
POSITIONS = st.lists(st.integers(0, len(IDS)), max_size=12)


@QUICK
@given(cuts=POSITIONS)
def test_any_chunks(model: Model, whole: Floats, cuts: list[int]) -> None:
    (found,) = side_by_side(model, [IDS], [cuts])
    assert_same_bits(found, whole, f"cut at {cuts}")


@QUICK
@given(cuts=st.tuples(POSITIONS, POSITIONS, POSITIONS))
def test_batch_mates(model: Model, cuts: tuple[list[int], ...]) -> None:
    """Two and three ragged sequences, stepped together and cut anywhere, equal each alone."""
    prompts = [some_ids(131, 200, 1), some_ids(131, 17, 2), some_ids(131, 301, 3)]
    alone = [in_chunks(model, prompt, (len(prompt),)) for prompt in prompts]
    for count in (2, 3):
        kept = [[c for c in cut if c < len(p)] for cut, p in zip(cuts, prompts, strict=True)][:count]
        together = side_by_side(model, prompts[:count], kept)
        for index, found in enumerate(together):
            assert_same_bits(found, alone[index], f"sequence {index} of {count}, cut at {kept}")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(
    model: Model, whole: Floats, artifact_of: Callable[[str], Path], threads: int, request: pytest.FixtureRequest
) -> None:
    scheme = request.node.callspec.params["model"]
    with llamac.load(artifact_of(scheme), threads=threads, context=1024) as other:
        assert other.threads == threads
        assert_same_bits(in_chunks(other, IDS, (len(IDS),)), whole, f"{threads} threads, one step")
        assert_same_bits(in_chunks(other, IDS[:300], (1,)), whole[:300], f"{threads} threads, one by one")


def test_all_rows_and_last_row(model: Model, whole: Floats) -> None:
    """Asking for fewer logits changes none of them."""
    sequence = model.session.open()
    try:
        last = model.session.prefill(sequence, IDS)
    finally:
        sequence.close()
    assert_same_bits(last[None], whole[-1:], "last row alone")


def _runnable() -> list[str]:
    architecture = machine_architecture()
    features = cpu_features(architecture)
    return [t.name for t in TARGETS.values() if t.triple.startswith(architecture) and set(t.requires) <= features]


SLOW = pytest.mark.slow
QUICK_SCHEMES = ("f32", "int4")


@pytest.mark.parametrize("scheme", [s if s in QUICK_SCHEMES else pytest.param(s, marks=SLOW) for s in SCHEMES])
def test_instruction_sets(artifact_of: Callable[..., Path], scheme: str) -> None:
    """Every code member of one artifact that this machine can run gives the bits of the first."""
    names = _runnable()
    if len(names) < 2:
        pytest.skip(f"this machine runs only {', '.join(names) or 'no target'}: nothing to compare")
    path = artifact_of(scheme, tuple(names))
    found = {}
    for name in names:
        with llamac.load(path, target=name, threads=2, context=1024) as loaded:
            assert loaded.target.name == name
            found[name] = in_chunks(loaded, IDS, (300, 1))
    for name in names[1:]:
        assert_same_bits(found[name], found[names[0]], f"{name} against {names[0]}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("scheme", ["f32", "int4:g64:asym"])
def test_bytes_do_not_depend_on_folder_or_memory(sources: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    """Another source folder, another output folder, a warm cache, and row blocks of one panel."""
    first, second = tmp_path / "first", tmp_path / "a longer name" / "second"
    for folder in (first, second):
        shutil.copytree(sources["f32"], folder / "checkpoint")
    options = {"quantize": scheme, "tokenizer": False}
    llamac.compile(first / "checkpoint", output=first / "model.llamac", **options)
    llamac.compile(second / "checkpoint", output=second / "other.llamac", memory=1 << 16, **options)
    assert _digest(first / "model.llamac") == _digest(second / "other.llamac")


def test_bytes_do_not_depend_on_process_or_cache(
    sources: dict[str, Path], tmp_path: Path, artifact_of: Callable[..., Path]
) -> None:
    """Another process, hash seed, time zone, locale, current folder, and an empty compiler cache, then a warm one."""
    program = "import sys, llamac; llamac.compile(sys.argv[1], output=sys.argv[2], quantize='int4', tokenizer=False)"
    made = []
    for number in range(2):
        folder = tmp_path / f"run {number}"
        folder.mkdir()
        environment = {
            **os.environ,
            "LLAMAC_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONHASHSEED": str(number + 1),
            "TZ": "Asia/Kolkata",
            "TMPDIR": str(folder),
        }
        environment.pop("ZIG_GLOBAL_CACHE_DIR", None)
        environment.pop("ZIG_LOCAL_CACHE_DIR", None)
        arguments = [sys.executable, "-c", program, str(sources["f32"]), "m.llamac"]
        subprocess.run(arguments, cwd=folder, env=environment, check=True)
        made.append(_digest(folder / "m.llamac"))
    llamac.compile(sources["f32"], output=tmp_path / "here.llamac", quantize="int4", tokenizer=False)
    assert {*made, _digest(tmp_path / "here.llamac")} == {made[0]}
    assert any((tmp_path / "cache").rglob("*")), "the compiler did not use LLAMAC_CACHE_DIR"


def test_bits_are_checked_as_bits() -> None:
    """The comparison of these tests sees what == does not: the sign of a zero."""
    with pytest.raises(AssertionError, match="row 0, column 0"):
        assert_same_bits(np.float32([[-0.0]]), np.float32([[0.0]]), "zero")

"""`llamac retarget` of models that several processes share: the bytes of `compile`, or one reason why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_models import Tiny, described

import llamac
from llamac.artifact.read import Artifact
from llamac.backends.gpu import build
from llamac.backends.gpu.build import Progress, Wanted
from llamac.backends.gpu.compile import CompiledKernel
from llamac.errors import LlamacError
from llamac.models.random_weights import random_checkpoint
from llamac.retarget import retarget
from llamac.stored_graphs import StoredGraphs

CPU, OTHER = "x86-64-v3:2", "x86-64-v4:2"
DENSE = Tiny("bf16", heads=8, kv_heads=4, hidden=64, inner=128, vocab=64)
Compile = Callable[..., Path]


def slow(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


def named(wanted: Wanted, progress: Progress) -> dict[str, CompiledKernel]:
    """Kernels whose code is their name: all that is checked here is which are in the file, and who refers to them."""
    return {key: replace(described(*item), code=key.encode(), assembly=key) for key, item in wanted.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(params=[pytest.param("code", marks=pytest.mark.slow), "names"])
def compiled(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    """A tiny model compiled for some targets, once; with GPU code, and with names in its place."""
    if request.param == "names":
        monkeypatch.setattr(build, "compile_all", named)

    def compile_tiny(*targets: str) -> Path:
        path = folder / f"{request.param}-{'-'.join(targets)}.llamac"
        if not path.exists():
            checkpoint = random_checkpoint(DENSE.config(), 3)
            llamac.compile(checkpoint, target=list(targets), output=path, max_step_tokens=2, quantize="int4")
        return path

    yield compile_tiny


@pytest.mark.parametrize(
    ("before", "targets", "gone", "after"),
    [
        ((CPU,), OTHER, [], (CPU, OTHER)),
        (("a100:2",), "sm_86:2", [], ("a100:2", "sm_86:2")),
        ((CPU, "a100:2"), [], ["a100:2"], (CPU,)),
        slow((CPU, OTHER), CPU, [], (CPU, OTHER)),
        slow((CPU, OTHER), [], [CPU], (OTHER,)),
        slow(("a100:2", "mi300x:2"), "a100:2", [], ("a100:2", "mi300x:2")),
        slow(("a100:2", "mi300x:2"), [], ["a100:2"], ("mi300x:2",)),
        slow(("a100:2",), "mi300x:2", ["a100:2"], ("mi300x:2",)),
        slow((CPU, "a100:2"), "mi300x:2", [], (CPU, "a100:2", "mi300x:2")),
        slow((CPU, "a100:2"), OTHER, [CPU], (OTHER, "a100:2")),
        slow((CPU, "a100:2"), [], [CPU], ("a100:2",)),
    ],
    ids=str,
)
def test_as_compiled(
    compiled: Compile, tmp_path: Path, before: tuple[str, ...], targets: str, gone: list[str], after: tuple[str, ...]
) -> None:
    """Code added, replaced and taken out beside the weights of every rank; a layout that nothing reads goes."""
    out = tmp_path / "m.llamac"
    retarget(compiled(*before), targets, remove=gone, output=out)
    assert out.read_bytes() == compiled(*after).read_bytes()


@pytest.mark.parametrize("compiled", ["names"], indirect=True)
@pytest.mark.parametrize(
    ("before", "target", "code", "words"),
    [
        (CPU, "x86-64-v4", "LLC0617", "keeps it whole, and the file divides the model among 2"),
        (CPU, "x86-64-v4:4", "LLC0617", "among 4 processes, and the file divides the model among 2"),
        slow("x86-64-v3", OTHER, "LLC0617", "among 2 processes, and the file keeps it whole"),
        (CPU, "a100:2", "LLC0615", "layout"),
        ("a100:2", CPU, "LLC0615", "layout"),
    ],
)
def test_refused(compiled: Compile, tmp_path: Path, before: str, target: str, code: str, words: str) -> None:
    """Another division, or weights in another layout: one error with what to do instead, and nothing is written."""
    with pytest.raises(LlamacError) as found:
        retarget(compiled(before), target, output=tmp_path / "m.llamac")
    assert found.value.code == code and words in found.value.reason and "compile the checkpoint" in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiled", ["names"], indirect=True)
def test_other_passes_than_those_of_the_file(
    compiled: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank's graph is made anew: only where the first one's comes out as it is in the file."""
    from llamac import stored_graphs

    path = tmp_path / "m.llamac"
    shutil.copy(compiled("a100:2"), path)
    real = stored_graphs.print_module
    printed = iter(["another graph"])
    monkeypatch.setattr(stored_graphs, "print_module", lambda module: next(printed, None) or real(module))
    with pytest.raises(LlamacError, match=r"LLC0614.*another graph"):
        retarget(path, "sm_86:2")
    assert path.read_bytes() == compiled("a100:2").read_bytes()
    with Artifact.open(path) as artifact:
        graph = StoredGraphs(artifact).graph("gpu")
    assert len(graph.ranks) == 2 and [len(g.placed) for g in graph.ranks] == [len(graph.placed)] * 2

"""Stub drivers in the place of GPUs, and toy artifacts with code for them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2] / "backends" / "gpu"))  # planned_models
pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[test]'")

from gpu_stub_library import Stub, Vendor
from toy_gpu import ToyGpu, ToyGpuArtifacts

from llamac.artifact.read import Artifact


def _stub(vendor: Vendor) -> Iterator[Stub]:
    stub = Stub(vendor)
    yield stub
    violations, left = stub.violations(), (stub.blocks, stub.handles)
    stub.reset()
    assert not violations, violations
    assert left == (0, 0), f"{left[0]} allocations and {left[1]} streams, events or graphs were not freed"


@pytest.fixture
def cuda() -> Iterator[Stub]:
    """NVIDIA's driver; a test that leaves anything allocated, or makes a wild call, fails."""
    yield from _stub("cuda")


@pytest.fixture
def hip() -> Iterator[Stub]:
    """AMD's driver, likewise."""
    yield from _stub("hip")


@pytest.fixture(params=["sm_90", "gfx942"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Stub]:
    """A driver of each vendor in turn, with one GPU that runs the toy's kernels; `gpu.architecture` says which."""
    stub = request.getfixturevalue("cuda" if request.param.startswith("sm_") else "hip")
    stub.be(request.param)
    stub.toy = ToyGpu(stub)
    yield stub
    assert stub.toy.failure is None, repr(stub.toy.failure)


@pytest.fixture(scope="session")
def toy_gpu_artifacts(toy, tmp_path_factory: pytest.TempPathFactory) -> ToyGpuArtifacts:
    """The maker of toy artifacts with code for GPUs."""
    with Artifact.open(toy.make()) as artifact:
        manifest = {key: value for key, value in artifact.manifest.items() if key != "members"}
        tokenizer = artifact.member_bytes("tokenizer/tokenizer.json")
    return ToyGpuArtifacts(tmp_path_factory.mktemp("toy-gpu"), lambda: copy.deepcopy(manifest), toy.code, tokenizer)

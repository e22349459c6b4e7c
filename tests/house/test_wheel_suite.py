"""The wheel in an environment of its own, with nothing but what a plain `pip install llamac` brings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and its requirements."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "-qq", str(wheel)], check=True)
    return folder / "bin"


def test_it_brings_no_compiler(plain_install: Path) -> None:
    listed = subprocess.run(
        [plain_install / "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {row["name"].lower().replace("-", "_") for row in json.loads(listed.stdout)}
    assert "numpy" in names
    assert not names & {"torch", "triton", "ziglang", "ml_dtypes", "rich", "transformers"}


def test_it_runs_an_artifact(plain_install: Path, toy_artifact: Path, tmp_path: Path) -> None:
    command = [plain_install / "llamac", "run", toy_artifact, "--prompt", "ab", "--max-new-tokens", "4", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "cdef"


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_it_looks_into_an_artifact(plain_install: Path, toy_artifact: Path, tmp_path: Path, verb: str) -> None:
    command = [plain_install / "llamac", verb, toy_artifact, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiling_says_what_to_install(plain_install: Path, tmp_path: Path) -> None:
    command = [plain_install / "llamac", "compile", "tiny", "--random-weights", "1", "-o", "tiny.llamac"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "LLC0600" in done.stderr and "llamac[compile]" in done.stderr

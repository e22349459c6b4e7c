"""Lets the tests of this folder import their view of the source tree; builds wheel and sdist once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ["llamac", "passes", "backends", "runtime", "models", "pyproject.toml", "README.md", "LICENSE"]
BESIDE = ["MANIFEST.in", "CHANGELOG.md", "Makefile", "docs", "tests", "bench"]


def _built(folder: Path, names: list[str], what: str) -> Path:
    """The wheel or the sdist, built from a copy: leftovers of earlier builds in the tree neither help nor harm."""
    for name in names:
        source, copy = ROOT / name, folder / "tree" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
    build = f"import sys; from setuptools import build_meta; build_meta.build_{what}(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    done = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(file for file in folder.iterdir() if file.is_file())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    return _built(tmp_path_factory.mktemp("wheel"), SHIPPED, "wheel")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return _built(tmp_path_factory.mktemp("sdist"), [*SHIPPED, *BESIDE], "sdist")

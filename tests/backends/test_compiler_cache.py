"""The folders of the compilers' caches, whose contents end up in artifacts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from llamac.backends.compiler_cache import compiler_cache


def test_it_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(tmp_path / "file" / "under"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert compiler_cache("zig") == tmp_path / "user" / "llamac" / "zig"
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(tmp_path / "mine"))
    assert compiler_cache("zig") == tmp_path / "mine" / "zig"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user without any other place gets, in a temporary folder that all can write to."""
    for name in ("LLAMAC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"llamac-triton-{os.getuid()}"


def test_a_temporary_folder_is_the_users_own(named: Path) -> None:
    assert compiler_cache("triton") == named == compiler_cache("triton")
    assert named.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("taken", ["a link", "others may write", "a file"])
def test_another_user_may_have_been_there_first(named: Path, taken: str) -> None:
    """Who made the folder could put code there under names that are yet to be looked for."""
    if taken == "a link":
        (named.parent / "elsewhere").mkdir()
        named.symlink_to(named.parent / "elsewhere")
    elif taken == "a file":
        named.write_text("")
    else:
        named.mkdir()
        named.chmod(0o777)
    found = compiler_cache("triton")
    assert found != named and found.stat().st_mode & 0o077 == 0
    assert compiler_cache("triton") == found, "one for the whole process"

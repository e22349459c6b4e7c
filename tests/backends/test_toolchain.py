"""The compiler driver: the same bytes from any folder and cache, and coded errors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from llamac.backends.cpu import toolchain
from llamac.backends.cpu.toolchain import compile_shared_library, kernel_source, zig_command
from llamac.errors import LlamacError

X86 = "x86_64-linux-gnu.2.28"
SOURCES = {
    "one.c": '#include "types.h"\n__attribute__((visibility("default"))) const char *one(void) { return __FILE__; }\n',
    "two.c": "#include <assert.h>\nvoid two(int x) { assert(x); }\n",
}


@pytest.fixture(autouse=True)
def fresh_command() -> None:
    zig_command.cache_clear()


def test_same_bytes_from_other_folders_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("short", "a/much/longer/place"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(folder / "cache"))
        out = folder / "out.so"
        compile_shared_library(SOURCES, triple=X86, cpu="x86_64_v3", out=out)
        assert sorted(path.name for path in folder.iterdir()) == ["cache", "out.so"], "the build folder is removed"
        found.append(out.read_bytes())
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in found[0]


def test_the_kernels_compile_as_one_text_for_every_cpu(tmp_path: Path) -> None:
    text = kernel_source()
    assert '#include "' not in text
    for triple, cpu in [(X86, "x86_64_v4"), (X86, "znver5"), ("aarch64-linux-gnu.2.28", "generic+dotprod")]:
        flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
        compile_shared_library({"all.c": text}, triple=triple, cpu=cpu, out=tmp_path / "all.so", extra_flags=flags)


def test_code_that_does_not_compile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(LlamacError, match=r"LLC0602 .*broken.c:1.*missing_name") as caught:
        compile_shared_library(
            {"broken.c": "int f(void) { return missing_name; }"}, triple=X86, cpu="", out=tmp_path / "o"
        )
    kept = Path(caught.value.hint.split()[-1])
    assert (kept / "broken.c").read_text(encoding="utf-8").startswith("int f")
    assert not (tmp_path / "o").exists()


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LlamacError, match=r'LLC0600 .*pip install "llamac\[compile\]"'):
        zig_command()


def test_another_compiler_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.13.0")
    with pytest.raises(LlamacError, match=r"LLC0601 .*0\.13\.0"):
        zig_command()


def test_cache_folder_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(tmp_path / "file" / "under"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert toolchain.cache_folder() == tmp_path / "user" / "llamac" / "zig"
    monkeypatch.setenv("LLAMAC_CACHE_DIR", str(tmp_path / "mine"))
    assert toolchain.cache_folder() == tmp_path / "mine" / "zig"

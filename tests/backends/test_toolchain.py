"""The compiler driver: the same bytes from any folder and cache, and coded errors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from llamac.backends.cpu import toolchain
from llamac.backends.cpu.toolchain import compile_shared_library, kernel_source, zig_command
from llamac.errors import LlamacError
from llamac.target import TARGETS

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
    for name in ("x86-64-v3", "x86-64-v4", "sapphirerapids", "aarch64-i8mm"):
        triple, cpu = TARGETS[name].triple, TARGETS[name].cpu
        flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
        compile_shared_library({"all.c": text}, triple=triple, cpu=cpu, out=tmp_path / "all.so", extra_flags=flags)


MATRIX = """
void integers(const llamac_thread *th, float *y, llamac_quantized x, uint32_t rows, const uint8_t *w) {
    llamac_linear_grouped(th, y, 64, x, rows, w, 64, 64, (llamac_grouped){4, 1, 32, 16, 0}, NULL);
}
void halves(const llamac_thread *th, float *y, const float *x, uint32_t rows, const uint8_t *w) {
    llamac_linear_dense(th, y, 64, x, 64, rows, w, 64, 64, LLAMAC_BF16_PAIRS, NULL);
}
"""


@pytest.mark.parametrize(
    ("name", "wanted", "unwanted"),
    [
        ("x86-64-v3", {"vpmaddubsw", "ymm15"}, {"vpdpbusd", "zmm0"}),
        ("x86-64-v3-vnni", {"vpdpbusd", "ymm15"}, {"vpmaddubsw", "zmm0"}),
        ("x86-64-v4", {"vpmaddubsw", "zmm0"}, {"vpdpbusd", "tdpbsud"}),
        ("znver4", {"vpdpbusd", "vdpbf16ps", "zmm0"}, {"vpmaddubsw", "tdpbsud", "tdpbf16ps"}),
        (
            "sapphirerapids",
            {"tdpbsud", "tdpbf16ps", "ldtilecfg", "tilerelease", "vpdpbusd"},
            {"vpmaddubsw", "vdpbf16ps"},
        ),
        ("aarch64", {"sdot", "fmla"}, {"smmla", "bfmlalb", "bfdot"}),
        ("aarch64-i8mm", {"smmla", "sdot", "bfmlalb", "bfmlalt"}, {"bfdot", "bfmmla"}),
    ],
)
def test_matrix_kernels_use_the_instructions_of_their_target(
    tmp_path: Path, name: str, wanted: set[str], unwanted: set[str]
) -> None:
    """In the compiler's assembly: what no machine here may be able to run is at least what it should be."""
    (tmp_path / "matrix.c").write_text(kernel_source() + MATRIX, encoding="utf-8")
    target = TARGETS[name]
    flags = ["-target", target.triple, *toolchain.BASE_FLAGS, *toolchain.cpu_flags(target.cpu), "-S", "matrix.c"]
    subprocess.run([*zig_command(), "cc", *flags], cwd=tmp_path, env=toolchain.compiler_environment(), check=True)
    found = set(re.findall(r"[a-z]+[a-z0-9]*", (tmp_path / "matrix.s").read_text(encoding="utf-8")))
    assert wanted <= found, f"missing {wanted - found}"
    assert not unwanted & found


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

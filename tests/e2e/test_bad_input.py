"""Bad input through the command line: one coded error that says what to do, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import SHAPE_32, write_tiny_gguf
from tiny_llama import TinyShape, make_reference, save_checkpoint

import llamac
from llamac.cli.main import UNEXPECTED, main
from llamac.errors import LlamacError

SHAPE = TinyShape(group=3, head_dim=16, width=72, inner=100, vocab=131, layers=1, context=300)
SHARDED = TinyShape(group=3, head_dim=16, width=72, inner=100, vocab=131, layers=2, sharded=True)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that compile, for each test to damage a copy of."""
    folder = tmp_path_factory.mktemp("good")
    for name, shape in (("single", SHAPE), ("sharded", SHARDED)):
        save_checkpoint(make_reference(shape), shape, folder / name)
    write_tiny_gguf(folder / "tiny.gguf", SHAPE_32, lambda name: gguf.GGMLQuantizationType.Q8_0)
    return {"single": folder / "single", "sharded": folder / "sharded", "gguf": folder / "tiny.gguf"}


@pytest.fixture(scope="module")
def artifact(good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound artifact."""
    path = tmp_path_factory.mktemp("artifact") / "good.llamac"
    llamac.compile(good["single"], output=path, quantize="int8", tokenizer=False)
    return path


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refused(code, words...)`: the one line that the command line prints; checks exit code and leftovers."""
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def run(code: str, *words: object) -> str:
        capsys.readouterr()
        exit_code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return _check_refusal(code, exit_code, printed.out, printed.err, scratch)

    return run


def _check_refusal(code: str, exit_code: int, out: str, err: str, scratch: Path) -> str:
    lines = [line for line in err.splitlines() if line.startswith("LLC")]
    assert len(lines) == 1 and lines[0].startswith(f"{code} "), f"expected one {code}: {err}"
    assert exit_code == (1 if code in UNEXPECTED else 2), f"exit code {exit_code}: {lines[0]}"
    assert "Traceback" not in err and out == ""
    assert not list(scratch.iterdir()), f"left behind: {list(scratch.iterdir())}"
    return lines[0]


@pytest.fixture
def refused_compile(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """`refused_compile(code, source, options...)`: as `refused`, for a compile that must write nothing."""
    folder = tmp_path / "out"
    folder.mkdir()

    def run(code: str, source: object, *options: object, tokenizer: bool = False) -> str:
        text = [] if tokenizer else ["--no-tokenizer"]
        line = refused(code, "compile", source, "-o", folder / "model.llamac", *text, *options)
        assert not list(folder.iterdir()), f"left behind: {list(folder.iterdir())}"
        assert "Next: " in line
        return line

    return run


Damage = Callable[..., Path]


@pytest.fixture
def damaged(good: dict[str, Path], tmp_path: Path) -> Damage:
    """`damaged(kind, damage)`: a copy of a good checkpoint after `damage(path)`."""

    def make(kind: str, damage: Callable[[Path], object]) -> Path:
        copy = tmp_path / good[kind].name
        if good[kind].is_dir():
            shutil.copytree(good[kind], copy)
        else:
            shutil.copyfile(good[kind], copy)
        damage(copy)
        return copy

    return make


def _cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Checkpoints


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
def test_truncated_safetensors(damaged: Damage, refused_compile: Callable[..., str], share: float) -> None:
    source = damaged("single", lambda folder: _cut(folder / "model.safetensors", share))
    assert "model.safetensors" in refused_compile("LLC0203", source)


@pytest.mark.parametrize("share", [0.999, 0.5])
def test_truncated_gguf(damaged: Damage, refused_compile: Callable[..., str], share: float) -> None:
    refused_compile("LLC0203", damaged("gguf", lambda path: _cut(path, share)))


def test_gguf_truncated_in_its_header(damaged: Damage, refused_compile: Callable[..., str]) -> None:
    refused_compile("LLC0203", damaged("gguf", lambda path: os.truncate(path, 200)))


def test_missing_shard(damaged: Damage, refused_compile: Callable[..., str]) -> None:
    def remove(folder: Path) -> None:
        sorted(folder.glob("*.safetensors"))[1].unlink()

    assert "model-00002-of-" in refused_compile("LLC0205", damaged("sharded", remove))


@pytest.mark.parametrize("kind", ["single", "sharded", "gguf"])
def test_lfs_pointer(damaged: Damage, refused_compile: Callable[..., str], kind: str) -> None:
    def replace(path: Path) -> None:
        file = sorted(path.glob("*.safetensors"))[0] if path.is_dir() else path
        file.write_bytes(LFS_POINTER)

    assert "git" in refused_compile("LLC0202", damaged(kind, replace)).lower()


def test_lfs_pointer_for_the_tokenizer(damaged: Damage, refused_compile: Callable[..., str]) -> None:
    source = damaged("single", lambda folder: (folder / "tokenizer.json").write_bytes(LFS_POINTER))
    refused_compile("LLC0202", source, tokenizer=True)


def test_shape_against_config(damaged: Damage, refused_compile: Callable[..., str]) -> None:
    source = damaged("single", lambda folder: _edit_config(folder, intermediate_size=104))
    line = refused_compile("LLC0208", source)
    assert "layers.0.mlp" in line and "104" in line and "100" in line


@pytest.mark.parametrize(
    ("code", "changes", "shown"),
    [
        ("LLC0305", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        (
            "LLC0305",
            {"rope_parameters": {"rope_type": "lama3", "rope_theta": 1e4, "factor": 2.0}},
            "did you mean 'llama3'",
        ),
        ("LLC0306", {"hidden_act": "gelu"}, "gelu"),
        ("LLC0301", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ("LLC0301", {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "MistralForCausalLM"),
        ("LLC0307", {"attention_bias": True}, "bias"),
    ],
)
def test_unknown_config(
    damaged: Damage, refused_compile: Callable[..., str], code: str, changes: dict[str, Any], shown: str
) -> None:
    assert shown in refused_compile(code, damaged("single", lambda folder: _edit_config(folder, **changes)))


def test_no_tokenizer(good: dict[str, Path], refused_compile: Callable[..., str]) -> None:
    assert "--no-tokenizer" in refused_compile("LLC0106", good["single"], tokenizer=True)


def test_not_finite_weights(damaged: Damage, refused_compile: Callable[..., str]) -> None:
    def poison(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-4:] = np.float32("inf").tobytes()
        path.write_bytes(data)

    refused_compile("LLC0219", damaged("single", poison), "--quantize", "f32")


# Options


@pytest.mark.parametrize(
    ("code", "option", "value", "near"),
    [
        ("LLC0603", "--target", "x86-64-v5", "did you mean 'x86-64-v"),
        ("LLC0603", "--target", "cpu,aarch46", "did you mean 'aarch64'"),
        ("LLC0104", "--quantize", "int44", "did you mean 'int4'"),
        ("LLC0104", "--quantize", "int4:g48", ":g32"),
        ("LLC0104", "--quantize", "fp8:g32", "no groups"),
    ],
)
def test_unknown_target_or_scheme(
    good: dict[str, Path], refused_compile: Callable[..., str], code: str, option: str, value: str, near: str
) -> None:
    assert near in refused_compile(code, good["single"], option, value)


def test_source_that_does_not_exist(refused_compile: Callable[..., str], tmp_path: Path) -> None:
    refused_compile("LLC0201", tmp_path / "nowhere" / "model")
    assert "did you mean 'llama-3.2-1b'" in refused_compile("LLC0309", "llama-3.2-1bb")


# Disk full


def test_disk_full(good: dict[str, Path], tmp_path: Path) -> None:
    """A real refusal of the system while weights are written: no file may grow beyond 100 kB."""
    folder = tmp_path / "out"
    folder.mkdir()
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from llamac.artifact import write; import llamac.driver as driver;"
        "driver.compile_shared_library = lambda *a, out, **k: out.write_bytes(b'no code is reached');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from llamac.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["compile", good["single"], "-o", folder / "model.llamac", "--quantize", "f32", "--no-tokenizer"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and done.stderr.startswith("LLC0702 "), done.stderr
    assert not list(folder.iterdir())


def test_disk_full_by_errno(good: dict[str, Path], refused_compile: Callable[..., str], monkeypatch: Any) -> None:
    """ENOSPC when the file is brought to disk."""
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused_compile("LLC0702", good["single"])


# Artifacts


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the sound artifact, to damage."""
    path = tmp_path / "copy.llamac"
    shutil.copyfile(artifact, path)
    return path


RUN = ("--prompt-ids", "1,2,3", "--max-new-tokens", "2")


def test_sound_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the other tests damage does run."""
    assert main(["run", str(artifact), *RUN, "--check"]) == 0
    assert main(["verify", str(artifact)]) == 0


def _member_offset(path: Path, name: str) -> int:
    from llamac.artifact.read import Artifact

    with Artifact.open(path) as opened:
        offset, size = opened.member_offset(name)
    return offset + size // 2


@pytest.mark.parametrize("member", ["manifest.json", "code"])
def test_flipped_byte_in_manifest_or_code(copy: Path, refused: Callable[..., str], member: str) -> None:
    with llamac.load(copy, context=256) as model:
        name = model.target.code if member == "code" else member
    _flip(copy, _member_offset(copy, name))
    with pytest.raises(LlamacError) as caught:
        llamac.load(copy)
    assert caught.value.code in ("LLC0709", "LLC0712")
    for words in (("run", copy, *RUN), ("inspect", copy), ("verify", copy)):
        if words[0] == "inspect" and member == "code":
            continue  # it reads no code
        refused(caught.value.code, *words)


def test_flipped_byte_anywhere(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every byte counts for `verify`: headers, padding, weights, directory. And weights for `run --check`."""
    size = artifact.stat().st_size
    offsets = {int(o) for o in np.random.default_rng(0).integers(0, size, 40)} | {0, 5, size - 1, size - 30}
    path = tmp_path / "flipped.llamac"
    for offset in sorted(offsets):
        shutil.copyfile(artifact, path)
        _flip(path, offset)
        assert main(["verify", str(path)]) == 2, f"verify accepts a flipped byte at {offset} of {size}"
        assert capsys.readouterr().err.startswith("LLC07")


def test_flipped_weight_byte(copy: Path, refused: Callable[..., str]) -> None:
    _flip(copy, _member_offset(copy, "weights/cpu-panel16.bin"))
    refused("LLC0712", "run", copy, *RUN, "--check")
    refused("LLC0712", "verify", copy)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.001])
def test_truncated_artifact(copy: Path, refused: Callable[..., str], share: float) -> None:
    _cut(copy, share)
    for words in (("run", copy, *RUN), ("inspect", copy), ("verify", copy)):
        refused("LLC0707", *words)


def test_artifact_for_another_cpu(good: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    from llamac.host import machine_architecture

    other = "aarch64" if machine_architecture() == "x86_64" else "x86-64-v3"
    path = tmp_path / "other.llamac"
    llamac.compile(good["single"], target=other, output=path, tokenizer=False, validate=False)
    line = refused("LLC0800", "run", path, *RUN)
    assert other.split("-")[0] in line and "--target" in line
    assert main(["verify", str(path), "--hashes-only"]) == 0


def _rewrite_manifest(path: Path, offset: int, size: int, hash_offset: int, hash_size: int) -> None:
    """Schema 9 instead of 1, with every checksum made to fit: what a later llamac would have written."""
    import hashlib
    import zlib

    data = path.read_bytes()
    old = data[offset : offset + size]
    new = old.replace(b'"schema": 1', b'"schema": 9')
    assert new != old and len(new) == len(old)
    old_line = data[hash_offset : hash_offset + hash_size]
    new_line = old_line.replace(*(hashlib.sha256(text).hexdigest().encode() for text in (old, new)))
    assert new_line != old_line
    for before, after in ((old, new), (old_line, new_line)):
        data = data.replace(before, after)
        checksums = (zlib.crc32(text).to_bytes(4, "little") for text in (before, after))
        data = data.replace(*checksums)
    path.write_bytes(data)


def test_newer_schema(toy: Any, refused: Callable[..., str]) -> None:
    from llamac.artifact.read import Artifact

    path = toy.make(lambda manifest: manifest.update(producer="llamac 9.0"))
    with Artifact.open(path) as opened:
        (offset, size), (hash_offset, hash_size) = (
            opened.member_offset(f"manifest.{kind}") for kind in ("json", "sha256")
        )
    _rewrite_manifest(path, offset, size, hash_offset, hash_size)
    line = refused("LLC0710", "run", path, "--prompt", "a")
    assert "schema" in line and "llamac 9.0" in line
    refused("LLC0710", "inspect", path)


def test_not_an_artifact(tmp_path: Path, good: dict[str, Path], refused: Callable[..., str]) -> None:
    refused("LLC0705", "run", good["gguf"], *RUN)
    (tmp_path / "pointer.llamac").write_bytes(LFS_POINTER)
    refused("LLC0706", "run", tmp_path / "pointer.llamac", *RUN)
    refused("LLC0704", "run", tmp_path / "nowhere.llamac", *RUN)


def test_prompt_longer_than_the_context(artifact: Path, refused: Callable[..., str]) -> None:
    ids = ",".join(["7"] * (SHAPE.context + 1))
    line = refused("LLC0809", "run", artifact, "--prompt-ids", ids)
    assert "301" in line and "300" in line
    refused("LLC0812", "run", artifact, "--prompt-ids", "1,131")
    refused("LLC0813", "run", artifact, "--prompt", "text without a tokenizer")

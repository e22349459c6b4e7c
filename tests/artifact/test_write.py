"""The writer: round trip, determinism, acceptance by zip tools, and nothing left behind when it fails."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.artifact import write
from llamac.artifact.hashing import MemberHasher
from llamac.artifact.layout import is_safe_name
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.artifact.write import ArtifactWriter
from llamac.errors import LlamacError

Make = Callable[..., Path]
WEIGHTS = "weights/cpu-panel16.bin"


def test_what_is_written_is_read_back(artifact_path: Path) -> None:
    weights = np.random.default_rng(7).integers(0, 256, 2400, dtype=np.uint8)
    with Artifact.open(artifact_path, check="full") as artifact:
        assert artifact.member_bytes("tokenizer/vocabulary.json") == b'["a", "b"]'
        np.testing.assert_array_equal(artifact.map(WEIGHTS), weights)
        assert artifact.member_bytes(WEIGHTS) == weights.tobytes()
        assert not artifact.map(WEIGHTS).flags.writeable
        hashes = [hashlib.sha256(weights[at : at + 1024].tobytes()).hexdigest() for at in (0, 1024, 2048)]
        record = {"bytes": 2400, "block_bytes": 1024, "sha256_blocks": hashes}
        assert artifact.manifest["members"][WEIGHTS] == record
        assert artifact.members[-2:] == ("manifest.json", "manifest.sha256")
        assert artifact.size == artifact_path.stat().st_size
    assert verify_file(artifact_path) == []


def test_every_member_starts_on_a_page(artifact_path: Path) -> None:
    data = artifact_path.read_bytes()
    with Artifact.open(artifact_path) as artifact:
        for name in artifact.members:
            offset, nbytes = artifact.member_offset(name)
            assert offset % 4096 == 0
            assert data[offset : offset + nbytes] == artifact.member_bytes(name)
            assert artifact.map(name).ctypes.data % 4096 == 0


def test_zip_tools_accept_it(artifact_path: Path) -> None:
    with zipfile.ZipFile(artifact_path) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        line = archive.read("manifest.sha256").decode()
        assert line == hashlib.sha256(archive.read("manifest.json")).hexdigest() + "  manifest.json\n"
    if shutil.which("unzip"):
        result = subprocess.run(["unzip", "-t", str(artifact_path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, write_artifact: Make) -> None:
    for folder in ("one", "another/deeper"):
        (tmp_path / folder).mkdir(parents=True)
    one = write_artifact(tmp_path / "one/a.llamac")
    old_mask = os.umask(0o077)
    try:
        other = write_artifact(tmp_path / "another/deeper/b.llamac", piece_bytes=7)
    finally:
        os.umask(old_mask)
    assert one.read_bytes() == other.read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.llamac"]


def test_streams_take_arrays_and_pad(tmp_path: Path, manifest: dict[str, Any]) -> None:
    path = tmp_path / "a.llamac"
    with ArtifactWriter(path) as writer:
        writer.add_bytes("code/x86-64-v3.so", b"")
        writer.add_bytes("tokenizer/vocabulary.json", b"{}")
        stream = writer.open_stream(WEIGHTS, 2400)
        stream.write(np.arange(20, dtype=np.float32).reshape(4, 5).T)
        assert stream.pad_to(64) == 128
        stream.write(np.arange(3, dtype=np.int16).data)
        stream.write(bytes(2400 - stream.position))
        size = writer.finish(manifest)
    assert size == path.stat().st_size
    with Artifact.open(path, check="full") as artifact:
        weights = artifact.map(WEIGHTS)
        np.testing.assert_array_equal(weights[:16].view(np.float32), [0, 5, 10, 15])
        np.testing.assert_array_equal(weights[128:134].view(np.int16), [0, 1, 2])
        assert artifact.map("code/x86-64-v3.so").size == 0
    assert "members" not in manifest


def test_streaming_needs_little_memory(tmp_path: Path, manifest: dict[str, Any]) -> None:
    nbytes = 48 << 20
    manifest["weights"][0]["bytes"] = nbytes
    rows = np.ones(1 << 20, np.uint8)
    tracemalloc.start()
    with ArtifactWriter(tmp_path / "a.llamac", block_bytes=16 << 20) as writer:
        writer.add_bytes("code/x86-64-v3.so", b"code")
        writer.add_bytes("tokenizer/vocabulary.json", b"{}")
        with writer.open_stream(WEIGHTS, nbytes) as stream:
            for _ in range(48):
                stream.write(rows)
        writer.finish(manifest)
    assert verify_file(tmp_path / "a.llamac") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def _write_with_big_member(path: Path, manifest: dict[str, Any], nbytes: int) -> None:
    zeros = np.zeros(256 << 20, np.uint8)
    manifest["weights"][0]["bytes"] = nbytes
    with ArtifactWriter(path) as writer:
        with writer.open_stream(WEIGHTS, nbytes) as stream:
            for start in range(0, nbytes, len(zeros)):
                stream.write(zeros[: nbytes - start])
        writer.add_bytes("code/x86-64-v3.so", b"code beyond 4 GiB")
        writer.add_bytes("tokenizer/vocabulary.json", b"{}")
        writer.finish(manifest)


def test_members_beyond_4_gib(tmp_path: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer as it is, except that long runs of zeros become holes of a sparse file and are not hashed."""
    real_write = os.write

    def sparse_write(descriptor: int, data: memoryview) -> int:
        if len(data) < 1 << 20:
            return real_write(descriptor, data)
        os.lseek(descriptor, len(data), os.SEEK_CUR)
        return len(data)

    class SparseHasher(MemberHasher):
        def update(self, data: memoryview) -> None:
            if len(data) < 1 << 20:
                super().update(data)

        def finish(self) -> list[str]:
            blocks = -(-nbytes // (64 << 20))
            return super().finish() if self._block_bytes is None else ["0" * 64] * blocks

    nbytes = (5 << 30) + 17
    path = tmp_path / "big.llamac"
    monkeypatch.setattr(write, "MemberHasher", SparseHasher)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", sparse_write)
        _write_with_big_member(path, manifest, nbytes)
    assert path.stat().st_size > 5 << 30
    with Artifact.open(path) as artifact:
        offset, _ = artifact.member_offset("code/x86-64-v3.so")
        assert offset > 5 << 30 and offset % 4096 == 0
        assert artifact.member_bytes("code/x86-64-v3.so") == b"code beyond 4 GiB"
        assert artifact.map(WEIGHTS).size == nbytes
        assert artifact.map(WEIGHTS)[-1] == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.read("code/x86-64-v3.so") == b"code beyond 4 GiB"
        assert archive.getinfo(WEIGHTS).file_size == nbytes
    path.unlink()


@pytest.mark.slow
def test_members_beyond_4_gib_in_full(tmp_path: Path, manifest: dict[str, Any]) -> None:
    if shutil.disk_usage(tmp_path).free < 6 << 30:
        pytest.skip("needs 6 GiB of free disk")
    path = tmp_path / "big.llamac"
    _write_with_big_member(path, manifest, (5 << 30) + 17)
    assert verify_file(path) == []
    assert subprocess.run(["unzip", "-tq", str(path)]).returncode == 0
    path.unlink()


def _fail_while_writing(path: Path, manifest: dict[str, Any]) -> LlamacError:
    with pytest.raises(LlamacError) as caught, ArtifactWriter(path) as writer:
        writer.add_bytes("code/x86-64-v3.so", b"code")
        with writer.open_stream(WEIGHTS, 1 << 20) as stream:
            stream.write(bytes(1 << 20))
        writer.finish(manifest)
    return caught.value


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(
    tmp_path: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch, write_artifact: Make, number: int
) -> None:
    path = write_artifact(tmp_path / "a.llamac")
    before = path.read_bytes()
    real_write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100_000:
            raise OSError(number, os.strerror(number))
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    error = _fail_while_writing(path, manifest)
    assert error.code == "LLC0702"
    assert "1048576 more bytes are needed" in error.reason and "bytes free" in error.reason
    assert [child.name for child in tmp_path.iterdir()] == ["a.llamac"]
    assert path.read_bytes() == before


@contextmanager
def _file_size_limit(nbytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_limit_on_file_size_is_a_full_disk(tmp_path: Path, manifest: dict[str, Any]) -> None:
    with _file_size_limit(300_000):
        error = _fail_while_writing(tmp_path / "a.llamac", manifest)
    assert error.code == "LLC0702"
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_work_starts(tmp_path: Path, manifest: dict[str, Any]) -> None:
    with pytest.raises(LlamacError, match="LLC0702") as caught, ArtifactWriter(tmp_path / "a", expected_bytes=1 << 60):
        pytest.fail("the body must not run")
    assert str(1 << 60) in caught.value.reason
    with pytest.raises(LlamacError, match="LLC0702"), ArtifactWriter(tmp_path / "a") as writer:
        writer.open_stream(WEIGHTS, 1 << 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, write_artifact: Make, interruption: type[BaseException]
) -> None:
    path = write_artifact(tmp_path / "a.llamac")
    before = path.read_bytes()
    with pytest.raises(interruption), ArtifactWriter(path) as writer, writer.open_stream(WEIGHTS, 100) as stream:
        stream.write(b"x")
        assert len(list(tmp_path.iterdir())) == 2
        raise interruption
    assert [child.name for child in tmp_path.iterdir()] == ["a.llamac"]
    assert path.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path: Path, artifact_path: Path) -> None:
    for path in (tmp_path / "missing/a.llamac", tmp_path, Path("/dev/null"), artifact_path / "a.llamac"):
        with pytest.raises(LlamacError, match="LLC0701"), ArtifactWriter(path):
            pytest.fail("the body must not run")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LlamacError, match=r"LLC0701.*Permission denied"), ArtifactWriter(tmp_path / "a.llamac"):
        pytest.fail("the body must not run")


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_artifact: Make) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(LlamacError, match="LLC0701"):
        write_artifact(tmp_path / "a.llamac")
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_is_followed(tmp_path: Path, write_artifact: Make) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "latest.llamac"
    link.symlink_to(tmp_path / "folder/a.llamac")
    write_artifact(link)
    assert link.is_symlink() and verify_file(tmp_path / "folder/a.llamac") == []


def test_misuse_is_reported(tmp_path: Path, manifest: dict[str, Any]) -> None:
    path = tmp_path / "a.llamac"

    def attempt(use: Callable[[ArtifactWriter], object], code: str = "LLC0703") -> None:
        with pytest.raises(LlamacError, match=code), ArtifactWriter(path) as writer:
            use(writer)
        assert list(tmp_path.iterdir()) == []

    def add_names_equal_but_for_case(writer: ArtifactWriter) -> None:
        writer.add_bytes("code/a", b"")
        writer.add_bytes("code/A", b"")

    def leave_a_stream_short(writer: ArtifactWriter) -> None:
        writer.open_stream("a", 3)
        writer.add_bytes("b", b"")

    attempt(lambda writer: None)
    attempt(lambda writer: writer.add_bytes("../a", b""))
    attempt(add_names_equal_but_for_case)
    attempt(lambda writer: writer.open_stream("a", 3).write(b"four"))
    attempt(lambda writer: writer.open_stream("a", 3).close())
    attempt(leave_a_stream_short)
    attempt(lambda writer: writer.finish(manifest), "LLC0711")
    with pytest.raises(LlamacError, match="LLC0703"):
        ArtifactWriter(path).add_bytes("a", b"")


@pytest.mark.parametrize("name", ["a", "code/x86-64-v3.so", "tokenizer/tokenizer.model", "a/..b", "a..b"])
def test_safe_names(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a\\b", "C:/a", "a b", "é", "a\0", "a" * 256, "a\n"]
)
def test_unsafe_names(name: str) -> None:
    assert not is_safe_name(name)


def test_headers_are_those_of_the_zip_specification(artifact_path: Path) -> None:
    data = artifact_path.read_bytes()
    signature, version, flags, method = struct.unpack_from("<4s3H", data)
    assert (signature, version, flags, method) == (b"PK\x03\x04", 45, 0, 0)
    assert data[-22:-18] == b"PK\x05\x06" and data[-42:-38] == b"PK\x06\x07" and data[-98:-94] == b"PK\x06\x06"

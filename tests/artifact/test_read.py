"""The reader against damaged, truncated, foreign and hostile files: only coded errors, and the right ones."""

from __future__ import annotations

import copy
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamac.artifact import layout
from llamac.artifact.layout import Member
from llamac.artifact.manifest import SCHEMA, canonical_json, check_manifest, manifest_hash_line
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.errors import LlamacError

Make = Callable[..., Path]
WEIGHTS = "weights/cpu-panel16.bin"


def open_error(path: Path, check: Any = "load") -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        Artifact.open(path, check=check)
    return caught.value


def build_zip(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A canonical container with these members, whatever their names and contents are."""
    placed: list[Member] = []
    body = b""
    for name, data in members:
        placed.append(Member(name, len(data), zlib.crc32(data), len(body)))
        body += layout.local_header(placed[-1]) + data
    path.write_bytes(body + layout.directory(placed))
    return path


def with_manifest(path: Path, manifest: bytes) -> Path:
    """The artifact at `path` with another manifest and the hash to match."""
    with Artifact.open(path) as artifact:
        members = [(name, artifact.member_bytes(name)) for name in artifact.members[:-2]]
    return build_zip(path, [*members, ("manifest.json", manifest), ("manifest.sha256", manifest_hash_line(manifest))])


def manifest_of(path: Path) -> dict[str, Any]:
    with Artifact.open(path) as artifact:
        return copy.deepcopy(artifact.manifest)


def test_files_that_are_no_artifact(tmp_path: Path, artifact_path: Path) -> None:
    cases: list[tuple[bytes, str, str]] = [
        (b"", "LLC0707", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "LLC0706", "git lfs pull"),
        (b"GGUF\3\0\0\0", "LLC0705", "llamac compile"),
        (b"<!DOCTYPE html><p>Not found", "LLC0705", "web page"),
        (b"hello, world" * 1000, "LLC0705", "not a llamac artifact"),
        (b"PK", "LLC0707", "after 2 bytes"),
        (bytes(5000), "LLC0705", "not a llamac artifact"),
    ]
    for data, code, text in cases:
        path = tmp_path / "case"
        path.write_bytes(data)
        error = open_error(path)
        assert error.code == code and text in error.message()
        assert [finding.code for finding in verify_file(path)] == [code]


def test_files_that_cannot_be_opened(tmp_path: Path, artifact_path: Path) -> None:
    assert "folder" in open_error(tmp_path).reason
    assert "did you mean 'small.llamac'" in open_error(tmp_path / "smal.llamac").reason
    os.mkfifo(tmp_path / "pipe")
    names = ("missing", "pipe", "a\0b", "small.llamac/x")
    for path in (tmp_path, Path("/dev/null"), *(tmp_path / name for name in names)):
        assert open_error(path).code == "LLC0704"
        with pytest.raises(LlamacError, match="LLC0704"):
            verify_file(path)


def test_an_ordinary_zip_file_is_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("manifest.json", "{}" * 100)
        assert open_error(tmp_path / "a.zip").code == "LLC0708"
    build_zip(tmp_path / "b.zip", [("data.pkl", b"abc")])
    assert open_error(tmp_path / "b.zip").code == "LLC0705"


def test_truncation_is_named_with_its_sizes(tmp_path: Path, artifact_path: Path) -> None:
    data = artifact_path.read_bytes()
    cut = tmp_path / "cut.llamac"
    lengths = {*range(0, len(data), 97), *range(len(data) - 1200, len(data)), *range(60), *range(4080, 4120)}
    for length in sorted(lengths):
        cut.write_bytes(data[:length])
        error = open_error(cut, "none")
        assert error.code == "LLC0707", (length, error)
        assert "truncated" in error.reason and f"{length} bytes" in error.reason
    with Artifact.open(artifact_path) as artifact:
        offset, nbytes = artifact.member_offset(WEIGHTS)
    cut.write_bytes(data[: offset + 5])
    assert f"inside the member {WEIGHTS}, which needs {offset + nbytes} bytes" in open_error(cut).reason


def test_bytes_after_the_end(artifact_path: Path) -> None:
    size = artifact_path.stat().st_size
    with artifact_path.open("ab") as file:
        file.write(b"\n" * 100)
    error = open_error(artifact_path)
    assert (
        error.code == "LLC0708"
        and f"100 bytes follow the end of the artifact, which should have {size}" in error.reason
    )


def test_a_newer_schema_names_its_maker(artifact_path: Path) -> None:
    newer = {**manifest_of(artifact_path), "schema": 2, "producer": "llamac 9.0\x1b[31m", "weights": "moved"}
    text = canonical_json(newer)
    only_a_manifest = artifact_path.with_name("other.llamac")
    build_zip(only_a_manifest, [("manifest.json", text), ("manifest.sha256", manifest_hash_line(text))])
    for path in (with_manifest(artifact_path, text), only_a_manifest):
        for check in ("none", "load", "full"):
            error = open_error(path, check)
            assert error.code == "LLC0710" and "newer llamac" in error.reason and "llamac 9.0" in error.reason
            assert "\x1b" not in error.message() and "upgrade" in error.hint


def test_unknown_keys_are_ignored(artifact_path: Path) -> None:
    manifest = manifest_of(artifact_path)
    manifest["certificate"] = {"seeds": [1]}
    manifest["model"]["family"] = "llama"
    with_manifest(artifact_path, canonical_json(manifest))
    assert verify_file(artifact_path) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{", "LLC0709"),
        (b"\xff\xfe", "LLC0709"),
        (b'{"format": "llamac-artifact", "format": "x"}', "LLC0709"),
        (b'{"format": NaN}', "LLC0709"),
        (b'{"format": ' + b"9" * 5000 + b"}", "LLC0709"),
        (b"[" * 100_000, "LLC0709"),
        (b'{"format": "llamac-artifact", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "LLC0709"),
        (b'{"format": "llamac-artifact", "x": ' + b'{"a": ' * 200 + b"1" + b"}" * 201, "LLC0709"),
        (b"[]", "LLC0705"),
        (b'{"format": "other"}', "LLC0705"),
        (b'{"format": "llamac-artifact"}', "LLC0711"),
        (b'{"format": "llamac-artifact", "schema": true}', "LLC0711"),
    ],
)
def test_manifests_that_are_none(artifact_path: Path, text: bytes, code: str) -> None:
    assert open_error(with_manifest(artifact_path, text)).code == code


def test_every_required_key_is_missed_by_name(artifact_path: Path) -> None:
    whole = manifest_of(artifact_path)
    for key in SCHEMA:
        if key.optional or key.path.endswith(("[]", "{}")):
            continue
        manifest = copy.deepcopy(whole)
        *parents, last = key.path.replace("[]", ".[]").replace("{}", ".{}").split(".")
        holder: Any = manifest
        for step in parents:
            holder = holder[0] if step == "[]" else next(iter(holder.values())) if step == "{}" else holder[step]
        del holder[last]
        with pytest.raises(LlamacError, match="is missing") as caught:
            check_manifest(manifest, "a")
        assert caught.value.code == "LLC0711" and last in caught.value.reason
        holder[last] = {"a": []} if not key.kind.startswith("object") else 3
        with pytest.raises(LlamacError, match=r"must be|must have") as caught:
            check_manifest(manifest, "a")
        assert last in caught.value.reason


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        holder: Any = manifest
        *parents, last = path.split("/")
        for step in parents:
            holder = holder[int(step) if step.isdigit() else step]
        holder[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_set("schema", 0), "schema must be 1"),
        (_set("targets/0/code", "code/none.so"), "targets[0].code names the member 'code/none.so'"),
        (_set("targets/0/layout", "other"), "targets[0].layout names 'other'"),
        (_set("chat_template", "chat.jinja"), "chat_template names the member"),
        (_set("tokenizer/files", {"a": "b"}), "tokenizer.files['a'] names the member 'b'"),
        (_set("weights/0/bytes", 2399), "weights[0].bytes differs"),
        (_set("weights/0/tensors/0/bytes", 1 << 62), "'embed' reaches beyond"),
        (_set("weights/0/tensors/0/offset", -1), "tensors[0].offset must be an integer >= 0, is -1"),
        (_set("weights/0/tensors/0/name", "norm"), "'norm' is there twice"),
        (_set("memory/arena_bytes", 1.5), "memory.arena_bytes must be an integer"),
        (_set("memory/arena_bytes", True), "memory.arena_bytes must be an integer"),
        (_set("members/code", {"bytes": 1}), "must have either sha256"),
    ],
)
def test_keys_that_contradict_one_another(
    artifact_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    manifest = manifest_of(artifact_path)
    change(manifest)
    error = open_error(with_manifest(artifact_path, canonical_json(manifest)), "none")
    assert error.code == "LLC0711" and text in error.reason


def test_member_tables_that_differ_from_the_file(artifact_path: Path) -> None:
    for name, record in (("extra", {"bytes": 0, "sha256": "0" * 64}), (WEIGHTS, None), ("code/x86-64-v3.so", "size")):
        path = artifact_path.with_name("other.llamac")
        path.write_bytes(artifact_path.read_bytes())
        manifest = manifest_of(path)
        if record == "size":
            manifest["members"][name]["bytes"] += 1
        elif record is None:
            manifest["members"]["moved"] = manifest["members"].pop(name)
            manifest["weights"][0]["member"] = "moved"
        else:
            manifest["members"][name] = record
        assert open_error(with_manifest(path, canonical_json(manifest)), "none").code == "LLC0709"


def test_members_that_are_not_there(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        for use in (artifact.map, artifact.member_bytes, artifact.member_offset):
            with pytest.raises(LlamacError, match=r"LLC0713.*did you mean 'code/x86-64-v3\.so'"):
                use("code/x86-64-v4.so")


def test_members_are_checked_when_they_are_read(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        offset, _ = artifact.member_offset("tokenizer/vocabulary.json")
        weights_offset, _ = artifact.member_offset(WEIGHTS)
    data = bytearray(artifact_path.read_bytes())
    data[offset] ^= 1
    data[weights_offset + 1500] ^= 1
    artifact_path.write_bytes(data)
    with Artifact.open(artifact_path) as artifact:
        for name in ("tokenizer/vocabulary.json", WEIGHTS):
            with pytest.raises(LlamacError, match="LLC0712"):
                artifact.member_bytes(name)
        assert artifact.map(WEIGHTS).size == 2400
    with Artifact.open(artifact_path, check="none") as artifact:
        assert artifact.member_bytes("tokenizer/vocabulary.json") == bytes([ord("[") ^ 1]) + b'"a", "b"]'
    assert open_error(artifact_path, "full").code == "LLC0712"


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 400])
def test_numbers_that_no_float_holds(artifact_path: Path, number: bytes) -> None:
    text = canonical_json(manifest_of(artifact_path)).replace(b"1.5", number)
    error = open_error(with_manifest(artifact_path, text))
    assert error.code == "LLC0711" and "golden.vectors[0].top[0][1]" in error.reason


def test_a_file_that_shrinks_before_it_is_mapped(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        with artifact_path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(LlamacError, match="LLC0704"):
            artifact.map(WEIGHTS)


def test_a_file_that_shrinks_while_open(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        with artifact_path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(LlamacError, match="LLC0707"):
            artifact.member_bytes(WEIGHTS)


def test_arrays_outlive_the_artifact(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        weights = artifact.map(WEIGHTS)
        first = int(weights[0])
    artifact_path.unlink()
    assert int(weights[0]) == first


def test_hostile_member_names(tmp_path: Path) -> None:
    for name in ("../evil", "/etc/passwd", "a/../../b", "C:\\a", "a\x1b[2J"):
        error = open_error(build_zip(tmp_path / "a", [("manifest.json", b"{}"), (name, b"")]), "none")
        assert error.code == "LLC0708" and "not an allowed member name" in error.reason
        assert error.message().isprintable()
    for other in ("manifest.json", "Manifest.json"):
        error = open_error(build_zip(tmp_path / "a", [("manifest.json", b"{}"), (other, b"{}")]), "none")
        assert error.code == "LLC0708" and "two members" in error.reason


def _central_entry(data: bytes | bytearray, number: int) -> int:
    """Offset of an entry of the central directory."""
    at: int = struct.unpack_from("<Q", data, len(data) - 98 + 48)[0]
    for _ in range(number):
        name_bytes, extra_bytes = struct.unpack_from("<2H", data, at + 28)
        at += 46 + name_bytes + extra_bytes
    return at


@pytest.mark.parametrize(
    ("field", "kind", "value", "text"),
    [
        (8, "<H", 1, "encrypted"),
        (8, "<H", 8, "ZIP flags"),
        (10, "<H", 8, "compressed (method 8)"),
        (16, "<I", 7, "disagree"),
        (20, "<I", 7, "not in ZIP64 form"),
        (28, "<H", 65535, "beyond its end"),
        (30, "<H", 3, "ZIP64 extra field"),
        (32, "<H", 1, "entry"),
        (34, "<H", 1, "not in ZIP64 form"),
        ("extra", "<H", 2, "ZIP64 extra field"),
        ("extra+4", "<Q", 1 << 63, "differ"),
        ("extra+20", "<Q", 1 << 63, "beyond the end of the file"),
        ("extra+20", "<Q", 0, "inside the member before it"),
        ("extra+20", "<Q", 5000, "no local header"),
    ],
)
def test_every_field_of_the_directory_is_checked(
    artifact_path: Path, field: int | str, kind: str, value: int, text: str
) -> None:
    data = bytearray(artifact_path.read_bytes())
    at = _central_entry(data, 1)
    name_bytes = struct.unpack_from("<H", data, at + 28)[0]
    place = field if isinstance(field, int) else 46 + name_bytes + int(field.removeprefix("extra") or 0)
    struct.pack_into(kind, data, at + place, value)
    artifact_path.write_bytes(data)
    error = open_error(artifact_path, "none")
    assert error.code == "LLC0708" and text in error.message()


def test_sizes_that_reach_beyond_the_file(artifact_path: Path) -> None:
    data = bytearray(artifact_path.read_bytes())
    at = _central_entry(data, 2)
    name_bytes = struct.unpack_from("<H", data, at + 28)[0]
    offset = struct.unpack_from("<Q", data, at + 46 + name_bytes + 20)[0]
    for size in (1 << 40, (1 << 64) - 1):
        struct.pack_into("<2Q", data, at + 46 + name_bytes + 4, size, size)
        struct.pack_into("<2Q", data, offset + 30 + name_bytes + 4, size, size)
        artifact_path.write_bytes(data)
        error = open_error(artifact_path, "none")
        assert error.code == "LLC0708" and f"its {size} bytes" in error.reason


def test_manifest_hash_is_compared(artifact_path: Path) -> None:
    data = artifact_path.read_bytes()
    artifact_path.write_bytes(data.replace(b"the scheme keeps it", b"The scheme keeps it"))
    assert open_error(artifact_path).code == "LLC0709"
    with Artifact.open(artifact_path, check="none") as artifact:
        assert artifact.manifest["ledger"][0]["reason"] == "The scheme keeps it"

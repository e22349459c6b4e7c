"""Verification covers every byte: each single flip is found, and the finding says what is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llamac.artifact import layout
from llamac.artifact.manifest import SCHEMA
from llamac.artifact.read import Artifact
from llamac.artifact.verify import verify_file
from llamac.errors import LlamacError

Make = Callable[..., Path]
WEIGHTS = "weights/cpu-panel16.bin"


def flip(path: Path, offset: int, mask: int = 0x20) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def load_fails(path: Path) -> bool:
    try:
        Artifact.open(path).close()
    except LlamacError:
        return True
    return False


def checked_at_load(path: Path) -> set[int]:
    """Every byte that loading must check: all but the data of weights and tokenizer."""
    with Artifact.open(path) as artifact:
        places = set(range(artifact.size))
        for name in (WEIGHTS, "tokenizer/vocabulary.json"):
            offset, nbytes = artifact.member_offset(name)
            places -= set(range(offset, offset + nbytes))
    return places


def flip_each(path: Path, offsets: Iterable[int]) -> None:
    at_load = checked_at_load(path)
    descriptor = os.open(path, os.O_RDWR)
    original = path.read_bytes()
    try:
        for offset in offsets:
            os.pwrite(descriptor, bytes([original[offset] ^ (1 << offset % 8)]), offset)
            assert verify_file(path), f"verify missed a flip of byte {offset}"
            assert load_fails(path) == (offset in at_load), f"byte {offset}"
            os.pwrite(descriptor, original[offset : offset + 1], offset)
    finally:
        os.close(descriptor)
    assert verify_file(path) == []


def test_every_single_flip_is_found(tmp_path: Path, write_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of the file, with members aligned to 64 bytes instead of 4096 to leave out thousands of zeros."""
    monkeypatch.setattr(layout, "ALIGNMENT", 64)
    path = write_artifact(tmp_path / "dense.llamac")
    flip_each(path, range(path.stat().st_size))


def test_flips_in_page_padding_are_found(artifact_path: Path) -> None:
    flip_each(artifact_path, range(0, artifact_path.stat().st_size, 41))


@pytest.mark.slow
def test_every_single_flip_is_found_at_page_alignment(artifact_path: Path) -> None:
    flip_each(artifact_path, range(artifact_path.stat().st_size))


def test_the_finding_names_block_and_tensors(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        offset, _ = artifact.member_offset(WEIGHTS)
    flip(artifact_path, offset + 1450)
    flip(artifact_path, offset + 2100)
    second, third = verify_file(artifact_path)
    assert (second.code, second.member, second.offset, second.nbytes) == ("LLC0712", WEIGHTS, offset + 1024, 1024)
    assert second.tensors == ("norm", "head") and third.tensors == ("head",)
    assert "block 1 (bytes 1024 to 2048)" in second.reason and "norm, head" in second.reason
    assert second.to_json()["tensors"] == ["norm", "head"]
    assert str(third.to_error("a.llamac")).startswith(f"LLC0712 a.llamac:{WEIGHTS}: block 2")


def test_several_damages_are_all_listed(artifact_path: Path) -> None:
    with Artifact.open(artifact_path) as artifact:
        places = {name: artifact.member_offset(name)[0] for name in artifact.members}
    flip(artifact_path, places["code/x86-64-v3.so"])
    flip(artifact_path, places[WEIGHTS])
    flip(artifact_path, places[WEIGHTS] - 1)
    findings = verify_file(artifact_path)
    assert [finding.code for finding in findings] == ["LLC0708", "LLC0712", "LLC0712"]
    assert f"local header of {WEIGHTS}" in findings[0].reason
    assert [finding.member for finding in findings[1:]] == ["code/x86-64-v3.so", WEIGHTS]
    flip(artifact_path, places["manifest.json"])
    assert [finding.code for finding in verify_file(artifact_path)] == ["LLC0709"]


def test_progress_reaches_the_end(artifact_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify_file(artifact_path, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0
    again: list[Any] = []
    Artifact.open(artifact_path, "full", lambda done, total: again.append((done, total))).close()
    assert again == seen


def test_the_documentation_lists_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs/artifact-format.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 4]
    expected = [
        f"| `{key.path}` | {key.kind}{', optional' if key.optional else ''} | {key.meaning} |" for key in SCHEMA
    ]
    assert [row for row in rows if row in expected] == expected

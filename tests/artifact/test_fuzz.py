"""Fuzzed artifacts: whatever is in the file, reading it either works or raises a coded, printable error."""

from __future__ import annotations

import copy
import json
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamac.artifact.directory import read_members
from llamac.artifact.manifest import check_manifest, parse_manifest
from llamac.artifact.read import Artifact
from llamac.artifact.source_file import SourceFile
from llamac.artifact.verify import verify_file
from llamac.errors import LlamacError

FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
CHECKS: tuple[Literal["none", "load"], ...] = ("none", "load")


def use_everything(path: Path) -> None:
    """Opens the file and touches all members; only coded errors may come out."""
    for check in CHECKS:
        try:
            with Artifact.open(path, check=check) as artifact:
                for name in artifact.members:
                    artifact.map(name)
                    artifact.member_bytes(name)
        except LlamacError as error:
            assert error.message().isprintable()
    verify_file(path)


def header_places(path: Path) -> list[int]:
    """Offsets of the bytes of all headers, most of the padding left out, and of the directory."""
    with closing(SourceFile(path)) as source:
        members = read_members(source)
        places = list(range(members[-1].end, source.size))
    for member in members:
        places += range(member.header_offset, member.header_offset + 30 + len(member.name) + 26)
    return places


VALUES = st.sampled_from([0, 1, 2, 8, 127, 128, 255])


@FUZZ
@given(data=st.data())
def test_headers(artifact_path: Path, data: st.DataObject) -> None:
    edit = st.tuples(st.sampled_from(header_places(artifact_path)), VALUES)
    fuzzed = bytearray(artifact_path.read_bytes())
    for place, value in data.draw(st.lists(edit, min_size=1, max_size=8)):
        fuzzed[place] = value
    path = artifact_path.with_name("fuzzed.llamac")
    path.write_bytes(fuzzed)
    use_everything(path)


@FUZZ
@given(start=st.integers(0, 20_000), length=st.integers(0, 6000), to=st.integers(0, 20_000), tail=st.binary(max_size=9))
def test_spliced_files(artifact_path: Path, start: int, length: int, to: int, tail: bytes) -> None:
    whole = artifact_path.read_bytes()
    path = artifact_path.with_name("spliced.llamac")
    path.write_bytes(whole[:to] + whole[start : start + length] + whole[to:] + tail)
    use_everything(path)
    path.write_bytes(whole[:start] + whole[start + length :])
    use_everything(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(data=st.data())
def test_manifests(artifact_path: Path, data: st.DataObject) -> None:
    """One value anywhere in the manifest is replaced by any other JSON value."""
    with Artifact.open(artifact_path) as artifact:
        manifest = copy.deepcopy(artifact.manifest)
    holder: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not holder[key] or not isinstance(holder[key], (dict, list)) or data.draw(st.integers(0, 3)) == 0:
            break
        holder = holder[key]
    holder[key] = data.draw(JSON)
    try:
        check_manifest(parse_manifest(json.dumps(manifest).encode(), "a"), "a")
    except LlamacError as error:
        assert error.message().isprintable()

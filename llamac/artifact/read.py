"""Opens an artifact: what is read is checked first, weights are mapped in place, nothing from the file is executed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from llamac.errors import did_you_mean

from .directory import read_members
from .integrity import Finding, Progress, data_findings, header_findings, member_findings
from .layout import Member
from .manifest import (
    MANIFEST,
    MANIFEST_HASH,
    MAXIMUM_MANIFEST_BYTES,
    Manifest,
    check_manifest,
    manifest_hash_line,
    parse_manifest,
)
from .source_file import SourceFile

Check = Literal["none", "load", "full"]


class Artifact:
    """An open artifact. Make it with `Artifact.open`; it is a context manager.

    manifest: the parsed and validated manifest.json; members: names in file order; size: bytes of the file.
    """

    def __init__(self, source: SourceFile, members: tuple[Member, ...], manifest: Manifest, check: Check) -> None:
        self.path = source.path
        self.size = source.size
        self.manifest: Manifest = manifest
        self._source = source
        self._check = check
        self._members = {member.name: member for member in members}

    @classmethod
    def open(cls, path: str | Path, check: Check = "load", progress: Progress | None = None) -> Artifact:
        """Opens and validates; every failure is a coded error (LLC0704 to LLC0712).

        check: "none" validates the container and the manifest's keys but compares no hash; "load" also compares all
        headers, the manifest and the code with what was written, and later each member that `member_bytes` reads;
        "full" hashes everything, weights included (`progress` follows it).
        """
        if check not in ("none", "load", "full"):
            raise ValueError(f"check must be none, load or full, not {check!r}")
        source = SourceFile(path)
        try:
            members = read_members(source)
            manifest = read_manifest(source, members, check_hash=check != "none")
            artifact = cls(source, members, manifest, check)
            artifact._raise_first(artifact._findings(progress))
        except BaseException:
            source.close()
            raise
        return artifact

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, in file order."""
        return tuple(self._members)

    def member_offset(self, name: str) -> tuple[int, int]:
        """(offset of the data in the file, bytes); the offset is a multiple of 4096."""
        member = self._member(name)
        return member.data_offset, member.nbytes

    def member_bytes(self, name: str) -> bytes:
        """A private copy of a member, compared with its hash first (LLC0712) unless opened with check="none"."""
        member = self._member(name)
        data = self._source.read_at(member.data_offset, member.nbytes)
        if self._check != "none" and not self._matches(name, data):
            self._source.fail("LLC0712", "its bytes differ from their SHA-256", member=name)
        return data

    def map(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a member mapped in place: read-only, page-aligned, paged in on use, not hashed."""
        member = self._member(name)
        if not member.nbytes:
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(self._source.mapping(), np.uint8, member.nbytes, member.data_offset)

    def send(self, name: str, start: int, nbytes: int, descriptor: int) -> int:
        """Copies bytes of a member from `start` to where `descriptor` stands, unhashed; how many, at most `nbytes`.

        LLC0707 when the file has become shorter meanwhile; OSError when `descriptor` cannot take them.
        """
        sent = self._source.copy_into(self._member(name).data_offset + start, nbytes, descriptor)
        if not sent:
            self._source.fail("LLC0707", "the file ends within this member", member=name)
        return sent

    def member_crc(self, name: str) -> int:
        """The CRC-32 of a member as the ZIP headers have it."""
        return self._member(name).crc

    def close(self) -> None:
        """Closes the file; arrays from `map` stay valid."""
        self._source.close()

    def _member(self, name: str) -> Member:
        if name not in self._members:
            near = did_you_mean(name, self._members)
            self._source.fail("LLC0713", f"has no member {ascii(name)[:80]}{near}", "list them with: unzip -l FILE")
        return self._members[name]

    def _matches(self, name: str, data: bytes) -> bool:
        """Whether the copy just read has the hashes of the manifest; the manifest itself was checked at open."""
        record = self.manifest["members"].get(name)
        if record is None:
            return name in (MANIFEST, MANIFEST_HASH)
        block_bytes = record.get("block_bytes") or max(1, len(data))
        expected = record["sha256_blocks"] if "sha256_blocks" in record else [record["sha256"]]
        view = memoryview(data)
        starts = range(0, len(data), block_bytes) if len(data) or "sha256_blocks" in record else (0,)
        return [hashlib.sha256(view[start : start + block_bytes]).hexdigest() for start in starts] == expected

    def _findings(self, progress: Progress | None) -> Iterator[Finding]:
        if self._check == "none":
            return
        members = tuple(self._members.values())
        yield from header_findings(self._source, members)
        if self._check == "full":
            yield from data_findings(self._source, members, self.manifest, progress)
            return
        code = {target[key] for target in self.manifest["targets"] for key in ("code", "source")}
        for member in members:
            if member.name in code:
                yield from member_findings(self._source, member, self.manifest)

    def _raise_first(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            raise finding.to_error(self.path)


def read_manifest(source: SourceFile, members: tuple[Member, ...], check_hash: bool) -> Manifest:
    """Reads, verifies and validates manifest.json, and checks that it lists exactly the members of the file."""
    by_name = {member.name: member for member in members}
    if MANIFEST not in by_name:
        source.fail("LLC0705", f"is a ZIP file without {MANIFEST}", "name a file made by llamac compile")
    member = by_name[MANIFEST]
    if member.nbytes > MAXIMUM_MANIFEST_BYTES:
        source.fail("LLC0709", f"{MANIFEST} has {member.nbytes} bytes, more than {MAXIMUM_MANIFEST_BYTES}")
    data = source.read_at(member.data_offset, member.nbytes)
    if check_hash:
        _check_manifest_hash(source, by_name.get(MANIFEST_HASH), data)
    manifest = parse_manifest(data, str(source.path))
    check_manifest(manifest, str(source.path))
    _check_member_table(source, by_name, manifest)
    return manifest


def _check_manifest_hash(source: SourceFile, member: Member | None, data: bytes) -> None:
    if member is None:
        source.fail("LLC0709", f"{MANIFEST_HASH} is missing")
    expected = manifest_hash_line(data)
    if member.nbytes != len(expected) or source.read_at(member.data_offset, member.nbytes) != expected:
        source.fail("LLC0709", f"{MANIFEST} differs from its SHA-256 in {MANIFEST_HASH}")


def _check_member_table(source: SourceFile, by_name: dict[str, Member], manifest: Manifest) -> None:
    records = manifest["members"]
    for name, member in by_name.items():
        if name in (MANIFEST, MANIFEST_HASH):
            continue
        if name not in records:
            source.fail("LLC0709", f"{MANIFEST} does not list this member", member=name)
        if records[name]["bytes"] != member.nbytes:
            reason = f"has {member.nbytes} bytes, {MANIFEST} says {records[name]['bytes']}"
            source.fail("LLC0709", reason, member=name)
    for name in records:
        if name not in by_name or name in (MANIFEST, MANIFEST_HASH):
            source.fail("LLC0709", f"{MANIFEST} lists the member {ascii(name)[:80]}, which is not in the file")

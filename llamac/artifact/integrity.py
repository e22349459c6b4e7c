"""Compares an artifact with its hashes and its canonical headers; says which block and which tensors are damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError

from .directory import header_damage
from .hashing import MemberHasher
from .layout import Member
from .manifest import MANIFEST, Manifest, canonical_json, manifest_hash_line
from .source_file import SourceFile

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while long hashes run."""

READ_BYTES = 4 << 20
_TENSORS_IN_MESSAGE = 4


@dataclass(frozen=True)
class Finding:
    """One damaged stretch of an artifact.

    code: as in `llamac.errors`; member: empty when the finding is not about one member;
    offset, nbytes: the stretch within the file; tensors: names of the weights that touch it.
    """

    code: str
    reason: str
    member: str = ""
    offset: int = 0
    nbytes: int = 0
    tensors: tuple[str, ...] = ()

    def to_error(self, path: object) -> LlamacError:
        """The same as a coded error about the artifact at `path`."""
        where = f"{path}:{self.member}" if self.member else str(path)
        return LlamacError(self.code, where, self.reason, "get the file again from its source, or compile it again")

    def to_json(self) -> dict[str, Any]:
        """The machine-readable form that `--json` prints."""
        return {
            "code": self.code,
            "reason": self.reason,
            "member": self.member,
            "offset": self.offset,
            "bytes": self.nbytes,
            "tensors": list(self.tensors),
        }


def member_findings(
    source: SourceFile, member: Member, manifest: Manifest, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Finding]:
    """Hashes one member of the manifest's table, reading 4 MiB at a time; `on_bytes` gets the size of each read."""
    record = manifest["members"][member.name]
    block_bytes: int | None = record.get("block_bytes")
    hasher = MemberHasher(block_bytes)
    for piece in _pieces(source, member):
        hasher.update(piece)
        on_bytes(len(piece))
    expected = record["sha256_blocks"] if block_bytes is not None else [record["sha256"]]
    digests = hasher.finish()
    for number, digest in enumerate(digests):
        if digest != expected[number]:
            yield _block_finding(member, manifest, number, block_bytes)
    if digests == expected and hasher.crc != member.crc:
        reason = f"its CRC-32 is {hasher.crc:08x}, the ZIP headers say {member.crc:08x}"
        yield Finding("LLC0712", reason, member.name, member.data_offset, member.nbytes)


def header_findings(source: SourceFile, members: tuple[Member, ...]) -> Iterator[Finding]:
    """Headers, padding and directory that are not byte for byte what llamac writes."""
    for offset, nbytes, what in header_damage(source, members):
        yield Finding("LLC0708", f"{what} is not as llamac writes it", "", offset, nbytes)


def data_findings(
    source: SourceFile, members: tuple[Member, ...], manifest: Manifest, progress: Progress | None
) -> Iterator[Finding]:
    """Every member's bytes against SHA-256 and CRC-32, the manifest's own included."""
    total = sum(member.nbytes for member in members)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for member in members:
        if member.name in manifest["members"]:
            yield from member_findings(source, member, manifest, advance)
        else:
            yield from _manifest_findings(source, member, manifest)
            advance(member.nbytes)


def _manifest_findings(source: SourceFile, member: Member, manifest: Manifest) -> Iterator[Finding]:
    """manifest.json must be the canonical text of what it says; manifest.sha256 was compared when it was read."""
    data = source.read_at(member.data_offset, member.nbytes)
    try:
        canonical = canonical_json(manifest)
    except ValueError:
        canonical = b""
    expected = canonical if member.name == MANIFEST else manifest_hash_line(canonical)
    if data != expected:
        yield Finding("LLC0709", "is not in canonical form", member.name, member.data_offset, member.nbytes)
    elif zlib.crc32(data) != member.crc:
        reason = f"its CRC-32 is {zlib.crc32(data):08x}, the ZIP headers say {member.crc:08x}"
        yield Finding("LLC0712", reason, member.name, member.data_offset, member.nbytes)


def _pieces(source: SourceFile, member: Member) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(READ_BYTES, member.nbytes)))
    for start in range(0, member.nbytes, READ_BYTES):
        piece = buffer[: min(READ_BYTES, member.nbytes - start)]
        source.read_into(member.data_offset + start, piece)
        yield piece


def _block_finding(member: Member, manifest: Manifest, number: int, block_bytes: int | None) -> Finding:
    if block_bytes is None:
        return Finding("LLC0712", "its bytes differ from their SHA-256", member.name, member.data_offset, member.nbytes)
    start = number * block_bytes
    stop = min(start + block_bytes, member.nbytes)
    tensors = _tensors_between(manifest, member.name, start, stop)
    reason = f"block {number} (bytes {start} to {stop}) differs from its SHA-256; {_tensor_text(tensors)}"
    return Finding("LLC0712", reason, member.name, member.data_offset + start, stop - start, tensors)


def _tensors_between(manifest: Manifest, member: str, start: int, stop: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for entry in manifest["weights"]:
        for tensor in entry["tensors"] if entry["member"] == member else ():
            if tensor["offset"] < stop and tensor["offset"] + tensor["bytes"] > start:
                names[tensor["name"]] = None
    return tuple(names)


def _tensor_text(tensors: tuple[str, ...]) -> str:
    if not tensors:
        return "no tensor lies in it"
    shown = ", ".join(
        name if name.isascii() and name.isprintable() else ascii(name) for name in tensors[:_TENSORS_IN_MESSAGE]
    )
    more = len(tensors) - _TENSORS_IN_MESSAGE
    return f"tensors in it: {shown}" + (f" and {more} more" if more > 0 else "")

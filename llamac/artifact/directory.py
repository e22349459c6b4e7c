"""Reads the ZIP64 directory of an untrusted file: every number is checked before it is used.

`read_members` guarantees that the members lie inside the file, one after another without overlap, on page boundaries,
stored plainly, with safe and distinct names, and that local headers and central directory agree. That the headers are
also, byte for byte, what llamac writes is `header_damage`'s question: it is asked after the schema version is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NoReturn

from . import layout
from .layout import CENTRAL, END, END64, END_BYTES, IN_ZIP64_32, LOCAL, LOCATOR, Member
from .source_file import SourceFile

MAXIMUM_MEMBERS = 10_000
MAXIMUM_ENTRY_BYTES = 1024
_LOCAL_READ_BYTES = LOCAL.size + layout.MAXIMUM_NAME_BYTES + 65535


def read_members(source: SourceFile) -> tuple[Member, ...]:
    """The members in file order; LLC0705, LLC0707 or LLC0708 when the container is not sound."""
    first = source.read_at(0, min(4, source.size))
    if not layout.LOCAL_SIGNATURE.startswith(first[:4]):
        source.fail("LLC0705", "is not a llamac artifact: it does not begin like a ZIP file", "check the path")
    count, offset, nbytes = _read_end_records(source)
    members = tuple(_parse_directory(source, source.read_at(offset, nbytes), count))
    _check_names(source, members)
    position = 0
    for member in members:
        if member.header_offset < position:
            _damaged(source, "its header lies inside the member before it", member.name)
        data_offset = _check_local_header(source, member, offset)
        position = data_offset + member.nbytes
    return members


def header_damage(source: SourceFile, members: tuple[Member, ...]) -> Iterator[tuple[int, int, str]]:
    """(offset, bytes, what) for every header and gap that is not exactly what the writer makes of these members."""
    position = 0
    for member in members:
        if member.header_offset != position:
            yield position, abs(member.header_offset - position), f"the gap before {member.name}"
        expected = layout.local_header(member)
        if not _holds(source, member.header_offset, expected):
            yield member.header_offset, len(expected), f"the local header of {member.name}"
        position = member.end
    tail = layout.directory(members)
    if position + len(tail) != source.size or not _holds(source, position, tail):
        yield position, source.size - position, "the ZIP directory"


def _holds(source: SourceFile, offset: int, expected: bytes) -> bool:
    inside = offset + len(expected) <= source.size
    return inside and source.read_at(offset, len(expected)) == expected


def _read_end_records(source: SourceFile) -> tuple[int, int, int]:
    """(number of members, offset of the central directory, its size)."""
    if source.size < END_BYTES:
        _explain_missing_end(source)
    start = source.size - END_BYTES
    tail = source.read_at(start, END_BYTES)
    end64, locator, end = tail[: END64.size], tail[END64.size : -END.size], tail[-END.size :]
    if not end.startswith(layout.END_SIGNATURE):
        _explain_missing_end(source)
    if not (end64.startswith(layout.END64_SIGNATURE) and locator.startswith(layout.LOCATOR_SIGNATURE)):
        _foreign_or_damaged(source)
    _, rest, _, _, disk, directory_disk, here, count, nbytes, offset = END64.unpack(end64)
    _, locator_disk, end64_offset, disks = LOCATOR.unpack(locator)
    if (rest, disk, directory_disk, locator_disk, disks) != (END64.size - 12, 0, 0, 0, 1) or here != count:
        _damaged(source, "the ZIP64 end record is wrong")
    if end64_offset != start or offset + nbytes != start:
        _damaged(source, f"the ZIP directory should end at byte {start}, it says {offset + nbytes}")
    if not 0 < count <= MAXIMUM_MEMBERS or nbytes > count * MAXIMUM_ENTRY_BYTES:
        _damaged(source, f"the ZIP directory says {count} members in {nbytes} bytes")
    if END.unpack(end)[1:] != END.unpack(layout.directory(())[-END.size :])[1:]:
        _damaged(source, "the ZIP end record is wrong")
    return count, offset, nbytes


def _parse_directory(source: SourceFile, data: bytes, count: int) -> Iterator[Member]:
    position = 0
    for number in range(count):
        if len(data) - position < CENTRAL.size or data[position : position + 4] != layout.CENTRAL_SIGNATURE:
            _damaged(source, f"entry {number} of the ZIP directory is not there")
        fields = CENTRAL.unpack_from(data, position)
        _, _, _, flags, method, _, _, crc, stored, nbytes, name_bytes, extra_bytes, comment_bytes = fields[:13]
        name_start = position + CENTRAL.size
        position = name_start + name_bytes + extra_bytes + comment_bytes
        if position > len(data):
            _damaged(source, f"entry {number} of the ZIP directory reaches beyond its end")
        name = _name(source, data[name_start : name_start + name_bytes])
        _check_plain(source, name, flags, method)
        extra = data[name_start + name_bytes : name_start + name_bytes + extra_bytes]
        if comment_bytes or (stored, nbytes, fields[16]) != (IN_ZIP64_32,) * 3 or fields[13]:
            _damaged(source, "its entry in the ZIP directory is not in ZIP64 form", name)
        stored, nbytes, offset = _zip64_numbers(source, name, extra, 3)
        if stored != nbytes:
            _damaged(source, f"stored size {stored} and size {nbytes} differ", name)
        yield Member(name, nbytes, crc, offset)
    if position != len(data):
        _damaged(source, f"{len(data) - position} stray bytes follow the entries of the ZIP directory")


def _check_local_header(source: SourceFile, member: Member, limit: int) -> int:
    """Compares the local header with the directory entry; returns where the data starts."""
    name = member.name
    found, data_offset = _parse_local_header(source, member.header_offset)
    if found != member:
        _damaged(source, "its local header and the ZIP directory disagree", name)
    if data_offset != member.data_offset:
        _damaged(
            source, f"its data starts at byte {data_offset}, not on the page boundary at {member.data_offset}", name
        )
    if data_offset + member.nbytes > limit:
        _damaged(source, f"its {member.nbytes} bytes at {data_offset} reach beyond byte {limit}", name)
    return data_offset


def _parse_local_header(source: SourceFile, offset: int) -> tuple[Member, int]:
    """(member, offset of its data); the data may reach beyond the file."""
    if offset + LOCAL.size > source.size:
        _damaged(source, f"a local header at byte {offset} lies beyond the end of the file")
    data = source.read_at(offset, min(_LOCAL_READ_BYTES, source.size - offset))
    signature, _, flags, method, _, _, crc, stored, nbytes, name_bytes, extra_bytes = LOCAL.unpack_from(data)
    if signature != layout.LOCAL_SIGNATURE:
        _damaged(source, f"there is no local header at byte {offset}")
    if LOCAL.size + name_bytes + extra_bytes > len(data):
        _damaged(source, f"the local header at byte {offset} reaches beyond the end of the file")
    name = _name(source, data[LOCAL.size : LOCAL.size + name_bytes])
    _check_plain(source, name, flags, method)
    if (stored, nbytes) != (IN_ZIP64_32, IN_ZIP64_32):
        _damaged(source, "its local header is not in ZIP64 form", name)
    header_bytes = LOCAL.size + name_bytes + extra_bytes
    stored, nbytes = _zip64_numbers(source, name, data[LOCAL.size + name_bytes : header_bytes], 2)
    if stored != nbytes:
        _damaged(source, f"stored size {stored} and size {nbytes} differ", name)
    return Member(name, nbytes, crc, offset), offset + header_bytes


def _zip64_numbers(source: SourceFile, name: str, extra: bytes, count: int) -> tuple[int, ...]:
    """The numbers of the ZIP64 extra field, which must come first and hold exactly `count`."""
    if len(extra) < 4 + 8 * count or struct.unpack_from("<2H", extra) != (layout.ZIP64_EXTRA, 8 * count):
        _damaged(source, "its ZIP64 extra field is missing or wrong", name)
    return struct.unpack_from(f"<{count}Q", extra, 4)


def _check_plain(source: SourceFile, name: str, flags: int, method: int) -> None:
    if flags & 1:
        _damaged(source, "it is encrypted", name)
    if method != layout.STORED:
        _damaged(source, f"it is compressed (method {method}); members of an artifact are stored", name)
    if flags:
        _damaged(source, f"its ZIP flags are {flags:#06x}, not 0", name)


def _name(source: SourceFile, raw: bytes) -> str:
    name = raw.decode("ascii", errors="replace")
    if not layout.is_safe_name(name):
        _damaged(source, f"{ascii(name)[:80]} is not an allowed member name")
    return name


def _check_names(source: SourceFile, members: tuple[Member, ...]) -> None:
    seen: set[str] = set()
    for member in members:
        if member.name.lower() in seen:
            _damaged(source, "two members have this name", member.name)
        seen.add(member.name.lower())


def _explain_missing_end(source: SourceFile) -> NoReturn:
    """The file does not end as an artifact does: walks its members from the front to say how it went wrong."""
    members: list[Member] = []
    position = 0
    while source.size - position >= LOCAL.size and source.read_at(position, 4) == layout.LOCAL_SIGNATURE:
        if len(members) > MAXIMUM_MEMBERS:
            _foreign_or_damaged(source)
        header_end = LOCAL.size + sum(struct.unpack("<2H", source.read_at(position + 26, 4)))
        if position + header_end > source.size:
            _truncated(source, f"inside the header of a member at byte {position}")
        member, data_offset = _parse_local_header(source, position)
        position = data_offset + member.nbytes
        if position > source.size:
            _truncated(source, f"inside the member {member.name}, which needs {position} bytes")
        members.append(member)
    expected = position + len(layout.directory(members))
    if source.size < expected:
        _truncated(
            source, f"before its directory; with the members seen so far it would have at least {expected} bytes"
        )
    if source.size > expected and members and _holds(source, position, layout.directory(members)):
        extra = source.size - expected
        _damaged(source, f"{extra} bytes follow the end of the artifact, which should have {expected}")
    _foreign_or_damaged(source)


def _truncated(source: SourceFile, where: str) -> NoReturn:
    source.fail("LLC0707", f"truncated: the file ends after {source.size} bytes, {where}")


def _foreign_or_damaged(source: SourceFile) -> NoReturn:
    source.fail("LLC0708", "the ZIP end records are damaged, or another program than llamac wrote this ZIP file")


def _damaged(source: SourceFile, reason: str, member: str = "") -> NoReturn:
    source.fail("LLC0708", reason, member=member)

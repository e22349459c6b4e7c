"""The bytes of the ZIP64 container: every header of an artifact is a pure function of its members.

Writer and verifier share these functions, so "is this file exactly what llamac would have written?" is a comparison of
bytes. The structures are those of PKWARE's APPNOTE 6.3, section 4.3; ZIP64 fields are always present, so that a small
artifact and one of 800 GB take the same path. Members follow one another without gaps: what aligns the data of a member
to a page is the length of the extra field of its local header (id 0xD935, as Android's zipalign does it).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 4096
"""Data of every member starts at a multiple of this many bytes, so that it can be mapped in place."""

LOCAL = struct.Struct("<4s5H3I2H")
"""signature, version needed, flags, method, time, date, crc, stored size, size, name length, extra length"""
CENTRAL = struct.Struct("<4s6H3I5H2I")
"""signature, made by, then as LOCAL, then comment length, disk, internal and external attributes, header offset"""
END64 = struct.Struct("<4sQ2H2I4Q")
"""signature, size of the rest, made by, version needed, disk, directory disk, entries twice, directory size, offset"""
LOCATOR = struct.Struct("<4sIQI")
"""signature, disk, offset of END64, number of disks"""
END = struct.Struct("<4s4H2IH")
"""signature, disk, directory disk, entries twice, directory size, directory offset, comment length"""
END_BYTES = END64.size + LOCATOR.size + END.size

LOCAL_SIGNATURE, CENTRAL_SIGNATURE, END_SIGNATURE = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64_SIGNATURE, LOCATOR_SIGNATURE = b"PK\x06\x06", b"PK\x06\x07"

STORED = 0
VERSION_ZIP64 = 45
MADE_BY_UNIX = 3 << 8 | VERSION_ZIP64
DATE_1980_01_01 = 1 << 5 | 1
REGULAR_FILE_0644 = 0o100644 << 16
IN_ZIP64_16, IN_ZIP64_32 = 0xFFFF, 0xFFFFFFFF
ZIP64_EXTRA, ALIGNMENT_EXTRA = 0x0001, 0xD935

MAXIMUM_NAME_BYTES = 255
_MEMBER_NAME = re.compile(r"[A-Za-z0-9_+@=,.-]+(/[A-Za-z0-9_+@=,.-]+)*")


@dataclass(frozen=True)
class Member:
    """One stored file of the artifact: its size and CRC-32 in bytes, and where its local header starts."""

    name: str
    nbytes: int
    crc: int
    header_offset: int

    @property
    def data_offset(self) -> int:
        """Where the data starts: the first page boundary that leaves room for the header."""
        return self.header_offset + _local_header_bytes(self.name, self.header_offset)

    @property
    def end(self) -> int:
        """The first byte after the data, which is where the next header starts."""
        return self.data_offset + self.nbytes


def is_safe_name(name: str) -> bool:
    """Whether a member may be called this: relative, plain ASCII, no empty, '.' or '..' part, at most 255 bytes."""
    if len(name) > MAXIMUM_NAME_BYTES or not _MEMBER_NAME.fullmatch(name):
        return False
    return all(part.strip(".") for part in name.split("/"))


def _local_header_bytes(name: str, header_offset: int) -> int:
    shortest = LOCAL.size + len(name) + 4 + 16 + 6
    return shortest + -(header_offset + shortest) % ALIGNMENT


def local_header(member: Member) -> bytes:
    """The local file header, name and extra fields of a member; the data follows at once."""
    total = _local_header_bytes(member.name, member.header_offset)
    padding = total - LOCAL.size - len(member.name) - 4 - 16 - 6
    extra = struct.pack("<2H2Q", ZIP64_EXTRA, 16, member.nbytes, member.nbytes)
    extra += struct.pack("<3H", ALIGNMENT_EXTRA, 2 + padding, ALIGNMENT) + bytes(padding)
    fixed = LOCAL.pack(
        LOCAL_SIGNATURE, VERSION_ZIP64, 0, STORED, 0, DATE_1980_01_01,
        member.crc, IN_ZIP64_32, IN_ZIP64_32, len(member.name), len(extra),
    )  # fmt: skip
    return fixed + member.name.encode("ascii") + extra


def central_header(member: Member) -> bytes:
    """The entry of a member in the central directory."""
    extra = struct.pack("<2H3Q", ZIP64_EXTRA, 24, member.nbytes, member.nbytes, member.header_offset)
    fixed = CENTRAL.pack(
        CENTRAL_SIGNATURE, MADE_BY_UNIX, VERSION_ZIP64, 0, STORED, 0, DATE_1980_01_01,
        member.crc, IN_ZIP64_32, IN_ZIP64_32, len(member.name), len(extra), 0, 0, 0, REGULAR_FILE_0644, IN_ZIP64_32,
    )  # fmt: skip
    return fixed + member.name.encode("ascii") + extra


def directory(members: Sequence[Member]) -> bytes:
    """Everything after the last member: the central directory and the three end records."""
    entries = b"".join(central_header(member) for member in members)
    offset = members[-1].end if members else 0
    end64 = END64.pack(
        END64_SIGNATURE, END64.size - 12, MADE_BY_UNIX, VERSION_ZIP64, 0, 0,
        len(members), len(members), len(entries), offset,
    )  # fmt: skip
    locator = LOCATOR.pack(LOCATOR_SIGNATURE, 0, offset + len(entries), 1)
    end = END.pack(END_SIGNATURE, 0, 0, IN_ZIP64_16, IN_ZIP64_16, IN_ZIP64_32, IN_ZIP64_32, 0)
    return entries + end64 + locator + end

"""Writes an artifact: members streamed into a temporary file beside the output, renamed onto it once all is on disk.

The output appears complete or not at all. Whatever goes wrong - disk full, an exception, Ctrl-C - the temporary file is
removed and a file that was there before stays as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from llamac.errors import LlamacError

from .hashing import BLOCK_BYTES, MemberHasher
from .layout import Member, directory, is_safe_name, local_header
from .manifest import (
    MANIFEST,
    MANIFEST_HASH,
    MAXIMUM_MANIFEST_BYTES,
    Manifest,
    canonical_json,
    check_manifest,
    manifest_hash_line,
)
from .read import Artifact

ByteSource = bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[Any]]
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CHUNK_BYTES = 4 << 20
_COPIED_BYTES = 64 << 20
"""Bytes of a member that are copied at once, and then reported."""


class ArtifactWriter:
    """Use as a context manager: add members in the order they should have, then `finish` with the manifest.

    path: the `.llamac` file to make; its folder must exist.
    expected_bytes: refuse at once (LLC0702) when the folder has less free space than this.
    block_bytes: size of the hashed blocks of streamed members.
    """

    def __init__(self, path: str | Path, *, expected_bytes: int = 0, block_bytes: int = BLOCK_BYTES) -> None:
        self.path = Path(path)
        self._target = Path(os.path.realpath(self.path))
        self._expected_bytes = expected_bytes
        self._block_bytes = block_bytes
        self._descriptor = -1
        self._temporary: Path | None = None
        self._position = 0
        self._members: list[Member] = []
        self._records: dict[str, dict[str, Any]] = {}
        self._stream: MemberStream | None = None
        self._finished = False

    def __enter__(self) -> ArtifactWriter:
        self._check_target()
        self._require_space(self._expected_bytes)
        name = f".{self._target.name[:200]}.{secrets.token_hex(8)}.partial"
        self._temporary = self._target.parent / name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            self._temporary = None
            self._fail(error, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._abandon()
            if kind is None:
                self._misused("the writer was closed without finish()")

    def add_bytes(self, member: str, data: ByteSource) -> None:
        """Adds a whole member; the manifest gets one SHA-256 for it."""
        view = _byte_view(data)
        stream = self._open(member, len(view), None)
        stream.write(view)
        stream.close()

    def copy_member(
        self, artifact: Artifact, name: str, member: str = "", progress: Callable[[int], None] = lambda count: None
    ) -> None:
        """Adds the member `name` of another artifact, under another name where `member` is one, with its hashes.

        No byte is looked at, so damage in it is copied, and found by its hashes as before. `progress` gets the number
        of bytes of each piece.
        """
        record = artifact.manifest["members"][name]
        nbytes, crc = record["bytes"], artifact.member_crc(name)
        self._require_space(nbytes)
        copied = self._begin(member or name, nbytes, crc)
        done = 0
        while done < nbytes:
            try:
                sent = artifact.send(name, done, min(nbytes - done, _COPIED_BYTES), self._descriptor)
            except OSError as error:
                self._fail(error, nbytes - done)
            done += sent
            self._position += sent
            progress(sent)
        self._members.append(copied)
        self._records[copied.name] = dict(record)

    def open_stream(self, member: str, nbytes: int) -> MemberStream:
        """Starts a member of exactly `nbytes` bytes, to be written piece by piece before the next member is added."""
        self._require_space(nbytes)
        return self._open(member, nbytes, self._block_bytes)

    def finish(self, manifest: Manifest) -> int:
        """Adds `members` to the manifest, writes it, makes the file durable and visible; returns its size in bytes.

        The manifest is checked against the schema as a reader would (LLC0711); the caller's object is not changed.
        """
        self._close_stream()
        complete = {**manifest, "members": dict(self._records)}
        check_manifest(complete, str(self.path))
        data = canonical_json(complete)
        if len(data) > MAXIMUM_MANIFEST_BYTES:
            self._misused(f"the manifest has {len(data)} bytes, more than {MAXIMUM_MANIFEST_BYTES}")
        self.add_bytes(MANIFEST, data)
        self.add_bytes(MANIFEST_HASH, manifest_hash_line(data))
        tail = directory(self._members)
        self._write(memoryview(tail), len(tail))
        self._publish()
        return self._position

    def _check_target(self) -> None:
        folder = self._target.parent
        if not folder.is_dir():
            self._refuse(f"the folder {folder} does not exist", f"make it first: mkdir -p '{folder}'")
        if self._target.exists() and not self._target.is_file():
            self._refuse("it exists and is not a regular file", "name a .llamac file as output")

    def _require_space(self, needed: int) -> None:
        if needed > 0:
            free = self._free_bytes()
            if free < needed:
                raise self._disk_full(needed, free)

    def _free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self._target.parent).free
        except OSError as error:
            self._fail(error, 0)

    def _open(self, name: str, nbytes: int, block_bytes: int | None) -> MemberStream:
        self._stream = MemberStream(self, self._begin(name, nbytes, 0), block_bytes)
        return self._stream

    def _begin(self, name: str, nbytes: int, crc: int) -> Member:
        """Writes the header of the next member; its data comes next."""
        if self._descriptor < 0:
            self._misused("a member was added outside of the with block")
        self._close_stream()
        if not is_safe_name(name):
            self._misused(f"{name!r} cannot be the name of a member")
        if any(name.lower() == member.name.lower() for member in self._members):
            self._misused(f"the member {name!r} is added twice")
        member = Member(name, nbytes, crc, self._position)
        header = local_header(member)
        self._write(memoryview(header), len(header) + nbytes)
        return member

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _end_member(self, member: Member, hashes: dict[str, Any]) -> None:
        """Puts the CRC-32, now known, into the local header, and remembers the member for directory and manifest."""
        self._stream = None
        try:
            os.lseek(self._descriptor, member.header_offset, os.SEEK_SET)
            self._write_all(memoryview(local_header(member)))
            os.lseek(self._descriptor, self._position, os.SEEK_SET)
        except OSError as error:
            self._fail(error, 0)
        self._members.append(member)
        if member.name not in (MANIFEST, MANIFEST_HASH):
            self._records[member.name] = {"bytes": member.nbytes, **hashes}

    def _write(self, view: memoryview, needed: int) -> None:
        """Appends bytes; `needed` is what the member still wants, for the message when the disk is full."""
        try:
            self._write_all(view)
        except OSError as error:
            self._fail(error, needed)
        self._position += len(view)

    def _write_all(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self._descriptor, view) :]

    def _publish(self) -> None:
        assert self._temporary is not None
        try:
            os.fsync(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            os.replace(self._temporary, self._target)
        except OSError as error:
            self._fail(error, 0)
        self._finished = True
        _sync_folder(self._target.parent)

    def _abandon(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _fail(self, error: OSError, needed: int) -> NoReturn:
        if error.errno in _DISK_FULL:
            raise self._disk_full(needed, self._free_bytes()) from error
        hint = "choose another folder with -o, or change its permissions"
        raise LlamacError("LLC0701", str(self.path), f"cannot write: {error.strerror or error}", hint) from error

    def _disk_full(self, needed: int, free: int) -> LlamacError:
        reason = f"at least {needed} more bytes are needed, {self._target.parent} has {free} bytes free for this file"
        return LlamacError("LLC0702", str(self.path), reason, "free some space or choose another disk with -o")

    def _refuse(self, reason: str, hint: str) -> NoReturn:
        raise LlamacError("LLC0701", str(self.path), reason, hint)

    def _misused(self, reason: str) -> NoReturn:
        raise LlamacError("LLC0703", str(self.path), reason, "report this as a bug of llamac")


class MemberStream:
    """A member being written: exactly as many bytes as were announced, in any number of pieces."""

    def __init__(self, writer: ArtifactWriter, member: Member, block_bytes: int | None) -> None:
        self._writer = writer
        self._member = member
        self._block_bytes = block_bytes
        self._hasher = MemberHasher(block_bytes)
        self._closed = False
        self.position = 0
        """Bytes written so far, which is the offset of the next byte within the member."""

    def __enter__(self) -> MemberStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def write(self, data: ByteSource) -> None:
        """Appends the bytes of `data`, an array's in C order."""
        view = _byte_view(data)
        if self._closed or self.position + len(view) > self._member.nbytes:
            state = "closed" if self._closed else f"announced with {self._member.nbytes} bytes"
            self._writer._misused(f"{self._member.name} is {state}; {len(view)} more bytes came at {self.position}")
        for start in range(0, len(view), _CHUNK_BYTES):
            piece = view[start : start + _CHUNK_BYTES]
            self._hasher.update(piece)
            self._writer._write(piece, self._member.nbytes - self.position)
            self.position += len(piece)

    def pad_to(self, alignment: int) -> int:
        """Writes zeros until `position` is a multiple of `alignment`; returns the new position."""
        self.write(bytes(-self.position % alignment))
        return self.position

    def close(self) -> None:
        """Ends the member; a second call does nothing."""
        if self._closed:
            return
        if self.position != self._member.nbytes:
            missing = self._member.nbytes - self.position
            self._writer._misused(f"{self._member.name} is short of {missing} bytes of {self._member.nbytes}")
        self._closed = True
        digests = self._hasher.finish()
        hashes: dict[str, Any] = {"sha256": digests[0]} if self._block_bytes is None else {}
        if self._block_bytes is not None:
            hashes = {"block_bytes": self._block_bytes, "sha256_blocks": digests}
        whole = Member(self._member.name, self._member.nbytes, self._hasher.crc, self._member.header_offset)
        self._writer._end_member(whole, hashes)


def _byte_view(data: ByteSource) -> memoryview:
    """The bytes of `data`, without a copy when they are contiguous."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable; systems that cannot open a folder do without."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)

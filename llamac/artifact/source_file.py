"""The file an artifact is read from: opened with clear errors, read within its bounds, never trusted."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from llamac.errors import LlamacError, did_you_mean

_COPIED_BYTES = 4 << 20
GET_AGAIN = "get the file again from its source, or compile it again"

_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF checkpoint", "compile it first: llamac compile FILE -o OUT.llamac"),
    (b"\x7fELF", "an ELF executable or library", "name a file made by llamac compile"),
    (b"\x1f\x8b", "gzip-compressed", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "decompress it first"),
    (b"<!DOCTYPE", "a web page", "the download went wrong: " + GET_AGAIN),
    (b"<html", "a web page", "the download went wrong: " + GET_AGAIN),
)


class SourceFile:
    """A regular file opened for reading; its size is fixed when it is opened.

    Raises LLC0704 when it cannot be opened or read, LLC0705 when it is plainly another kind of file, LLC0706 for a
    git-lfs pointer and LLC0707 when it is empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._refuse_special_files()
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError as error:
            raise LlamacError(
                "LLC0704", str(path), f"there is no such file{self._near_names()}", "check the path"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LlamacError(
                "LLC0704", str(path), f"cannot open: {reason}", "check the path and permissions"
            ) from error
        self._lock = threading.Lock()
        self._mapping: mmap.mmap | None = None
        try:
            self._refuse_other_formats()
        except BaseException:
            self.close()
            raise

    def fail(self, code: str, reason: str, hint: str = GET_AGAIN, member: str = "") -> NoReturn:
        """Raises a coded error about this file, or about one member of it."""
        raise LlamacError(code, f"{self.path}:{member}" if member else str(self.path), reason, hint)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes; LLC0707 when the file does not have them."""
        buffer = bytearray(nbytes if 0 <= offset <= offset + nbytes <= self.size else 0)
        if len(buffer) != nbytes:
            self.fail("LLC0707", f"bytes {offset} to {offset + nbytes} are wanted, the file has {self.size}")
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view` from the file; LLC0707 when the file has become shorter meanwhile."""
        done = 0
        with self._lock:
            try:
                self._file.seek(offset)
                while done < len(view):
                    count = self._file.readinto(view[done:])
                    if not count:
                        self.fail(
                            "LLC0707", f"the file ends at byte {offset + done}; it had {self.size} bytes when opened"
                        )
                    done += count
            except OSError as error:
                reason = f"cannot read at byte {offset + done}: {error.strerror or error}"
                raise LlamacError("LLC0704", str(self.path), reason, "check the disk") from error
            except ValueError:  # what Python says of a closed file
                raise LlamacError("LLC0815", str(self.path), "the model is closed", "load it again") from None

    def copy_into(self, offset: int, nbytes: int, descriptor: int) -> int:
        """Copies at most `nbytes` bytes to where `descriptor` stands; how many went, 0 at the end of the file.

        The system copies, where it can without a byte passing through this process; else one piece of 4 MiB does.
        OSError when `descriptor` cannot take them.
        """
        if hasattr(os, "copy_file_range"):
            with suppress(OSError):
                return os.copy_file_range(self._file.fileno(), descriptor, nbytes, offset)
        piece = self.read_at(offset, min(nbytes, _COPIED_BYTES, self.size - offset))
        return os.write(descriptor, piece)

    def mapping(self) -> mmap.mmap:
        """The whole file mapped read-only, once."""
        if self._mapping is None:
            try:
                self._mapping = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: the file has become shorter meanwhile
                reason = f"cannot map {self.size} bytes: {getattr(error, 'strerror', None) or error}"
                raise LlamacError("LLC0704", str(self.path), reason, "check the limits on address space") from error
        return self._mapping

    def close(self) -> None:
        """Closes the file; a mapping that arrays still use lives on until the last of them is gone."""
        self._file.close()
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            with suppress(BufferError):
                mapping.close()

    def _refuse_special_files(self) -> None:
        mode = os.stat(self.path).st_mode
        if stat.S_ISDIR(mode):
            self.fail("LLC0704", "is a folder, not a file", "name a .llamac file inside it")
        if not stat.S_ISREG(mode):
            self.fail("LLC0704", "is not a regular file", "name a .llamac file")

    def _refuse_other_formats(self) -> None:
        if not self.size:
            self.fail("LLC0707", "the file is empty (0 bytes): truncated")
        head = self.read_at(0, min(self.size, 64))
        if head.startswith(b"version https://git-lfs"):
            self.fail("LLC0706", "is a git-lfs pointer, not the artifact itself", "fetch it with: git lfs pull")
        for magic, what, hint in _OTHER_FORMATS:
            if head.startswith(magic):
                self.fail("LLC0705", f"is {what}", hint)

    def _near_names(self) -> str:
        try:
            return did_you_mean(self.path.name, sorted(path.name for path in self.path.parent.glob("*.llamac")))
        except OSError:
            return ""

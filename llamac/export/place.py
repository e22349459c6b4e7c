"""Where an export goes: written beside its place under another name, and moved there when it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamac.errors import LlamacError

RECORD = "llamac-export.json"
"""What an exported folder says of itself; only a folder that has it is ever replaced."""

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def check_place(output: Path, is_file: bool, overwrite: bool) -> None:
    """LLC0922 when something is there that must stay, LLC0925 when its parent is no folder."""
    if not output.absolute().parent.is_dir():
        raise LlamacError("LLC0925", output.name, "its folder does not exist", "make the folder, or choose another")
    if not os.path.lexists(output):
        return
    if output.is_dir() == is_file:
        found = "a folder" if output.is_dir() else "a file"
        raise LlamacError("LLC0922", output.name, f"{found} is there already", "choose another name")
    if not is_file and not any(output.iterdir()):
        return
    if not overwrite:
        raise LlamacError("LLC0922", output.name, "it is there already", "choose another name, or pass --overwrite")
    if not is_file and not (output / RECORD).is_file():
        reason = f"the folder was not written by llamac: it has no {RECORD}"
        raise LlamacError("LLC0922", output.name, reason, "choose another name, or remove it yourself")


@contextmanager
def written(output: Path, is_file: bool) -> Iterator[Path]:
    """A path to write to: a name that is free, or a new folder. It becomes `output` if the body ends well.

    Otherwise nothing stays behind. Failures of the disk are LLC0702 and LLC0925.
    """
    real = Path(os.path.realpath(output))
    partial = real.parent / f".{real.name[:200]}.{secrets.token_hex(8)}.partial"
    try:
        if not is_file:
            partial.mkdir()
        yield partial
        _publish(partial, real)
    except OSError as error:
        raise _coded(error, output) from error
    finally:
        _remove(partial)


def _publish(partial: Path, real: Path) -> None:
    """Put what was written in its place; a folder that was there leaves it first, and comes back if that fails."""
    if not partial.is_dir() or not real.exists():
        os.replace(partial, real)
        return
    aside = real.parent / f"{partial.name}.replaced"
    os.replace(real, aside)
    try:
        os.replace(partial, real)
    except OSError:
        os.replace(aside, real)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # read-only systems refuse even what is not there; the first failure is told
            path.unlink(missing_ok=True)


def _coded(error: OSError, output: Path) -> LlamacError:
    if error.errno in _DISK_FULL:
        return LlamacError("LLC0702", output.name, "the disk is full", "free some space, or choose another disk")
    reason = error.strerror or type(error).__name__
    return LlamacError("LLC0925", output.name, f"it cannot be written: {reason}", "check the folder's permissions")

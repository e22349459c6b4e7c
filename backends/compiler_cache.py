"""Where the compilers of generated code, zig and Triton, keep their caches: what lies there ends up in artifacts."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path


def compiler_cache(name: str) -> Path:
    """A writable folder for the cache called `name`; made if need be.

    `name` below LLAMAC_CACHE_DIR, else `llamac/name` below XDG_CACHE_HOME or ~/.cache, else a temporary folder: the
    user's own, where nobody else may write, or where another user has taken its name one for this process alone.
    """
    home = os.path.expanduser("~/.cache")
    bases = [(os.environ.get("LLAMAC_CACHE_DIR"), name), (os.environ.get("XDG_CACHE_HOME"), f"llamac/{name}")]
    for base, inside in [*bases, (home, f"llamac/{name}")]:
        if not base or base.startswith("~"):
            continue
        folder = Path(base) / inside
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    identity = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"llamac-{name}-{identity}"
    return folder if _is_private(folder) else _folder_of_process(name)


def _is_private(folder: Path) -> bool:
    """Whether the folder, made if need be, is the user's and nobody else may write to it: anybody can make it first."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    is_own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and is_own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def _folder_of_process(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"llamac-{name}-"))

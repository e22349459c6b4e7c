"""The folder where torch.compile keeps its artifacts, and its trust: loading one runs its code.

A file's name is the hash of all that its code depends on. The folder belongs to the user and nobody else may write to
it; otherwise somebody could put code under a name that is yet to be looked for.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from llamac.errors import LlamacError

BLOCK = 1 << 26
"""Bytes of a weight hashed at a time."""


def cache_folder(wanted: str | Path | None) -> Path:
    """`wanted`, or `torch` below LLAMAC_CACHE_DIR or the user's cache folder; made, or trusted as it is (LLC0959)."""
    if wanted is not None:
        return _trusted(Path(wanted))
    own = os.environ.get("LLAMAC_CACHE_DIR")
    if own:
        return _trusted(Path(own) / "torch")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _trusted(Path(base) / "llamac" / "torch")


def _trusted(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_trust(folder, stat.S_ISDIR)
    except OSError as error:
        reason = f"the folder cannot be made: {error.strerror}"
        raise LlamacError(
            "LLC0959", str(folder), reason, "set LLAMAC_CACHE_DIR, or options={'cache': folder}"
        ) from error
    return folder


def _check_trust(path: Path, is_kind: Callable[[int], bool]) -> None:
    """LLC0959 unless `path` is what it should be, belongs to this user, and nobody else may write to it."""
    found = path.lstat()
    reason = None
    if not is_kind(found.st_mode):
        reason = "is a link or something else than expected"
    elif hasattr(os, "getuid") and found.st_uid != os.getuid():
        reason = f"belongs to user {found.st_uid}, not to you"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = f"may be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    if reason is not None:
        raise LlamacError("LLC0959", str(path), reason, f"chmod 700 it, or remove it: code from {path.name} would run")


def cached(folder: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The artifact called `key` in `folder`, made by `make(path)` when it is not there (LLC0959: not to be trusted)."""
    path = folder / f"{key}.llamac"
    if path.exists() or path.is_symlink():
        _check_trust(path, stat.S_ISREG)
        return path
    make(path)  # the writer puts the whole file in place at once
    path.chmod(0o600)
    return path


def key_of(description: Iterable[str], weights: Iterable[torch.Tensor]) -> str:
    """The hash of a description, of the values of weights, and of this llamac."""
    digest = hashlib.sha256(f"{version('llamac')}\n".encode())
    for line in description:
        digest.update(f"{line}\n".encode())
    for weight in weights:
        digest.update(f"{weight.dtype} {list(weight.shape)}\n".encode())
        flat = weight.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
        for start in range(0, flat.numel(), BLOCK):
            digest.update(flat[start : start + BLOCK].numpy().data)
    return digest.hexdigest()

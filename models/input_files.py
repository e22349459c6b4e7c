"""Small files of a checkpoint, read as what they are: untrusted input with a size limit and located errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llamac.errors import LlamacError

LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
JSON_LIMIT = 64 << 20
TEXT_LIMIT = 8 << 20
VOCABULARY_LIMIT = 256 << 20
DEEPEST_JSON = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def check_not_lfs_pointer(path: Path) -> None:
    """Raise LLC0202 when `path` is the small text file that git leaves in place of a large one."""
    with path.open("rb") as file:
        if file.read(len(LFS_PREFIX)) == LFS_PREFIX:
            reason = "this is a git-lfs pointer, not the file itself"
            raise LlamacError("LLC0202", path.name, reason, "run `git lfs pull` in the checkpoint's folder")


def read_bytes(path: Path, limit: int = VOCABULARY_LIMIT) -> bytes:
    """The whole of a small file; LLC0202 for a git-lfs pointer, LLC0214 when it is larger than `limit` bytes."""
    try:
        check_not_lfs_pointer(path)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise LlamacError("LLC0201", path.name, reason, "check the path and its permissions") from None
    if len(data) > limit:
        raise LlamacError("LLC0214", path.name, f"larger than {limit} bytes", "this is not the file it is named for")
    return data


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """A small UTF-8 file."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise LlamacError("LLC0214", path.name, "not UTF-8 text", "download the file again") from None


def read_json_object(path: Path, limit: int = JSON_LIMIT) -> dict[str, object]:
    """A JSON file whose top level is an object; LLC0214 when it is anything else."""
    return parse_json_object(read_bytes(path, limit), path.name)


def parse_json_object(data: bytes, where: str) -> dict[str, object]:
    """Parse JSON with a top-level object; every key may appear once in its object.

    LLC0214 too for what nests deeper than any config, and for half a surrogate pair, which no text file can hold.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
        _check_depth(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON: {str(error)[:120]}"
        raise LlamacError("LLC0214", where, reason, "download the file again") from None
    if not isinstance(value, dict):
        raise LlamacError("LLC0214", where, "expected a JSON object at the top level", "download the file again")
    return value


def _check_depth(value: object) -> None:
    """ValueError for nesting that would end the recursion of whoever walks through the value."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST_JSON} deep")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A dict of the pairs; two values for one key would mean that two readers can see two different files."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} appears twice")
            seen.add(key)
    return result

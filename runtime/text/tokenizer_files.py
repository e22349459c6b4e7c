"""Reads the stored files of a tokenizer, with one coded error for each way they can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llamac.errors import LlamacError

VOCABULARY_FILE = "vocabulary.json"
HINT_RECOMPILE = "compile the model again from an intact checkpoint"


class StoredFiles(Mapping[str, bytes]):
    """Files that are read, by the name of their member, when they are asked for."""

    def __init__(self, members: Mapping[str, str], read: Callable[[str], bytes]) -> None:
        self._members = dict(members)
        self._read = read

    def __getitem__(self, name: str) -> bytes:
        return self._read(self._members[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members


def stored_file(files: Mapping[str, bytes], name: str) -> bytes:
    """The file `name`, or LLC0903 naming what is there instead."""
    if name in files:
        return files[name]
    listed = ", ".join(sorted(files)) or "nothing"
    raise malformed(name, f"the file is missing (stored: {listed})")


def stored_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in file `name`, or LLC0903."""
    import json

    try:
        value = json.loads(stored_file(files, name))
    except (ValueError, RecursionError) as problem:
        raise malformed(name, f"not valid JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise malformed(name, "not a JSON object")
    return value


def malformed(name: str, reason: str) -> LlamacError:
    """LLC0903: the tokenizer file `name` cannot be used, and why."""
    return LlamacError("LLC0903", f"tokenizer {name}", reason, HINT_RECOMPILE)


def missing_library(library: str, needed_for: str) -> LlamacError:
    """LLC0902: the Python package that this kind of tokenizer needs is not installed."""
    return LlamacError("LLC0902", "tokenizer", f"{needed_for} needs the package '{library}'", f"pip install {library}")


def optional_id(values: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    """A token id stored under `name`: None when absent, LLC0903 when it is not an id of the vocabulary."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise malformed(name, f"{value!r} is not a token id below {vocab_size}")
    return value

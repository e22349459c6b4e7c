"""What differs between two artifacts: manifest, members, weights, IR, source and machine code. Runs nothing from them.

Everything is compared by its bytes, not by recorded hashes, so a damaged copy differs from a sound one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .diff_code import MachineDiff, TextDiff, diff_ir, diff_machine_code, diff_source
from .read import Artifact

Bytes = NDArray[np.uint8]

_CHUNK = 16 << 20
_STORED_AS = re.compile(r"(\.(packed|f32|f16|bf16|e4m3fn|[iu][48]))+$")
_ELSEWHERE = frozenset({"members", "weights"})
"""Manifest keys with a section of their own in the report."""


@dataclass(frozen=True)
class KeyChange:
    """One key of the manifest; `side` says in which file it is: "a", "b" or "both"."""

    path: str
    side: str
    a: Any
    b: Any

    def to_json(self) -> dict[str, Any]:
        values = {"a": self.a, "b": self.b}
        return {"path": self.path, **{k: v for k, v in values.items() if self.side in (k, "both")}}


@dataclass(frozen=True)
class MemberChange:
    """A member that is in one file only (None in the other) or whose bytes differ."""

    name: str
    a_bytes: int | None
    b_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "a_bytes": self.a_bytes, "b_bytes": self.b_bytes}


@dataclass(frozen=True)
class TensorChange:
    """A weight that differs. `a`, `b`: its manifest entries, None where it is missing.

    changed: which of only_in_a, only_in_b, format, shape, size, bytes. For `bytes`: how many differ and where the first
    is, from the start of the tensor. difference: filled where the values can be dequantized (`llamac.weight_values`).
    """

    layout: str
    a: dict[str, Any] | None
    b: dict[str, Any] | None
    changed: tuple[str, ...]
    bytes_different: int = 0
    first_byte: int = 0
    difference: dict[str, Any] | None = None
    readers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        entry = self.a or self.b
        assert entry is not None
        return str(entry["name"])

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": self.layout,
            "name": self.name,
            "changed": list(self.changed),
            "a": self.a,
            "b": self.b,
            "bytes_different": self.bytes_different,
            "first_byte": self.first_byte,
            "difference": self.difference,
            "readers": list(self.readers),
        }


@dataclass
class ArtifactDiff:
    """Everything that differs. `same_code` lists what was compared and found equal, so that silence is no guess."""

    a: Path
    b: Path
    identical: bool
    keys: list[KeyChange] = field(default_factory=list)
    members: list[MemberChange] = field(default_factory=list)
    tensors: list[TensorChange] = field(default_factory=list)
    tensors_compared: int = 0
    ir: TextDiff | None = None
    sources: list[TextDiff] = field(default_factory=list)
    machine: list[MachineDiff] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "a": str(self.a),
            "b": str(self.b),
            "manifest": [key.to_json() for key in self.keys],
            "members": [member.to_json() for member in self.members],
            "weights": [tensor.to_json() for tensor in self.tensors],
            "tensors_compared": self.tensors_compared,
            "ir": self.ir.to_json() if self.ir else None,
            "source": [text.to_json() for text in self.sources],
            "machine_code": [code.to_json() for code in self.machine],
        }


def diff_artifacts(a: Artifact, b: Artifact) -> ArtifactDiff:
    """Compare two open artifacts. Open them with check="none" to compare what is there, damaged or not."""
    found = ArtifactDiff(a.path, b.path, _same_files(a.path, b.path))
    if found.identical:
        return found
    found.keys = list(_diff_manifests(a.manifest, b.manifest))
    found.members = list(_diff_members(a, b))
    found.tensors, found.tensors_compared = _diff_weights(a, b)
    changed = {member.name for member in found.members}
    found.ir = _diff_ir(a, b, changed)
    found.sources = list(_diff_sources(a, b))
    found.machine = list(_diff_machine_code(a, b, changed))
    return found


def _same_files(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as x, b.open("rb") as y:
        while True:
            ours, theirs = x.read(_CHUNK), y.read(_CHUNK)
            if ours != theirs:
                return False
            if not ours:
                return True


# Manifest.


def _diff_manifests(a: dict[str, Any], b: dict[str, Any]) -> Iterator[KeyChange]:
    for key in sorted({*a, *b} - _ELSEWHERE):
        yield from _diff_keyed(key, key in a, a.get(key), key in b, b.get(key))


def _diff_keyed(path: str, in_a: bool, a: Any, in_b: bool, b: Any) -> Iterator[KeyChange]:
    if not (in_a and in_b):
        yield KeyChange(path, "a" if in_a else "b", a, b)
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _diff_keyed(f"{path}.{key}", key in a, a.get(key), key in b, b.get(key))
    elif isinstance(a, list) and isinstance(b, list):
        yield from _diff_lists(path, a, b)
    elif type(a) is not type(b) or a != b:
        yield KeyChange(path, "both", a, b)


def _diff_lists(path: str, a: list[Any], b: list[Any]) -> Iterator[KeyChange]:
    """Lists are aligned as texts are: an added element does not make all that follow differ."""
    pair = difflib.SequenceMatcher(None, [_identity(x) for x in a], [_identity(x) for x in b], autojunk=False)
    for tag, a1, a2, b1, b2 in pair.get_opcodes():
        if tag == "equal" or (tag == "replace" and a2 - a1 == b2 - b1 and not _is_named(a[a1])):
            for i, j in zip(range(a1, a2), range(b1, b2), strict=True):
                yield from _diff_keyed(_element(path, i, a[i]), True, a[i], True, b[j])
            continue
        for i in range(a1, a2):
            yield KeyChange(_element(path, i, a[i]), "a", a[i], None)
        for j in range(b1, b2):
            yield KeyChange(_element(path, j, b[j]), "b", None, b[j])


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value


def _identity(value: Any) -> str:
    return str(value["name"]) if _is_named(value) else repr(value)


def _element(path: str, index: int, value: Any) -> str:
    return f"{path}[{value['name']}]" if _is_named(value) else f"{path}[{index}]"


# Members and weights.


def _diff_members(a: Artifact, b: Artifact) -> Iterator[MemberChange]:
    for name in dict.fromkeys((*a.members, *b.members)):
        in_a, in_b = name in a.members, name in b.members
        sizes = tuple(x.member_offset(name)[1] if there else None for x, there in ((a, in_a), (b, in_b)))
        if sizes[0] != sizes[1] or not _same_bytes(a.map(name), b.map(name)):
            yield MemberChange(name, *sizes)


def _same_bytes(a: Bytes, b: Bytes) -> bool:
    starts = range(0, a.size, _CHUNK)
    return a.size == b.size and all(np.array_equal(a[i : i + _CHUNK], b[i : i + _CHUNK]) for i in starts)


def tensor_bytes(artifact: Artifact, layout: str, tensor: dict[str, Any]) -> Bytes:
    """The stored bytes of one weight, mapped in place."""
    member = next(entry["member"] for entry in artifact.manifest["weights"] if entry["layout"] == layout)
    return artifact.map(member)[tensor["offset"] : tensor["offset"] + tensor["bytes"]]


def _diff_weights(a: Artifact, b: Artifact) -> tuple[list[TensorChange], int]:
    ours = {entry["layout"]: entry["tensors"] for entry in a.manifest["weights"]}
    theirs = {entry["layout"]: entry["tensors"] for entry in b.manifest["weights"]}
    found, compared = [], 0
    for layout in dict.fromkeys((*ours, *theirs)):
        for x, y in _pair(ours.get(layout, []), theirs.get(layout, [])):
            compared += 1
            change = _diff_tensor(a, b, layout, x, y)
            found += [change] if change is not None else []
    return found, compared


def _pair(ours: list[Any], theirs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Tensors of one model-level weight, whatever they are stored as, so that two quantizations can be compared."""
    left = {t["name"]: t for t in theirs}
    by_model_name = {_STORED_AS.sub("", name): name for name in left}
    for tensor in ours:
        name = tensor["name"] if tensor["name"] in left else by_model_name.get(_STORED_AS.sub("", tensor["name"]))
        yield tensor, left.pop(name, None) if name is not None else None
    for tensor in left.values():
        yield None, tensor


def _diff_tensor(a: Artifact, b: Artifact, layout: str, x: Any, y: Any) -> TensorChange | None:
    if x is None or y is None:
        return TensorChange(layout, x, y, ("only_in_a" if y is None else "only_in_b",))
    changed = [key for key in ("format", "shape") if x[key] != y[key]]
    if x["bytes"] != y["bytes"]:
        return TensorChange(layout, x, y, (*changed, "size"))
    count, first = _count_different(tensor_bytes(a, layout, x), tensor_bytes(b, layout, y))
    changed += ["bytes"] if count else []
    return TensorChange(layout, x, y, tuple(changed), count, first) if changed else None


def _count_different(a: Bytes, b: Bytes) -> tuple[int, int]:
    """How many bytes differ, and the first that does."""
    count, first = 0, -1
    for start in range(0, a.size, _CHUNK):
        different = a[start : start + _CHUNK] != b[start : start + _CHUNK]
        here = int(np.count_nonzero(different))
        if here and first < 0:
            first = start + int(different.argmax())
        count += here
    return count, max(first, 0)


# IR, source and machine code.


def _text(artifact: Artifact, member: str) -> str:
    return artifact.map(member).tobytes().decode("utf-8", "replace")


def _diff_ir(a: Artifact, b: Artifact, changed: set[str]) -> TextDiff | None:
    ours, theirs = a.manifest.get("ir"), b.manifest.get("ir")
    if ours is None or theirs is None or (ours == theirs and ours not in changed):
        return None
    return diff_ir(ours, _text(a, ours), _text(b, theirs))


def _diff_sources(a: Artifact, b: Artifact) -> Iterator[TextDiff]:
    pairs = {(x["source"], y["source"]) for x, y in _same_targets(a, b) if x["source"] and y["source"]}
    for ours, theirs in sorted(pairs):
        x, y = _text(a, ours), _text(b, theirs)
        if x != y:
            yield diff_source(ours, x, y)


def _diff_machine_code(a: Artifact, b: Artifact, changed: set[str]) -> Iterator[MachineDiff]:
    for x, y in _same_targets(a, b):
        # The code of a GPU is a plan and many small members, which are compared as members.
        if x["kind"] == "cpu" and (x["code"] != y["code"] or x["code"] in changed):
            ours, theirs = a.map(x["code"]).tobytes(), b.map(y["code"]).tobytes()
            if ours != theirs:
                yield diff_machine_code(x["name"], ours, theirs)


def _same_targets(a: Artifact, b: Artifact) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    theirs = {target["name"]: target for target in b.manifest["targets"]}
    return [(target, theirs[target["name"]]) for target in a.manifest["targets"] if target["name"] in theirs]

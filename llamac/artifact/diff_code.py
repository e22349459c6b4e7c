"""Compares texts of code part by part (functions of C, graphs of IR), and shared libraries section by section."""

from __future__ import annotations

import difflib
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_CONTEXT = 2
_AROUND = 3
_FUNCTION = re.compile(r"([A-Za-z_]\w*)\s*\(")
_ADDRESS = re.compile(r"<[^>]*>|#.*|\b0x[0-9a-f]+(?=\s*$|\s*<)|-?\d+(?=\(%rip\))|\b[0-9a-f]{3,}(?=\s*(<|$))")
"""What in an instruction says only where it or its target lies."""
_ATTRIBUTE = re.compile(r"__attribute__\(\(.*?\)\)+|_Alignas\(\w+\)|_Pragma\(.*?\)")


@dataclass(frozen=True)
class PartDiff:
    """One function, graph or other part: how many lines came and went, and the unified diff.

    side: "both", or "a" or "b" for a part that only one text has.
    """

    name: str
    side: str
    added: int
    removed: int
    lines: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "lines": list(self.lines)}


@dataclass(frozen=True)
class TextDiff:
    """The parts of a text that differ, of `parts` in all."""

    member: str
    parts: int
    changed: tuple[PartDiff, ...]

    def to_json(self) -> dict[str, Any]:
        return {"member": self.member, "parts": self.parts, "changed": [part.to_json() for part in self.changed]}


@dataclass(frozen=True)
class SectionDiff:
    """A section of a shared library: its sizes (None where it is missing) and how many of its bytes differ."""

    name: str
    a_bytes: int | None
    b_bytes: int | None
    bytes_different: int | None
    first_byte: int | None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class MachineDiff:
    """One target's code. instructions: the first that differ, with those around, when a disassembler is installed."""

    target: str
    sections: tuple[SectionDiff, ...]
    instructions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        sections = [section.to_json() for section in self.sections]
        return {"target": self.target, "sections": sections, "instructions": list(self.instructions)}


# Texts.


def diff_source(member: str, a: str, b: str) -> TextDiff:
    """Two C sources, function by function."""
    return _diff_parts(member, _c_parts(a), _c_parts(b), lambda line: line)


def diff_ir(member: str, a: str, b: str) -> TextDiff:
    """Two modules: the weights, and each graph. Numbers of values do not count: one op more would change them all."""
    return _diff_parts(member, _ir_parts(a), _ir_parts(b), lambda line: re.sub(r"%\d+\b", "%", line))


def _diff_parts(member: str, a: dict[str, list[str]], b: dict[str, list[str]], key: Callable[[str], str]) -> TextDiff:
    names = list(dict.fromkeys((*a, *b)))
    changed = []
    for name in names:
        ours, theirs = a.get(name), b.get(name)
        if ours is None or theirs is None:
            count = len(ours or theirs or ())
            side = "b" if ours is None else "a"
            lines = tuple(f"{'+' if ours is None else '-'} {line}" for line in ours or theirs or ())
            changed.append(PartDiff(name, side, count if ours is None else 0, 0 if ours is None else count, lines))
        elif ours != theirs and (part := _diff_part(name, ours, theirs, key)) is not None:
            changed.append(part)
    return TextDiff(member, len(names), tuple(changed))


def _diff_part(name: str, a: list[str], b: list[str], key: Callable[[str], str]) -> PartDiff | None:
    pair = difflib.SequenceMatcher(None, [key(x) for x in a], [key(x) for x in b], autojunk=False)
    lines: list[str] = []
    added = removed = 0
    for group in pair.get_grouped_opcodes(_CONTEXT):
        lines.append(f"@@ line {group[0][1] + 1} @@")
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                lines += [f"  {line}" for line in b[b1:b2]]
                continue
            lines += [f"- {line}" for line in a[a1:a2]] + [f"+ {line}" for line in b[b1:b2]]
            removed, added = removed + a2 - a1, added + b2 - b1
    return PartDiff(name, "both", added, removed, tuple(lines)) if lines else None


def _c_parts(text: str) -> dict[str, list[str]]:
    """Top-level parts by name: each function or type, and what stands before it and does not belong to it."""
    parts: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        current.append(line)
        if line.startswith("}"):
            start = _c_start(current)
            name = _c_name(current[start:])
            if any(before.strip() for before in current[:start]):
                _enter(parts, f"before {name}", current[:start])
            _enter(parts, name, current[start:])
            current = []
    if any(line.strip() for line in current):
        _enter(parts, "end of file", current)
    return parts


def _c_start(lines: list[str]) -> int:
    """Where the definition that ends `lines` starts: after the last empty line or directive at the left margin."""
    start = len(lines) - 1
    while start > 0 and lines[start - 1].strip() and not lines[start - 1].startswith(("#", " *", "*/")):
        start -= 1
    # An empty line inside a body is no boundary: go on while the first line is indented.
    while start > 0 and (lines[start].startswith((" ", "}")) or not lines[start].strip()):
        start -= 1
        while start > 0 and lines[start - 1].strip() and not lines[start - 1].startswith(("#", " *", "*/")):
            start -= 1
    return start


def _c_name(lines: list[str]) -> str:
    """The name of a function or type from its definition."""
    head = _ATTRIBUTE.sub("", " ".join(line for line in lines if not line.startswith((" ", "}", "/*"))))
    closing = re.match(r"\}\s*(\w+);", lines[-1])
    if closing:
        return closing.group(1)
    found = _FUNCTION.search(head)
    return found.group(1) if found else " ".join(head.replace("{", "").split()[:2]) or "declarations"


def _ir_parts(text: str) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    name = "weights"
    for line in text.splitlines():
        words = line.strip()
        found = re.match(r"graph (@[\w.\-]+)", words)
        if found:
            name = f"graph {found.group(1)}"
        parts.setdefault(name, []).append(words)
        if words == "}":
            name = "weights"
    return parts


def _enter(parts: dict[str, list[str]], name: str, lines: list[str]) -> None:
    unique, number = name, 2
    while unique in parts:
        unique, number = f"{name} ({number})", number + 1
    parts[unique] = lines


# Machine code.


def diff_machine_code(target: str, a: bytes, b: bytes) -> MachineDiff:
    """Two shared libraries. They are stripped, so sections and instructions are compared, not functions."""
    ours, theirs = _sections(a), _sections(b)
    changed = []
    for name in dict.fromkeys((*ours, *theirs)):
        x, y = ours.get(name), theirs.get(name)
        if x == y:
            continue
        different = first = None
        if x is not None and y is not None and len(x) == len(y):
            places = np.flatnonzero(np.frombuffer(x, np.uint8) != np.frombuffer(y, np.uint8))
            different, first = len(places), int(places[0])
        a_bytes, b_bytes = (None if section is None else len(section) for section in (x, y))
        changed.append(SectionDiff(name, a_bytes, b_bytes, different, first))
    text_differs = any(section.name == ".text" for section in changed)
    return MachineDiff(target, tuple(changed), tuple(_instructions(a, b)) if text_differs else ())


def _sections(code: bytes) -> dict[str, bytes]:
    """Name -> bytes of every section of a little-endian ELF64 file; the whole file as one when it is no such file."""
    try:
        if code[:6] != b"\x7fELF\x02\x01":
            return {"file": code}
        offset, size, count, names_at = (*struct.unpack_from("<Q", code, 0x28), *struct.unpack_from("<3H", code, 0x3A))
        rows = [struct.unpack_from("<2I4Q", code, offset + i * size) for i in range(count)]
        names = rows[names_at][4]
        found = {}
        for name, kind, _, _, start, length in rows:
            text = code[names + name : code.index(b"\0", names + name)].decode("ascii", "replace")
            if kind not in (0, 8):  # no section; no bytes in the file
                found[text] = code[start : start + length]
        return found or {"file": code}
    except (struct.error, IndexError, ValueError):
        return {"file": code}


def _instructions(a: bytes, b: bytes) -> Iterator[str]:
    """The first instructions that differ, from either side; nothing without a disassembler that knows the machine."""
    x, y = _disassemble(a), _disassemble(b)
    if not x or not y:
        return
    shorter = min(len(x), len(y))
    first = next((i for i in range(shorter) if x[i] != y[i]), shorter)
    if first == shorter and len(x) == len(y):
        return
    yield f"@@ instruction {first} of {len(x)} and {len(y)} @@"
    yield from (f"  {line}" for line in x[max(first - _AROUND, 0) : first])
    yield from (f"- {line}" for line in x[first : first + _AROUND])
    yield from (f"+ {line}" for line in y[first : first + _AROUND])


def _disassemble(code: bytes) -> list[str]:
    """Instructions of .text, without addresses."""
    tool = shutil.which("llvm-objdump") or shutil.which("objdump")
    if tool is None:
        return []
    with tempfile.NamedTemporaryFile(prefix="llamac-diff-", suffix=".so") as file:
        file.write(code)
        file.flush()
        command = [tool, "-d", "-j", ".text", "--no-show-raw-insn", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return []
    found = [line.partition(":")[2] for line in done.stdout.splitlines() if re.match(r"\s+[0-9a-f]+:\s", line)]
    return [" ".join(_ADDRESS.sub("", line).split()) for line in found]

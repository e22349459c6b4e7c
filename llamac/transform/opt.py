"""Runs passes over IR text: what `llamac opt` does, apart from its command line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamac.errors import LlamacError
from llamac.ir.graph import Module
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify

from .base import Pass, PassContext, PassResult
from .pipeline import PassRecord, Step, run_pipeline

SPLIT = re.compile(r"^// -----\s*$", re.MULTILINE)
_EXPECTED = re.compile(r"//\s*expected-error(@([+-]\d+))?\s*\{\{(.*?)\}\}")

Talk = Callable[[str], None]


@dataclass(frozen=True)
class OptOptions:
    """What to print on the way, and where to stop.

    print_after: pass names, or `all`. print_dir: a folder for one file a pass. explain: the pass whose refusals are
    told. stop_after: the pass after which to stop.
    """

    print_after: str = ""
    print_dir: Path | None = None
    explain: str = ""
    stop_after: str = ""
    verify_each: bool = True
    time_passes: bool = False
    stats: bool = False


@dataclass
class OptRun:
    """Runs one module through a pipeline; `talk` gets everything that is not the result."""

    steps: Sequence[Step]
    options: OptOptions
    talk: Talk
    count: int = 0
    context: PassContext = field(default_factory=PassContext)

    def run(self, module: Module) -> Module:
        """The module after the passes."""
        if self.options.verify_each:
            verify(module)
        before = op_counts(module)
        steps = self._wanted()
        records = run_pipeline(module, steps, self.context, self._after, self.options.verify_each)
        if self.options.time_passes:
            self.talk(time_table(records))
        if self.options.stats:
            self.talk(count_table(before, op_counts(module)))
        return module

    def _wanted(self) -> Sequence[Step]:
        if not self.options.stop_after:
            return self.steps
        names = [step.run.name for step in self.steps]
        if self.options.stop_after not in names:
            reason = f"'{self.options.stop_after}' is not in the pipeline"
            raise LlamacError("LLC0502", "--stop-after", reason, f"it runs {', '.join(dict.fromkeys(names))}")
        return self.steps[: names.index(self.options.stop_after) + 1]

    def _after(self, item: Pass, module: Module, result: PassResult) -> None:
        self.count += 1
        if self.options.explain == item.name:
            self._explain(item, result)
        if self.options.print_after in (item.name, "all"):
            self.talk(f"// ----- IR after {item}\n{print_module(module)}")
        if self.options.print_dir is not None:
            self._write(self.options.print_dir, f"{self.count:02d}-{item.name}.ir", print_module(module))

    def _write(self, folder: Path, name: str, text: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            reason = f"cannot write {folder}: {error.strerror}"
            raise LlamacError("LLC0101", "--print-ir-dir", reason, "choose another folder") from None

    def _explain(self, item: Pass, result: PassResult) -> None:
        done = ", ".join(f"{name} {count}" for name, count in result.counts.items()) or "nothing to do"
        self.talk(f"{item}: {done}")
        for refusal in result.refusals:
            self.talk(f"  left alone in {refusal.where or 'the graph'}: {refusal.reason}")
        if not result.refusals:
            self.talk("  no near match was refused")


def op_counts(module: Module) -> Counter[str]:
    """Ops by opcode over all graphs."""
    return Counter(op.opcode for _, op in module.ops())


def time_table(records: Sequence[PassRecord]) -> str:
    """Milliseconds and counts of every pass."""
    lines = ["pass                       ms  counts"]
    for record in records:
        counts = ", ".join(f"{k} {v}" for k, v in record.result.counts.items() if v)
        lines.append(f"{record.name:<22} {record.seconds * 1e3:>6.1f}  {counts}")
    lines.append(f"{'total':<22} {sum(r.seconds for r in records) * 1e3:>6.1f}")
    return "\n".join(lines)


def count_table(before: Counter[str], after: Counter[str]) -> str:
    """Ops by opcode before and after, with the totals."""
    lines = ["op                   before   after"]
    lines += [f"{name:<20} {before[name]:>6} {after[name]:>7}" for name in sorted({*before, *after})]
    lines.append(f"{'total':<20} {before.total():>6} {after.total():>7}")
    return "\n".join(lines)


def split_input(text: str) -> list[tuple[str, int]]:
    """The parts of a file between `// -----` lines, each with the number of lines before it."""
    parts, start = [], 0
    for mark in [*SPLIT.finditer(text), None]:
        end = mark.start() if mark else len(text)
        parts.append((text[start:end], text.count("\n", 0, start)))
        start = mark.end() if mark else end
    return parts


def optimize_text(text: str, source: str, make: Callable[[], OptRun]) -> str:
    """Parse one module, run it, print it."""
    return print_module(make().run(parse_module(text, source)))


def check_diagnostics(text: str, source: str, make: Callable[[], OptRun]) -> None:
    """Run each part of `text` and compare its error with its `// expected-error {{...}}` comments (LLC0508)."""
    for part, _ in split_input(text):
        expected = [
            (part.count("\n", 0, found.start()) + 1 + int(found.group(2) or 0), found.group(3))
            for found in _EXPECTED.finditer(part)
        ]
        try:
            optimize_text(part, source, make)
        except LlamacError as error:
            _compare(error, expected, source)
        else:
            if expected:
                raise LlamacError("LLC0508", source, f"the expected error '{expected[0][1]}' did not occur")


def _compare(error: LlamacError, expected: list[tuple[int, str]], source: str) -> None:
    located = re.match(rf"{re.escape(source)}:(\d+):", error.where)
    for line, words in expected:
        if words in error.message() and (located is None or int(located.group(1)) == line):
            return
    raise LlamacError("LLC0508", source, f"an unexpected error: {error.message()}", "add // expected-error {{...}}")

"""export(): from a checkpoint to the form of another system, with the proof that it arrived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.strictness import STRICT_KINDS
from llamac.transform.base import LedgerEntry

from .formats import Format, find_format
from .place import RECORD, check_place, written
from .request import Check, ExportRequest, Progress


@dataclass(frozen=True)
class ExportResult:
    """What `export` made. `checks` is None where none were asked for; all of them passed otherwise."""

    path: Path
    format: str
    quantization: str
    bytes: int
    ledger: tuple[LedgerEntry, ...]
    checks: tuple[Check, ...] | None


def export(
    source: str | Path | Checkpoint,
    *,
    to: str,
    output: str | Path,
    quantize: str | None = None,
    options: Mapping[str, str] | None = None,
    check: bool = False,
    overwrite: bool = False,
    random_weights: int | None = None,
    memory: int = 1 << 30,
    strict: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> ExportResult:
    """Write `source` in the form `to` (a key of `formats.FORMATS`).

    source: what `llamac.compile` takes, but no captured module. output: a folder, or one file where the format has a
    suffix and the name ends so. quantize: a scheme of the format, its default unless given. options: of the format.
    check: read back what was written and compare it; LLC0921 when anything differs. overwrite: replace a file, or a
    folder that an export made. strict: every ledger entry that says something was left undone is an error.

    Every failure is a `LlamacError`, leaves no output, and leaves what was there before.
    """
    row, output = find_format(to), Path(output)
    scheme, chosen = row.scheme(quantize), dict(options or {})
    row.check_options(chosen)
    is_file = row.suffix is not None and output.name.endswith(row.suffix)
    check_place(output, is_file, overwrite)
    exporter = row.exporter()
    progress("reading", 0, 1)
    checkpoint = source if isinstance(source, Checkpoint) else open_source(source, random_weights=random_weights)
    ledger = [LedgerEntry(**entry) for entry in checkpoint.ledger]
    request = ExportRequest(checkpoint, to, scheme, chosen, memory, ledger, progress)
    with written(output, is_file) as place:
        exporter.write(request, place)
        _refuse_left_out(ledger, strict)
        checks = _checked(list(exporter.check(request, place)), to) if check else None
        if not is_file:
            _write_record(request, row, place, checks)
        size = sum(file.stat().st_size for file in _files(place))
    return ExportResult(output, to, scheme, size, tuple(ledger), checks)


def _refuse_left_out(ledger: list[LedgerEntry], strict: bool) -> None:
    blocking = [entry for entry in ledger if entry.kind in STRICT_KINDS]
    if strict and blocking:
        first = blocking[0]
        raise LlamacError("LLC0105", first.where, f"--strict: {first.what} ({first.reason})", "export without --strict")


def _checked(checks: list[Check], to: str) -> tuple[Check, ...]:
    """All of them, or LLC0921 for the first that failed; a check of nothing is a failure too."""
    failed = next((c for c in checks if not c.passed), None)
    if failed is not None:
        others = sum(not c.passed for c in checks) - 1
        more = f" ({others} other checks failed)" if others else ""
        bound = f", allowed {failed.bound}" if failed.bound else ""
        hint = "report this: nothing was written"
        raise LlamacError("LLC0921", failed.name, f"{failed.measured}{bound}{more}", hint)
    if not checks:
        raise LlamacError("LLC0921", to, "there was nothing to check", "report this: nothing was written")
    return tuple(checks)


def _write_record(request: ExportRequest, row: Format, place: Path, checks: tuple[Check, ...] | None) -> None:
    """The folder's own account: what it was made of, what was decided, what was compared, and its files."""
    files = {str(f.relative_to(place)): {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in _files(place)}
    record = {
        "llamac": version("llamac"),
        "format": row.name,
        "model": request.checkpoint.name,
        "quantization": request.quantize,
        "options": dict(request.options),
        "ledger": [asdict(entry) for entry in request.ledger],
        "checks": None if checks is None else [asdict(c) for c in checks],
        "files": files,
    }
    (place / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())

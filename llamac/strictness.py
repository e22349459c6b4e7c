"""What `--strict` refuses: a ledger that says that something was left undone."""

from __future__ import annotations

from collections.abc import Iterable

from llamac.errors import LlamacError
from llamac.transform.base import LedgerEntry

STRICT_KINDS = frozenset({"unquantized", "requantized", "rounded", "ignored", "unknown-key", "absent"})
"""Ledger kinds that `strict` refuses."""


def refuse_left_out(ledger: Iterable[LedgerEntry], strict: bool) -> None:
    """LLC0105 with the first entry that `strict` refuses."""
    blocking = (entry for entry in ledger if entry.kind in STRICT_KINDS)
    if strict and (first := next(blocking, None)) is not None:
        reason = f"--strict: {first.what} ({first.reason})"
        raise LlamacError("LLC0105", first.where, reason, "compile without --strict")

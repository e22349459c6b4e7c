"""Ledger entries: one dict for every default taken, value ignored or feature left off while reading a checkpoint."""

from __future__ import annotations

from typing import TypedDict


class LedgerEntry(TypedDict):
    """One decision that the artifact carries, so that nothing the compiler did on its own stays hidden.

    kind is "default" (a value the source left out), "ignored" (something present that is not used),
    "unknown-key" (a config key of unknown meaning) or "note".
    """

    kind: str
    where: str
    what: str
    reason: str


def entry(kind: str, where: str, what: str, reason: str) -> LedgerEntry:
    """Build one ledger entry."""
    return {"kind": kind, "where": where, "what": what, "reason": reason}

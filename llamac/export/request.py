"""What an exporter is given, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamac.models.checkpoint import Checkpoint
from llamac.transform.base import LedgerEntry

from .model_weights import ModelWeights

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is), in bytes."""


@dataclass(frozen=True)
class ExportRequest:
    """One model on its way into one format.

    quantize: one of the format's schemes. options: those of `--option`, checked by name only. memory: bound on
    temporary arrays, in bytes. ledger: what the exporter decides on its own is appended here.
    """

    checkpoint: Checkpoint
    format: str
    quantize: str
    options: Mapping[str, str]
    memory: int
    ledger: list[LedgerEntry]
    progress: Progress

    def weights(self, rope_style: str | None = None) -> ModelWeights:
        """The weights by model-level name, rows of q and k in the order of `rope_style` (the source's unless given)."""
        return ModelWeights(self.checkpoint, rope_style)

    def note(self, kind: str, where: str, what: str, reason: str) -> None:
        """Append to the ledger."""
        self.ledger.append(LedgerEntry(kind, where, what, reason))


@dataclass(frozen=True)
class Check:
    """One thing that was compared: `measured` against `bound`, in words that say what of."""

    name: str
    passed: bool
    measured: str
    bound: str = ""


class Exporter(Protocol):
    """The module of a format."""

    def write(self, request: ExportRequest, place: Path) -> None:
        """Write the model to `place`: a file that does not exist, or an empty folder that does.

        Everything that can be refused is refused before the first byte of weights is written.
        """

    def check(self, request: ExportRequest, place: Path) -> Iterator[Check]:
        """Read back what `write` left in `place`: every tensor, the logits, and the consumer where it is installed."""

"""Golden vectors: greedy ids and top logits that an outside oracle gave, carried in the artifact for `llamac verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.transform.base import LedgerEntry

ABSENT: dict[str, Any] = {"oracle": "absent", "vectors": []}


def read_golden(path: str | Path | None, checkpoint: Checkpoint, ledger: list[LedgerEntry]) -> dict[str, Any]:
    """The vectors of `path`, or those packaged for an embedded model, or none, which the ledger says."""
    packaged = Path(__file__).parent / "data" / f"golden-{checkpoint.name.lower()}.json"
    if path is None and not packaged.is_file():
        ledger.append(LedgerEntry("absent", "golden", "no golden vectors", "no outside oracle was given with --golden"))
        return ABSENT
    chosen = Path(path) if path is not None else packaged
    try:
        found = json.loads(chosen.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlamacError("LLC0108", str(chosen), f"cannot be read as JSON: {error}", "see docs/artifact-format.md") from None
    _check(found, checkpoint.config.vocab_size, str(chosen))
    return {"oracle": found["oracle"], "vectors": found["vectors"]}


def _check(found: Any, vocabulary: int, where: str) -> None:
    hint = 'expected {"oracle": text, "vectors": [{"prompt_ids", "greedy_ids", "top": [[id, logit], ...]}]}'
    if not isinstance(found, dict) or not isinstance(found.get("oracle"), str) or not found.get("vectors"):
        raise LlamacError("LLC0108", where, "holds no golden vectors", hint)
    for vector in found["vectors"]:
        try:
            ids = [*vector["prompt_ids"], *vector["greedy_ids"], *(token for token, _ in vector["top"])]
            if not vector["prompt_ids"] or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise LlamacError("LLC0108", where, "a vector is malformed or has ids outside the vocabulary", hint) from None

"""Golden vectors: greedy ids and top logits of an outside oracle, carried in the artifact for `llamac verify`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.transform.base import LedgerEntry

ABSENT: dict[str, Any] = {"oracle": "absent", "vectors": []}


DATA = Path(__file__).parent / "data"
"""Where golden vectors of embedded models are packaged, one file a model; `bench/golden.py` makes them."""


UNCHANGED = ("keep", "f32")
"""Schemes that compute on the checkpoint's own values, for which a file's plain `vectors` are made."""


def read_golden(
    path: str | Path | None, checkpoint: Checkpoint, scheme: str, ledger: list[LedgerEntry]
) -> dict[str, Any]:
    """The vectors for a scheme in `path`, or in what is packaged for this very checkpoint, or none: the ledger says so.

    Vectors of one scheme say little about another: int4 alone moves the logits of a small model further than many a
    mistake does. So an oracle computes each scheme's on weights quantized that way, under "quantized".
    """
    chosen = Path(path) if path is not None else _packaged(checkpoint)
    if chosen is None:
        return _absent("no outside oracle was given with --golden", ledger)
    found = _read(chosen)
    _check(found, checkpoint.config.vocab_size, str(chosen))
    vectors = found["vectors"] if scheme in UNCHANGED else found.get("quantized", {}).get(scheme)
    if vectors is None:
        return _absent(f"{chosen.name} holds none for the weights of {scheme}", ledger)
    return {"oracle": found["oracle"], "vectors": vectors}


def _absent(reason: str, ledger: list[LedgerEntry]) -> dict[str, Any]:
    ledger.append(LedgerEntry("absent", "golden", "no golden vectors", reason))
    return ABSENT


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 of every weight's name, shape, encoding and first row as stored: tells a model from its fine-tunes.

    The config is left out: were it read wrongly, the vectors must still be found, and fail.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        found.update(f"{name} {tensor.shape} {tensor.encoding}\n".encode())
        for part in tensor.parts or (tensor,):
            found.update(checkpoint.read_rows(part.name, 0, 1).data)
    return found.hexdigest()


def _packaged(checkpoint: Checkpoint) -> Path | None:
    if checkpoint.format == "random":
        return None
    for path in sorted(DATA.glob("golden-*.json")):
        stored = _read(path)
        if stored["model"] == checkpoint.name and stored["fingerprint"] == fingerprint(checkpoint):
            return path
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlamacError(
            "LLC0108", str(path), f"cannot be read as JSON: {error}", "see docs/artifact-format.md"
        ) from None


def _check(found: Any, vocabulary: int, where: str) -> None:
    hint = 'expected {"oracle": text, "vectors": [{"prompt_ids", "greedy_ids", "top": [[id, logit], ...]}]}'
    if not isinstance(found, dict) or not isinstance(found.get("oracle"), str) or not found.get("vectors"):
        raise LlamacError("LLC0108", where, "holds no golden vectors", hint)
    try:
        quantized = [vector for rows in found.get("quantized", {}).values() for vector in rows]
        for vector in [*found["vectors"], *quantized]:
            ids = [*vector["prompt_ids"], *vector["greedy_ids"], *(token for token, _ in vector["top"])]
            if not vector["prompt_ids"] or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise LlamacError("LLC0108", where, "a vector is malformed or has ids outside the vocabulary", hint) from None

"""Meta's `tokenizer.model`: lines of ranks since Llama 3, a SentencePiece model before."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable

from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.hf_vocabulary import official_ranks

TOKENIZER_MODEL = "tokenizer.model"
_VARINT, _BYTES, _FLOAT = 0, 2, 5
_BPE = 2


def tokenizer_model(checkpoint: Checkpoint) -> bytes | None:
    """The file, or None where the source has no tokenizer of Meta's kinds."""
    source = checkpoint.tokenizer
    if source is None:
        return None
    if source.kind == "tiktoken":
        return source.files[TOKENIZER_MODEL]
    if source.kind == "tokenizer.json":
        ranks = official_ranks(json.loads(source.files["tokenizer.json"]))
        return None if ranks is None else rank_lines(ranks)
    return sentencepiece_model(json.loads(source.files["vocabulary.json"])) if source.kind == "gguf-spm" else None


def rank_lines(ranks: Iterable[bytes]) -> bytes:
    """A line of base64 and rank for each token."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))


def sentencepiece_model(stored: dict[str, object]) -> bytes:
    """The protobuf of a vocabulary: pieces, and of the trainer and the normalizer what encoding needs."""
    tokens, scores, types = (stored[name] for name in ("tokens", "scores", "token_types"))
    assert isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list)
    pieces = [
        _field(1, _field(1, token.encode("utf-8")) + _field(2, float(score)) + _field(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    ids = {40: types.index(2) if 2 in types else -1, 41: stored.get("bos_id"), 42: stored.get("eos_id"), 43: -1}
    trainer = _field(3, _BPE) + _field(4, len(tokens)) + _field(35, int(6 in types))
    trainer += b"".join(_field(number, value if isinstance(value, int) else -1) for number, value in ids.items())
    prefix = int(stored.get("add_space_prefix") is not False)
    normalizer = _field(1, b"identity") + _field(3, prefix) + _field(4, 0) + _field(5, 1)
    return b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | _FLOAT) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Negative numbers take their 64-bit form."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])

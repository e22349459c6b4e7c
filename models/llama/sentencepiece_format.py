"""Llama 2's `tokenizer.model`: a SentencePiece model, read from its protobuf form without the library.

    ModelProto       1: SentencePiece, repeated   2: TrainerSpec   3: NormalizerSpec
    SentencePiece    1: text   2: score (float)   3: type (1 unless given)
    TrainerSpec      3: kind of model (1 unigram, 2 BPE)   40 41 42 43: ids of unknown, begin, end, padding
    NormalizerSpec   2: compiled character map   3: add a space in front   4: remove extra white space

(sentencepiece_model.proto.) The types have the numbers that GGUF took over, so both become the kind "gguf-spm".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from llamac.errors import LlamacError

BPE = 2
UNKNOWN, CONTROL, BYTE = 2, 3, 6
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LARGEST_VOCABULARY = 1_000_000
VOCABULARY_FILE = "vocabulary.json"


@dataclass
class SentencePieceModel:
    """The parts of a model that encoding and decoding need; an id that is absent is None."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = 1
    bos_id: int | None = 1
    eos_id: int | None = 2
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = True
    has_character_map: bool = False

    def control_tokens(self) -> dict[str, int]:
        """Text -> id."""
        return {text: i for i, (text, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind == CONTROL}

    def unsupported(self) -> str:
        """Why the runtime cannot follow this model, or an empty string."""
        if self.kind != BPE:
            return "it is a SentencePiece model of another kind than BPE"
        if self.has_character_map or self.remove_extra_whitespaces:
            return "it is a SentencePiece model that rewrites text before it is cut (Llama's do not)"
        return ""

    def vocabulary(self) -> bytes:
        """The stored form of the runtime's kind "gguf-spm"."""
        stored = {
            "model": "llama",
            "tokens": self.tokens,
            "scores": self.scores,
            "token_types": self.types,
            "add_space_prefix": self.add_space_prefix,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }
        return json.dumps(stored, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Read a whole file; raises LLC0214 where it is cut off or is no such model."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(data):
            if number == 1:
                _read_piece(model, _bytes(value))
            elif number == 2:
                _read_trainer(model, _bytes(value))
            elif number == 3:
                _read_normalizer(model, _bytes(value))
        _check(model)
    except ValueError as problem:  # UnicodeDecodeError is one
        raise LlamacError(
            "LLC0214", where, f"it is no SentencePiece model ({problem})", "download it again"
        ) from problem
    return model


def _read_piece(model: SentencePieceModel, data: bytes) -> None:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            score = float(struct.unpack("<f", _bytes(value))[0]) if len(_bytes(value)) == 4 else float("nan")
        elif number == 3:
            kind = _number(value)
    if len(model.tokens) >= LARGEST_VOCABULARY:
        raise ValueError(f"more than {LARGEST_VOCABULARY} pieces")
    model.tokens.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _read_trainer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 3:
            model.kind = _number(value)
        elif number == 41:
            model.bos_id = _id(_number(value))
        elif number == 42:
            model.eos_id = _id(_number(value))


def _read_normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2:
            model.has_character_map = bool(_bytes(value))
        elif number == 3:
            model.add_space_prefix = bool(_number(value))
        elif number == 4:
            model.remove_extra_whitespaces = bool(_number(value))


def _check(model: SentencePieceModel) -> None:
    count = len(model.tokens)
    if not count:
        raise ValueError("it holds no pieces")
    if not all(1 <= kind <= 6 for kind in model.types):
        raise ValueError("a piece is of an unknown type")
    if not all(-1e30 < score < 1e30 for score in model.scores):
        raise ValueError("a score is not a number")
    if len({text for text, kind in zip(model.tokens, model.types, strict=True) if kind == BYTE}) not in (0, 256):
        raise ValueError("it has some byte pieces, but not all 256")
    for name in ("bos_id", "eos_id"):
        token_id = getattr(model, name)
        if token_id is not None and token_id >= count:
            raise ValueError(f"{name} {token_id} is outside its {count} pieces")


Value = int | bytes


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of every field of one message; fixed-width values come as their bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"wire type {wire} at byte {place}")
        length = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            length, place = _varint(data, place)
        if length > len(data) - place:
            raise ValueError(f"{length} bytes wanted at byte {place}, {len(data) - place} left")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"no number at byte {place}")


def _bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError("a number where text belongs")


def _number(value: Value) -> int:
    if isinstance(value, int):
        return value
    raise ValueError("text where a number belongs")


def _id(value: int) -> int | None:
    """Ids are 32-bit and signed, stored as 64 bits; a negative one means that there is none."""
    return None if value >= 1 << 31 else value

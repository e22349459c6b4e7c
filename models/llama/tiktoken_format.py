"""Meta's `tokenizer.model` since Llama 3: lines of "base64 rank", special tokens implied by their count."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from llamac.errors import LlamacError

RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")
LLAMA3_RANKS, LLAMA4_RANKS = 128_000, 200_000
MOST_RANKS = 1_000_000


def _reserved(prefix: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}reserved_special_token_{number}" for number in range(first, first + count))


LLAMA3_SPECIAL = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id "
    "start_header_id end_header_id eom_id eot_id python_tag image"
)
LLAMA4_SPECIAL: tuple[str | tuple[str, int, int], ...] = (
    "begin_of_text end_of_text fim_prefix fim_middle fim_suffix header_start header_end eom eot step",
    ("text_post_train_", 0, 6),
    "python_start python_end finetune_right_pad",
    ("text_post_train_", 8, 61),
    "image_start image_end",
    ("vision_", 0, 2),
    "tile_x_separator tile_y_separator",
    ("vision_", 2, 4),
    "image",
    ("vision_", 6, 1),
    "patch",
    ("vision_", 7, 1041),
    ("reasoning_", 0, 8),
    "reasoning_thinking_start reasoning_thinking_end",
    ("", 0, 904),
)
"""The special tokens in id order, as in Meta's llama3 and llama4 tokenizer.py; runs of reserved ones as
(prefix, first number, count)."""


def is_rank_file(data: bytes) -> bool:
    """True when the file starts with rank lines; SentencePiece files are protobuf and do not."""
    lines = data[:4096].split(b"\n")[:8]
    complete = lines[:-1] if len(lines) > 1 else lines
    return bool(complete) and all(RANK_LINE.fullmatch(line) for line in complete)


def read_ranks(data: bytes, where: str) -> list[bytes]:
    """The tokens in the order of their ranks; LLC0214 for a line that is none, or ranks that are not 0, 1, 2 ..."""
    token_of: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            token_of[int(rank)] = base64.b64decode(token, validate=True)
            if len(token_of) > MOST_RANKS:
                raise ValueError
        except (ValueError, binascii.Error) as problem:
            raise _damaged(where, f"line {number} is not 'base64 rank', or one too many") from problem
    tokens = [token_of.get(rank, b"") for rank in range(len(token_of))]
    known = set(tokens)
    if not tokens or not all(tokens) or len(known) != len(tokens):
        raise _damaged(where, f"its {len(tokens)} ranks are not 0, 1, 2 ... for as many different tokens")
    lost = next((byte for byte in range(256) if bytes([byte]) not in known), None)
    if lost is not None:
        raise _damaged(where, f"the byte {lost} has no rank")
    return tokens


def special_tokens(ranks: int, declared: Mapping[str, int] | None = None) -> dict[str, int]:
    """Text -> id of the special tokens that follow the ranks: 256 for Llama 3, 2048 for Llama 4.

    `declared` are the names of tokenizer_config.json; they replace Meta's for their ids, because Hugging Face numbers
    reserved tokens differently and Llama 3.0 knew fewer by name. The ids are the same everywhere.
    """
    names = _llama4_names() if ranks == LLAMA4_RANKS else _llama3_names()
    text_of = {ranks + place: f"<|{name}|>" for place, name in enumerate(names)}
    given = {token_id: text for text, token_id in (declared or {}).items() if ranks <= token_id < 2 * ranks}
    taken = set(given.values())
    text_of = {token_id: text for token_id, text in text_of.items() if text not in taken} | given
    return {text_of[token_id]: token_id for token_id in sorted(text_of)}


def _llama3_names() -> list[str]:
    named = LLAMA3_SPECIAL.split()
    return [*named, *_reserved("", 2, 256 - len(named))]


def _llama4_names() -> list[str]:
    return [name for part in LLAMA4_SPECIAL for name in (part.split() if isinstance(part, str) else _reserved(*part))]


def _damaged(where: str, reason: str) -> LlamacError:
    return LlamacError("LLC0214", where, reason, "download the file again")

"""A prompt as pieces: ordinary text, and control tokens that only a format can write."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.errors import LlamacError

from ..tokenizer import Tokenizer


class Control(str):
    """The text of a control token. What people say is plain `str`, so it never becomes one."""


Piece = str
"""A `Control`, or text that is encoded by itself: pieces never join into one token."""


def render(pieces: Sequence[Piece]) -> str:
    """The prompt as text, for reading."""
    return "".join(pieces)


def encode(tokenizer: Tokenizer, pieces: Sequence[Piece], format_name: str) -> list[int]:
    """The prompt as ids; LLC0915 when the tokenizer lacks a control token that the format writes."""
    ids: list[int] = []
    for piece in pieces:
        if not isinstance(piece, Control):
            ids += tokenizer.encode(piece, add_bos=False) if piece else []
            continue
        token_id = tokenizer.special_ids.get(piece)
        if token_id is None:
            reason = f"its tokenizer has no control token {piece}, which the chat format '{format_name}' needs"
            raise LlamacError("LLC0915", "chat format", reason, "choose the format of the model's generation")
        ids.append(token_id)
    return ids

"""Meta's `tokenizer.model` of Llama 3 and Llama 4 ("base64 rank" lines) through tiktoken.

Which of the two it is follows from the number of ranks; their control tokens come after the ranks (Meta's llama3 and
llama4 tokenizer.py, whose names are used here: Hugging Face numbers the reserved ones differently, the ids are the
same).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .llama_control_tokens import LLAMA4_RANKS
from .pre_tokenizers import LLAMA3_PATTERN, LLAMA4_PATTERN
from .tokenizer import TokenizerBase
from .tokenizer_files import malformed, missing_library, stored_file
from .tokenizer_llama import settings

if TYPE_CHECKING:
    from tiktoken import Encoding

MODEL_FILE = "tokenizer.model"
LONGEST_ENCODE = 400_000
"""tiktoken panics on much longer texts; Meta's tokenizers cut at the same number of characters."""
LONGEST_RUN = 25_000
"""Longest run of only white space, or of none, given to tiktoken's regex at once (tiktoken issue 195)."""


class TiktokenTokenizer(TokenizerBase):
    """Ids are ranks, then control tokens."""

    def __init__(self, encoding: Encoding, ranks: int, **common: Any) -> None:
        super().__init__(**common)
        self._encoding = encoding
        self._ranks = ranks

    def _encode_ordinary(self, text: str) -> list[int]:
        return [i for piece in _pieces(text) for i in self._encoding.encode_ordinary(piece)]

    def _encode_with_special(self, text: str) -> list[int]:
        return [i for piece in _pieces(text) for i in self._encoding.encode(piece, allowed_special="all")]

    def _piece_bytes(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id) if token_id < self._ranks else b""


def load_tiktoken(files: Mapping[str, bytes], info: Mapping[str, Any]) -> TiktokenTokenizer:
    """Build from `tokenizer.model`; `info` may give `special_tokens`, `bos_id`, `eos_id`, `add_bos` (default: true)."""
    ranks = _ranks(stored_file(files, MODEL_FILE))
    return build_tiktoken(ranks, settings(info, len(ranks), MODEL_FILE))


def build_tiktoken(ranks: dict[bytes, int], common: Mapping[str, Any]) -> TiktokenTokenizer:
    """Build from ranks and the settings of `TokenizerBase`."""
    pattern = LLAMA4_PATTERN if len(ranks) >= LLAMA4_RANKS else LLAMA3_PATTERN
    try:
        import tiktoken
    except ImportError as problem:
        raise missing_library("tiktoken", "a Llama tokenizer.model") from problem
    try:
        encoding = tiktoken.Encoding(
            "llama", pat_str=pattern, mergeable_ranks=ranks, special_tokens=common["special_ids"]
        )
    except (ValueError, AssertionError) as problem:
        raise malformed(MODEL_FILE, f"tiktoken refuses it ({problem})") from problem
    return TiktokenTokenizer(encoding, len(ranks), **common)


def _ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as problem:
            raise malformed(MODEL_FILE, f"line {number} is not 'base64 rank'{_what_it_is(data)}") from problem
    if set(ranks.values()) != set(range(len(ranks))):
        raise malformed(MODEL_FILE, f"the ranks are not 0 to {len(ranks) - 1}, each once")
    return ranks


def _what_it_is(data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "; it is a git-lfs pointer"
    return "; it looks like a SentencePiece model (Llama 2)" if data[:1] == b"\n" and b"<unk>" in data[:64] else ""


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), LONGEST_ENCODE):
        yield from _cut_long_runs(text[start : start + LONGEST_ENCODE])


def _cut_long_runs(text: str) -> Iterator[str]:
    if len(text) <= LONGEST_RUN:
        yield text
        return
    start = run = 0
    in_space = text[0].isspace()
    for place, character in enumerate(text):
        run += 1
        if character.isspace() != in_space:
            in_space, run = not in_space, 1
        elif run > LONGEST_RUN:
            yield text[start:place]
            start, run = place, 1
    yield text[start:]

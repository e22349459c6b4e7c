"""The tokenizer of Llama 3 and Llama 4 from a table of ranks: the first ids come without a dictionary being built.

tiktoken needs a quarter of a second to parse `tokenizer.model` and to index it. A prompt needs a few hundred ranks, so
they are looked up in `ranks.table` where it lies; text is cut by `llama_split` and merged by `byte_pairs`, in Python:
C would have to be part of every artifact's code for a merge that takes microseconds a word. tiktoken is built on first
need, from the same table, and then used for everything: for a text longer than `LONGEST_TEXT`, where its speed pays
for its start, for a very long word, and for characters newer than the table of classes. The ids are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .byte_pairs import merge_bytes
from .llama_control_tokens import LLAMA4_RANKS, control_token_ids
from .llama_split import LLAMA3_CLASSES, LLAMA4_CLASSES, LlamaSplit
from .rank_table import RANK_TABLE_FILE, RankTable
from .tokenizer import TokenizerBase
from .tokenizer_files import malformed, optional_id, stored_file

if TYPE_CHECKING:
    from .tokenizer_tiktoken import TiktokenTokenizer

LONGEST_TEXT = 4096
LONGEST_WORD = 256
MOST_WORDS = 50_000
"""Words whose ids are remembered; then the memory starts anew."""
CONTROL_FORM = re.compile(r"<\|[^|<>]*\|>")
"""The form of every control token of both vocabularies; others are left to tiktoken."""


class LlamaTokenizer(TokenizerBase):
    """Ids are ranks, then control tokens."""

    def __init__(self, table: RankTable, split: LlamaSplit, **common: Any) -> None:
        super().__init__(**common)
        self._common = common
        self._table = table
        self._split = split
        self._ids_of_word: dict[str, list[int]] = {}
        self._tiktoken: TiktokenTokenizer | None = None
        self._usual_form = all(CONTROL_FORM.fullmatch(text) for text in self.special_ids)

    def _encode_ordinary(self, text: str) -> list[int]:
        ids = self._quick_ids(text)
        return self._with_tiktoken()._encode_ordinary(text) if ids is None else ids

    def _encode_with_special(self, text: str) -> list[int]:
        ids = self._quick_ids_with_special(text) if self._usual_form and len(text) <= LONGEST_TEXT else None
        return self._with_tiktoken()._encode_with_special(text) if ids is None else ids

    def _quick_ids_with_special(self, text: str) -> list[int] | None:
        ids: list[int] = []
        start = 0
        for found in CONTROL_FORM.finditer(text):
            token_id = self.special_ids.get(found.group())
            if token_id is not None:
                before = self._quick_ids(text[start : found.start()])
                if before is None:
                    return None
                ids += before
                ids.append(token_id)
                start = found.end()
        rest = self._quick_ids(text[start:])
        return None if rest is None else ids + rest

    def _quick_ids(self, text: str) -> list[int] | None:
        """The ids by the table alone; None where tiktoken is there already or is the better choice."""
        if self._tiktoken is not None or len(text) > LONGEST_TEXT:
            return None
        words = self._split.words(text)
        if words is None or max(map(len, words), default=0) > LONGEST_WORD:
            return None
        ids: list[int] = []
        for word in words:
            known = self._ids_of_word.get(word)
            if known is None:
                if len(self._ids_of_word) >= MOST_WORDS:
                    self._ids_of_word.clear()
                known = self._ids_of_word[word] = merge_bytes(word.encode("utf-8"), self._table.rank)
            ids += known
        return ids

    def _with_tiktoken(self) -> TiktokenTokenizer:
        if self._tiktoken is None:
            from .tokenizer_tiktoken import build_tiktoken

            self._tiktoken = build_tiktoken(self._table.all_ranks(), self._common)
            self._ids_of_word.clear()
        return self._tiktoken

    def _piece_bytes(self, token_id: int) -> bytes:
        return self._table.token(token_id) if token_id < len(self._table) else b""


def load_llama(files: Mapping[str, bytes], info: Mapping[str, Any]) -> LlamaTokenizer:
    """Build from `ranks.table`; `info` as for a tokenizer.model (`tokenizer_tiktoken`)."""
    table = RankTable(stored_file(files, RANK_TABLE_FILE))
    missing = next((byte for byte in range(256) if table.rank(bytes([byte])) is None), None)
    if missing is not None:
        raise malformed(RANK_TABLE_FILE, f"the byte {missing} has no rank")
    pattern = LLAMA4_CLASSES if len(table) >= LLAMA4_RANKS else LLAMA3_CLASSES
    return LlamaTokenizer(table, LlamaSplit(pattern), **settings(info, len(table), RANK_TABLE_FILE))


def settings(info: Mapping[str, Any], ranks: int, file_name: str) -> dict[str, Any]:
    """What `TokenizerBase` wants to know, from `info` and, where that is silent, from Meta's own list of tokens."""
    special = _given_tokens(info, ranks) or control_token_ids(ranks)
    if not special:
        raise malformed(file_name, f"{ranks} ranks are neither those of Llama 3 nor those of Llama 4")
    vocab_size = max([ranks - 1, *special.values()]) + 1
    values = {
        "bos_id": special.get("<|begin_of_text|>"),
        "eos_id": special.get("<|end_of_text|>"),
        **{name: value for name, value in info.items() if value is not None},
    }
    return {
        "vocab_size": vocab_size,
        "special_ids": special,
        "bos_id": optional_id(values, "bos_id", vocab_size),
        "eos_id": optional_id(values, "eos_id", vocab_size),
        "add_bos": bool(values.get("add_bos", True)),
    }


def _given_tokens(info: Mapping[str, Any], ranks: int) -> dict[str, int]:
    given = info.get("special_tokens") or {}
    if not isinstance(given, dict) or not all(isinstance(i, int) and ranks <= i < 2 * ranks for i in given.values()):
        raise malformed("special_tokens", f"not a table of texts and ids after the {ranks} ranks")
    return given

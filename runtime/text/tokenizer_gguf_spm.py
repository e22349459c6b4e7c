"""SentencePiece BPE (Llama 2) from a GGUF file's own vocabulary: tokens, scores and token types.

The merge with the best score comes first, the leftmost among equals; what no token covers falls back to byte tokens
(Kudo and Richardson 2018; the order is that of SentencePiece's and llama.cpp's own encoders). It needs no library.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from typing import Any

from .tokenizer import TokenizerBase
from .tokenizer_files import VOCABULARY_FILE, malformed, optional_id, stored_json
from .tokenizer_json import WORD_MARK, sentencepiece_bytes

BYTE_FORM = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


class GgufSpmTokenizer(TokenizerBase):
    """`tokens[id]` and `scores[id]`; control, user-defined and unknown tokens take no part in merging."""

    def __init__(
        self, tokens: list[str], scores: list[float], types: list[int], *, space_prefix: bool, **common: Any
    ) -> None:
        super().__init__(vocab_size=len(tokens), **common)
        self.leading_space = space_prefix
        self._tokens = tokens
        self._scores = scores
        self._plain = {i for i, kind in enumerate(types) if kind in (USER_DEFINED, UNKNOWN)}
        self._id_of = {token: i for i, token in enumerate(tokens) if types[i] not in (CONTROL, UNKNOWN, UNUSED, BYTE)}
        self._id_of_byte = {sentencepiece_bytes(tokens[i])[0]: i for i, kind in enumerate(types) if kind == BYTE}
        self._unknown = next((i for i, kind in enumerate(types) if kind == UNKNOWN), 0)
        wholes = {tokens[i]: i for i, kind in enumerate(types) if kind == USER_DEFINED}
        self._wholes = wholes
        self._split_ordinary = _splitter(wholes)
        self._split_special = _splitter({**wholes, **self.special_ids})

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._tokens[token_id]
        return piece.encode("utf-8") if token_id in self._plain else sentencepiece_bytes(piece)

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._encode_split(text, self._split_ordinary, self._wholes)

    def _encode_with_special(self, text: str) -> list[int]:
        return self._encode_split(text, self._split_special, {**self._wholes, **self.special_ids})

    def _encode_split(self, text: str, splitter: re.Pattern[str] | None, wholes: Mapping[str, int]) -> list[int]:
        """As llama.cpp does, the first text and any text after a control token begin with a word mark."""
        ids: list[int] = []
        begins = True
        for place, piece in enumerate(splitter.split(text) if splitter else [text]):
            if place % 2 == 1:
                ids.append(wholes[piece])
                begins = piece in self.special_ids
            elif piece:
                prefix = WORD_MARK if begins and self.leading_space else ""
                ids += self._merge(prefix + piece.replace(" ", WORD_MARK))
                begins = False
        return ids

    def _merge(self, text: str) -> list[int]:
        """Merge neighbours, best score first; `parts[i]` starts at character i and is '' once merged away."""
        parts = list(text)
        after = [*range(1, len(parts)), -1]
        before = list(range(-1, len(parts) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                joined = parts[left] + parts[right]
                token_id = self._id_of.get(joined)
                if token_id is not None:
                    heapq.heappush(queue, (-self._scores[token_id], left, right, joined))

        for right in range(1, len(parts)):
            offer(right - 1, right)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            if not parts[left] or not parts[right] or after[left] != right or parts[left] + parts[right] != joined:
                continue  # one of the two changed since
            parts[left], parts[right] = joined, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token_id for part in parts if part for token_id in self._ids_of_part(part)]

    def _ids_of_part(self, part: str) -> list[int]:
        known = self._id_of.get(part)
        if known is not None:
            return [known]
        return [self._id_of_byte.get(byte, self._unknown) for byte in part.encode("utf-8")]


def load_gguf_spm(files: Mapping[str, bytes], info: Mapping[str, Any]) -> GgufSpmTokenizer:
    """From `vocabulary.json`: tokens, scores, token_types, maybe bos_id, eos_id, add_bos, add_space_prefix."""
    stored = stored_json(files, VOCABULARY_FILE)
    values = {**stored, **{name: value for name, value in info.items() if value is not None}}
    columns = [stored.get(name) for name in ("tokens", "scores", "token_types")]
    tokens, scores, types = columns
    if not (isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list) and tokens):
        raise malformed(VOCABULARY_FILE, "tokens, scores or token_types are missing")
    if not len(tokens) == len(scores) == len(types):
        raise malformed(VOCABULARY_FILE, f"{len(tokens)} tokens, {len(scores)} scores, {len(types)} token types")
    if not all(isinstance(token, str) for token in tokens) or not all(
        isinstance(score, (int, float)) for score in scores
    ):
        raise malformed(VOCABULARY_FILE, "a token is not text or a score not a number")
    wrong = [i for i, kind in enumerate(types) if kind == BYTE and not BYTE_FORM.fullmatch(tokens[i])]
    if wrong:
        raise malformed(VOCABULARY_FILE, f"byte token {tokens[wrong[0]]!r} is not of the form <0xNN>")
    return GgufSpmTokenizer(
        tokens,
        scores,
        types,
        space_prefix=_flag(values, "add_space_prefix"),
        special_ids={tokens[i]: i for i, kind in enumerate(types) if kind == CONTROL},
        bos_id=optional_id(values, "bos_id", len(tokens)),
        eos_id=optional_id(values, "eos_id", len(tokens)),
        add_bos=_flag(values, "add_bos"),
    )


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    return True if value is None else bool(value)


def _splitter(wholes: Mapping[str, int]) -> re.Pattern[str] | None:
    if not any(wholes):
        return None
    longest_first = sorted(filter(None, wholes), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

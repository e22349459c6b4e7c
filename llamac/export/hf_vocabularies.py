"""Vocabularies of other files as the JSON of a `tokenizer.json`: ranks, GGUF's byte pairs, SentencePiece's pieces.

The format is that of the `tokenizers` library; the library is not needed to write it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import TokenizerSource
from llamac.models.llama.hf_vocabulary import LLAMA3_PATTERN, LLAMA4_PATTERN
from llamac.models.llama.tiktoken_format import LLAMA4_RANKS, read_ranks
from llamac.runtime.text.byte_alphabet import CHARACTER_OF_BYTE
from llamac.runtime.text.pre_tokenizers import PRE_TOKENIZERS
from llamac.runtime.text.tokenizer_json import WORD_MARK

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""GGUF's types of tokens."""

Json = dict[str, Any]


def from_ranks(source: TokenizerSource) -> Json:
    """Llama 3 and 4: every way of making a token of two is a merge, in the order of the ranks."""
    tokens = read_ranks(source.files["tokenizer.model"], "tokenizer.model")
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    pieces = ["".join(map(CHARACTER_OF_BYTE.__getitem__, token)) for token in tokens]
    merges: list[list[str]] = []
    for token in tokens:
        cuts = [(rank_of.get(token[:cut]), rank_of.get(token[cut:])) for cut in range(1, len(token))]
        pairs = sorted((left, right) for left, right in cuts if left is not None and right is not None)
        merges += [[pieces[left], pieces[right]] for left, right in pairs]
    special = source.info["special_tokens"]
    assert isinstance(special, dict)
    added = [_added(text, token_id, special=True) for text, token_id in sorted(special.items(), key=lambda row: row[1])]
    pattern = LLAMA4_PATTERN if len(tokens) >= LLAMA4_RANKS else LLAMA3_PATTERN
    vocabulary = {piece: rank for rank, piece in enumerate(pieces)}
    return _byte_level(added, (pattern,), vocabulary, merges, ignore_merges=True)


def from_byte_pairs(source: TokenizerSource) -> Json:
    """A GGUF file's byte-level vocabulary: its tokens, merges, and the name of how it cuts text."""
    stored = _stored(source)
    tokens, types = stored["tokens"], stored["token_types"]
    pre = PRE_TOKENIZERS[stored["pre"]]
    wholes = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    # Control tokens at the end stay out of the vocabulary: with ignore_merges a word equal to one would become it.
    size = len(tokens)
    while size and types[size - 1] in (CONTROL, USER_DEFINED):
        size -= 1
    added = [_added(tokens[i], i, special=types[i] == CONTROL) for i in wholes]
    merges = [list(merge.partition(" ")[::2]) for merge in stored["merges"]]
    return _byte_level(added, pre.patterns, _vocabulary(tokens[:size]), merges, pre.ignore_merges)


def from_sentencepiece(source: TokenizerSource) -> Json:
    """Llama 2's pieces: the scores become an order of merges, and bytes stand for what no piece covers."""
    stored = _stored(source)
    tokens, types, scores = stored["tokens"], stored["token_types"], stored["scores"]
    added = [_added(tokens[i], i, special=k == CONTROL) for i, k in enumerate(types) if k in (CONTROL, USER_DEFINED)]
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == UNKNOWN), None)
    prefix = stored.get("add_space_prefix") is not False
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_MARK}
    normalizers = [*([{"type": "Prepend", "prepend": WORD_MARK}] if prefix else []), spaces]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": WORD_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    model = _model(_vocabulary(tokens), _merges_of_scores(tokens, types, scores), ignore_merges=False)
    model |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    return _tokenizer(added, normalizer, None, {"type": "Sequence", "decoders": decoders}, model)


def _merges_of_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """Every way of making a piece of two others, best score first."""
    usable = {t: i for i, t in enumerate(tokens) if types[i] not in (UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    found: list[tuple[float, int, int]] = []
    for token, token_id in usable.items():
        cuts = [(usable.get(token[:cut]), usable.get(token[cut:])) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left is not None and right is not None]
        found += [(-scores[token_id], left, right) for left, right in sorted(pairs)]
    return [[tokens[left], tokens[right]] for _, left, right in sorted(found, key=lambda row: row[0])]


def _stored(source: TokenizerSource) -> Json:
    found = json.loads(source.files["vocabulary.json"])
    assert isinstance(found, dict)
    return found


def _vocabulary(tokens: Iterable[str]) -> dict[str, int]:
    """Text -> id; LLC0952 where two tokens have one text."""
    found: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if found.setdefault(token, token_id) != token_id:
            reason = (
                f"the tokens {found[token]} and {token_id} are both {token[:40]!r}, and tokenizer.json names each once"
            )
            raise LlamacError("LLC0952", "tokenizer", reason, "export to gguf, which keeps them")
    return found


def _added(text: str, token_id: int, special: bool) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, **flags, "special": special}


def _byte_level(
    added: list[Json],
    patterns: Sequence[str],
    vocabulary: Mapping[str, int],
    merges: list[list[str]],
    ignore_merges: bool,
) -> Json:
    """A tokenizer over GPT-2's alphabet of bytes that cuts by each pattern in turn."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model = _model(vocabulary, merges, ignore_merges)
    return _tokenizer(added, None, {"type": "Sequence", "pretokenizers": [*cuts, level]}, decoder, model)


def _model(vocabulary: Mapping[str, int], merges: list[list[str]], ignore_merges: bool) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocabulary),
        "merges": merges,
    }


def _tokenizer(added: list[Json], normalizer: Json | None, cutter: Json | None, decoder: Json, model: Json) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": cutter,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }

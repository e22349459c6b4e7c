"""Recognizes Meta's own Llama 3 and Llama 4 vocabularies in a Hugging Face tokenizer.json.

Then the runtime may use the table of ranks in place of the file: the ids are by definition those of tiktoken over the
ranks. Anything about the file that could make a difference (another pattern, a normalizer, tokens of its own that are
not special, other merges) means that it is not recognized, and the file is used as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OFFICIAL: dict[int, tuple[str, int, str]] = {
    128_000: (LLAMA3_PATTERN, 280_147, "5861169db03f237c50ae849a13788f96c746f9636d9722ed30a45b7e0675ce30"),
    200_000: (LLAMA4_PATTERN, 439_802, "459df124c59552692c770bad082338172fa3fcf21500143696fb48bdbc5f28ec"),
}
"""Number of ranks -> the pattern, how many pairs of tokens make a token, and the digest of the tokens (`_digest`)."""


def official_ranks(tokenizer: Mapping[str, Any]) -> list[bytes] | None:
    """The tokens in the order of their ranks, or None when this is not exactly one of Meta's vocabularies."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocabulary, dict) or tokenizer.get("normalizer") is not None:
        return None
    ranks = len(vocabulary)
    if ranks not in OFFICIAL or model.get("type") != "BPE" or model.get("ignore_merges") is not True:
        return None
    pattern, merge_count, digest = OFFICIAL[ranks]
    if model.get("dropout") or model.get("byte_fallback") or not _cuts_by(tokenizer.get("pre_tokenizer"), pattern):
        return None
    if not _only_special_tokens(tokenizer.get("added_tokens"), ranks):
        return None
    tokens = _tokens(vocabulary)
    merges = model.get("merges")
    if tokens is None or _digest(tokens) != digest or not isinstance(merges, list) or len(merges) != merge_count:
        return None
    return tokens if _in_order(merges, vocabulary) else None


def _cuts_by(pre_tokenizer: object, pattern: str) -> bool:
    parts = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, dict) for part in parts):
        return False
    split, level = parts
    return (
        (split.get("type"), split.get("behavior"), split.get("invert")) == ("Split", "Isolated", False)
        and split.get("pattern") == {"Regex": pattern}
        and (level.get("type"), level.get("add_prefix_space"), level.get("use_regex")) == ("ByteLevel", False, False)
    )


def _only_special_tokens(added: object, ranks: int) -> bool:
    """Whether all added tokens are special, matched just as they are written, and numbered after the ranks."""
    if not isinstance(added, list) or not all(isinstance(row, dict) for row in added):
        return False
    plain = ("lstrip", "rstrip", "single_word")
    return all(
        row.get("special") is True
        and isinstance(row.get("id"), int)
        and ranks <= row["id"] < 2 * ranks
        and not any(row.get(flag) for flag in plain)
        for row in added
    )


def _tokens(vocabulary: Mapping[str, object]) -> list[bytes] | None:
    byte_of = _byte_of_character()
    tokens: list[bytes] = [b""] * len(vocabulary)
    try:
        for piece, rank in vocabulary.items():
            if not isinstance(rank, int) or rank < 0:
                return None
            tokens[rank] = bytes(map(byte_of.__getitem__, piece))
    except (KeyError, IndexError):
        return None
    return tokens


def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for 256, 257 ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _digest(tokens: list[bytes]) -> str:
    return hashlib.sha256(b"".join(len(token).to_bytes(4, "little") + token for token in tokens)).hexdigest()


def _in_order(merges: list[Any], vocabulary: Mapping[str, int]) -> bool:
    """Whether every merge makes a token, and merges come in the order of the ranks of what they make."""
    last = -1
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            return False
        made = vocabulary.get(pair[0] + pair[1], -1)
        if made < last or not (pair[0] in vocabulary and pair[1] in vocabulary):
            return False
        last = made
    return True

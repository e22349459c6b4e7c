"""A Hugging Face tokenizer.json as a GGUF vocabulary: byte-level BPE, or SentencePiece BPE with byte fallback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from llamac.errors import LlamacError, did_you_mean
from llamac.runtime.text.pre_tokenizers import LLAMA3_PATTERN, LLAMA4_PATTERN, PRE_TOKENIZERS

from .words import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Words

WORD_MARK = "▁"
NAMED_BY_PATTERN = {LLAMA3_PATTERN: "llama-bpe", LLAMA4_PATTERN: "llama4"}
"""Pattern that a tokenizer.json cuts text by -> llama.cpp's name for it."""
HINT = "pass --option pre=NAME if one of llama.cpp's pre-tokenizers cuts text the same way"


def vocabulary_of_json(parsed: Mapping[str, Any], pre: str | None) -> Words:
    """The vocabulary; `pre` names llama.cpp's pre-tokenizer where the file's own is not known. LLC0946 without one."""
    model = parsed.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        _refuse(f"its model is {kind!r}, and llama.cpp's Llama tokenizers are BPE")
    words = _sentencepiece(parsed, model) if model.get("byte_fallback") else _byte_level(parsed, model, pre)
    for row in sorted(parsed.get("added_tokens") or [], key=lambda row: row["id"]):
        kind = CONTROL if row.get("special") else USER_DEFINED
        if words.model == "llama" and row["content"] == model.get("unk_token"):
            kind = UNKNOWN
        words.put(row["id"], row["content"], kind)
    return words


def _byte_level(parsed: Mapping[str, Any], model: Mapping[str, Any], pre: str | None) -> Words:
    if pre is not None and pre not in PRE_TOKENIZERS:
        reason = f"unknown pre-tokenizer '{pre}'{did_you_mean(pre, PRE_TOKENIZERS)}"
        raise LlamacError("LLC0946", "--option pre", reason, f"known are {', '.join(PRE_TOKENIZERS)}")
    if parsed.get("normalizer") is not None:
        _refuse(f"it rewrites text before it is cut ({parsed['normalizer'].get('type')}), which llama.cpp does not")
    words = Words("gpt2", [], [], pre or _pre_tokenizer(parsed.get("pre_tokenizer")))
    _put_vocabulary(words, model["vocab"])
    words.merges = [" ".join(pair) for pair in _pairs(model)]
    return words


def _pre_tokenizer(row: Any) -> str:
    """llama.cpp's name for how the file cuts text into words."""
    parts = list(_flat(row))
    kinds = [part.get("type") for part in parts]
    by_regex = [part.get("use_regex", True) for part in parts if part.get("type") == "ByteLevel"]
    if any(part.get("add_prefix_space") for part in parts):
        _refuse("it puts a space before the first word, which llama.cpp does not for byte-level vocabularies")
    if kinds == ["ByteLevel"] and by_regex == [True]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and by_regex == [True] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and by_regex == [False] and not parts[0].get("invert"):
        pattern = parts[0].get("pattern")
        text = pattern.get("Regex") if isinstance(pattern, dict) else None
        if parts[0].get("behavior") == "Isolated" and text in NAMED_BY_PATTERN:
            return NAMED_BY_PATTERN[text]
    _refuse("it cuts text into words in a way that none of the known pre-tokenizers of llama.cpp does", HINT)


def _flat(row: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(row, dict):
        parts = row.get("pretokenizers")
        yield from (part for one in parts for part in _flat(one)) if isinstance(parts, list) else [row]


def _sentencepiece(parsed: Mapping[str, Any], model: Mapping[str, Any]) -> Words:
    """Scores follow from the order of merges, as merges followed from the scores when the file was made."""
    words = Words("llama", [], [])
    _put_vocabulary(words, model["vocab"])
    order: dict[str, int] = {}
    for left, right in _pairs(model):
        order.setdefault(left + right, len(order))
    last = -float(len(order))
    words.scores = [-float(order[token]) if token in order else last for token in words.tokens]
    words.types = [_type(token, model) for token in words.tokens]
    words.flags["add_space_prefix"] = _adds_space(parsed)
    return words


def _type(token: str, model: Mapping[str, Any]) -> int:
    if token == model.get("unk_token"):
        return UNKNOWN
    return BYTE if len(token) == 6 and token.startswith("<0x") and token.endswith(">") else NORMAL


def _adds_space(parsed: Mapping[str, Any]) -> bool:
    """Whether the first word gets a word mark, which either a normalizer or a Metaspace puts there."""
    found = False
    normalizer = parsed.get("normalizer") or {}
    for part in normalizer.get("normalizers", [normalizer]):
        kind = part.get("type")
        if kind == "Prepend" and part.get("prepend") == WORD_MARK:
            found = True
        elif kind not in (None, "Replace"):
            _refuse(f"it rewrites text before it is cut ({kind}), which llama.cpp does not")
    for part in _flat(parsed.get("pre_tokenizer")):
        if part.get("type") != "Metaspace":
            _refuse(f"it has a pre-tokenizer '{part.get('type')}' beside byte fallback")
        found = found or part.get("prepend_scheme", "always") != "never"
    return found


def _put_vocabulary(words: Words, vocabulary: Mapping[str, int]) -> None:
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        words.put(token_id, token, NORMAL)


def _pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in model.get("merges") or []:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], " ", merge[1])
        yield left, right


def _refuse(reason: str, hint: str = "use a checkpoint of the family with its own tokenizer") -> NoReturn:
    raise LlamacError("LLC0946", "tokenizer.json", reason, hint)

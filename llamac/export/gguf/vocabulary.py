"""The tokenizer of a checkpoint as the metadata `tokenizer.ggml.*`, whatever kind it is.

    model "gpt2"    byte-level BPE: tokens in GPT-2's byte alphabet, merges in order, the name of a pre-tokenizer
    model "llama"   SentencePiece BPE: tokens with scores
    model "none"    no tokenizer: the consumer passes ids

Every id below the vocabulary's size gets a token, because llama.cpp takes the size from the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import TokenizerSource

from ..hf_vocabularies import from_ranks
from ..request import ExportRequest
from .json_vocabulary import vocabulary_of_json
from .keys import Keys
from .words import UNUSED, Words

PREFIX = "tokenizer.ggml."
NAMED_ROLES = {
    "bos_token_id": ("<|begin_of_text|>",),
    "eos_token_id": ("<|end_of_text|>",),
    "eot_token_id": ("<|eot_id|>", "<|eot|>"),
    "eom_token_id": ("<|eom_id|>", "<|eom|>"),
    "padding_token_id": ("<|finetune_right_pad_id|>", "<|finetune_right_pad|>"),
}
"""Key -> the texts of control tokens that have this role."""


def vocabulary_keys(request: ExportRequest) -> Keys:
    """The keys `tokenizer.ggml.*`; LLC0946 for a tokenizer that llama.cpp has no form for."""
    source, size = request.checkpoint.tokenizer, request.checkpoint.config.vocab_size
    if source is None:
        request.note(
            "absent", "tokenizer", "none is written", "the source has none: llama.cpp will take token ids only"
        )
        return {f"{PREFIX}model": "none"}
    words = _words(source, request.options.get("pre"))
    _fit(words, size, request)
    keys: Keys = {"model": words.model, "tokens": words.tokens, "token_type": words.types}
    if words.model == "gpt2":
        keys |= {"pre": words.pre, "merges": words.merges}
    else:
        keys |= {"scores": words.scores, "pre": "default"}
    keys |= words.flags | _ids(words, source.info, size)
    keys["add_bos_token"] = bool(source.info.get("add_bos"))
    return {f"{PREFIX}{name}": value for name, value in keys.items()}


def _words(source: TokenizerSource, pre: str | None) -> Words:
    if source.kind == "tokenizer.json":
        return vocabulary_of_json(json.loads(source.files["tokenizer.json"]), pre)
    if source.kind == "tiktoken":
        return vocabulary_of_json(from_ranks(source), pre)
    if source.kind in ("gguf-bpe", "gguf-spm"):
        return _of_gguf(json.loads(source.files["vocabulary.json"]))
    reason = f"a tokenizer of the kind '{source.kind}' has no form in GGUF"
    raise LlamacError("LLC0946", "tokenizer", reason, "export a checkpoint with tokenizer.json or tokenizer.model")


def _of_gguf(stored: Mapping[str, Any]) -> Words:
    """The stored form that GGUF files and SentencePiece models come in already."""
    flags = {"add_space_prefix": "add_space_prefix", "add_eos": "add_eos_token"}
    flags["remove_extra_whitespaces"] = "remove_extra_whitespaces"
    return Words(
        model=stored["model"],
        tokens=list(stored["tokens"]),
        types=list(stored["token_types"]),
        pre=stored.get("pre", "default"),
        merges=stored.get("merges", []),
        scores=[float(score) for score in stored.get("scores", [])],
        flags={key: stored[name] for name, key in flags.items() if name in stored},
    )


def _fit(words: Words, size: int, request: ExportRequest) -> None:
    """Exactly as many tokens as the model has rows: unused ones where there are none, none beyond."""
    if len(words.tokens) > size:
        surplus = len(words.tokens) - size
        reason = f"the model has {size} rows, so these ids could never be embedded"
        request.note("ignored", "tokenizer", f"{surplus} tokens from id {size} on", reason)
        words.cut(size)
    if len(words.tokens) < size:
        count = size - len(words.tokens)
        request.note("default", "tokenizer", f"{count} unused tokens at the end", "the model has more rows than tokens")
        words.put(size - 1, f"[PAD{size - 1}]", UNUSED)


def _ids(words: Words, info: Mapping[str, object], size: int) -> Keys:
    """The ids of the special roles: those the checkpoint names, then those that control tokens have by their name."""
    named = {"bos_token_id": "bos_id", "eos_token_id": "eos_id", "eot_token_id": "eot_id", "eom_token_id": "eom_id"}
    named |= {"unknown_token_id": "unk_id", "padding_token_id": "pad_id"}
    found: Keys = {}
    for key, name in named.items():
        value = info.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
            found[key] = value
    for key, texts in NAMED_ROLES.items():
        ids = [words.control[text] for text in texts if text in words.control]
        if key not in found and ids and words.model == "gpt2":
            found[key] = ids[0]
    return found

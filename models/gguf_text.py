"""Tokenizer, chat template and stop ids from the metadata of a GGUF file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamac.errors import LlamacError, did_you_mean

from .checkpoint import GenerationDefaults, TokenizerSource
from .ledger import LedgerEntry, entry
from .stop_tokens import StopIds, special_ids

VOCABULARY_FILE = "vocabulary.json"
KINDS = {"gpt2": "gguf-bpe", "llama": "gguf-spm"}
CONTROL = 3
"""GGUF token type of control tokens."""

KNOWN_PRE = frozenset(
    (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "midm-2.0",
        "llama4",
        "smollm",
        "starcoder",
        "refact",
        "gpt-2",
        "default",
    )
)
"""Pre-tokenizers that the runtime has: another is known at compile time, not when the first text comes."""

PRE_ADDING_BOS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"})
"""Pre-tokenizers for which llama.cpp adds the begin-of-sequence token when the file does not say."""

STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass
class GgufText:
    """What the metadata says about text."""

    tokenizer: TokenizerSource | None = None
    chat_template: str | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    ledger: list[LedgerEntry] = field(default_factory=list)


def read_gguf_text(metadata: Mapping[str, object], where: str, vocab_size: int) -> GgufText:
    """Read the `tokenizer.*` keys; raises LLC0212 when they contradict each other."""
    ledger: list[LedgerEntry] = []
    keys = {key[15:]: value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}
    template = metadata.get("tokenizer.chat_template")
    tokenizer = _tokenizer(keys, where, vocab_size, ledger)
    stops = StopIds(vocab_size)
    for key in STOP_KEYS:
        stops.add(keys.get(key), f"tokenizer.ggml.{key}")
    tokens, types = _strings(keys, "tokens", where), _types(keys, where)
    stops.add_turn_ends(special_ids(tokens, types, CONTROL))
    bos_id = _id(keys, "bos_token_id", vocab_size)
    add_bos = tokenizer.info["add_bos"] is True if tokenizer is not None else False
    return GgufText(
        tokenizer,
        template if isinstance(template, str) and template else None,
        GenerationDefaults(bos_id, add_bos and bos_id is not None, stops.ids(), stops.sources()),
        [*ledger, *stops.ledger],
    )


def _tokenizer(
    keys: Mapping[str, object], where: str, vocab_size: int, ledger: list[LedgerEntry]
) -> TokenizerSource | None:
    """One self-contained JSON file with the vocabulary and everything that steers it."""
    model = keys.get("model")
    if not isinstance(model, str) or model not in KINDS:
        what = f"tokenizer.ggml.model {str(model)[:60]!r}"
        ledger.append(entry("note", "tokenizer", "none", f"{what} is not read; known: {', '.join(KINDS)}"))
        return None
    pre = _text(keys, "pre") or "default"
    if model == "gpt2" and pre not in KNOWN_PRE:
        what = f"tokenizer.ggml.pre {pre[:60]!r}"
        ledger.append(entry("note", "tokenizer", "none", f"{what} is not known{did_you_mean(pre, KNOWN_PRE)}"))
        return None
    tokens, types = _strings(keys, "tokens", where), _types(keys, where)
    if not 0 < len(tokens) <= vocab_size:
        reason = f"{len(tokens)} tokens for a vocabulary of {vocab_size}"
        raise LlamacError("LLC0212", f"{where} tokenizer", reason, "convert the checkpoint again")
    stored: dict[str, object] = {"model": model, "tokens": tokens, "token_types": types}
    if model == "gpt2":
        merges = _strings(keys, "merges", where)
        if not merges:
            raise LlamacError("LLC0212", f"{where} tokenizer", "tokenizer.ggml.merges is missing", "convert again")
        stored |= {"pre": pre, "merges": merges}
    else:
        stored["scores"] = _scores(keys, where, len(tokens))
    for flag in ("add_eos_token", "add_space_prefix", "remove_extra_whitespaces"):
        if isinstance(keys.get(flag), bool):
            stored[flag.removesuffix("_token")] = keys[flag]
    info = _info(keys, model, vocab_size, ledger)
    data = json.dumps({**stored, **info}, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")
    return TokenizerSource(KINDS[model], {VOCABULARY_FILE: data}, info)


def _info(keys: Mapping[str, object], model: str, vocab_size: int, ledger: list[LedgerEntry]) -> dict[str, object]:
    """Ids of the special roles, and whether a prompt gets the begin-of-sequence token."""
    add_bos = keys.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = model == "llama" or _text(keys, "pre") in PRE_ADDING_BOS
        what, reason = str(add_bos).lower(), "tokenizer.ggml.add_bos_token is not given: llama.cpp's default"
        ledger.append(entry("default", "tokenizer add_bos", what, reason))
    roles = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unknown": "unk", "padding": "pad"}
    ids = {f"{short}_id": _id(keys, f"{role}_token_id", vocab_size) for role, short in roles.items()}
    return {"add_bos": add_bos, **{key: value for key, value in ids.items() if value is not None}}


def _text(keys: Mapping[str, object], key: str) -> str | None:
    value = keys.get(key)
    return value if isinstance(value, str) else None


def _id(keys: Mapping[str, object], key: str, vocab_size: int) -> int | None:
    value = keys.get(key)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
    return value if valid and isinstance(value, int) else None


def _strings(keys: Mapping[str, object], key: str, where: str) -> list[str]:
    value = keys.get(key, [])
    if not isinstance(value, list) or (value and not isinstance(value[0], str)):
        raise LlamacError(
            "LLC0212", f"{where} tokenizer", f"tokenizer.ggml.{key} is no list of strings", "convert again"
        )
    return value


def _types(keys: Mapping[str, object], where: str) -> list[int]:
    """One GGUF token type per token; 1 (normal) where the file gives none."""
    count = len(_strings(keys, "tokens", where))
    value = keys.get("token_type", [1] * count)
    if not isinstance(value, list) or len(value) != count or (value and type(value[0]) is not int):
        reason = f"tokenizer.ggml.token_type does not give one number for each of {count} tokens"
        raise LlamacError("LLC0212", f"{where} tokenizer", reason, "convert the checkpoint again")
    return value


def _scores(keys: Mapping[str, object], where: str, count: int) -> list[float]:
    value = keys.get("scores")
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(one, float) and math.isfinite(one) for one in value)
    ):
        reason = f"tokenizer.ggml.scores does not give one number for each of {count} tokens"
        raise LlamacError("LLC0212", f"{where} tokenizer", reason, "convert the checkpoint again")
    return value

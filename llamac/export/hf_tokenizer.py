"""The text side of a Hugging Face folder: tokenizer.json and tokenizer_config.json from every kind of tokenizer.

A tokenizer.json of the source is copied. From ranks (Llama 3 and 4), from a GGUF file's vocabulary and from a
SentencePiece model one is made that gives the same ids; `tokenizer_differences` compares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint, TokenizerSource

from .chat_templates import chat_template
from .hf_vocabularies import from_byte_pairs, from_ranks, from_sentencepiece

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

_MAKERS: dict[str, Callable[[TokenizerSource], dict[str, Any]]] = {
    "tiktoken": from_ranks,
    "gguf-bpe": from_byte_pairs,
    "gguf-spm": from_sentencepiece,
}

TEXTS = (
    "Hello, world! It's a test; isn't it? WE'LL SEE.",
    "  leading spaces,\ttabs\t\tand\nnew\r\nlines\n\n\n   \n trailing  ",
    "def f(x):\n    return x**2 + 3.14159e-10  # 1234567 89\n",
    "Der Flußübergang kostet 12,50 €; ça coûte très cher, où est-ce?",
    "Привет, мир! Как дела? Ещё одна строка.",
    "你好,世界!今天天气很好。日本語のテキストも、ひらがなとカタカナ。한국어 문장입니다.",
    "مرحبا بالعالم، هذا نص عربي. שלום עולם",
    "नमस्ते दुनिया, यह एक परीक्षण है। สวัสดีชาวโลก",
    "emoji: 😀👩‍👩‍👧‍👦🏳️‍🌈 math: ∑∫√≠ boxes: ┌─┐ zero\u200bwidth a\u0301",
    "a" * 70 + " " * 40 + "0" * 30,
    "Ünïcödé ＦＵＬＬ ǅ ﬁ İ ß ẞ \u00a0nbsp\u2028separator",
    "<s> </s> <unk> [INST] <|not_a_token|> <0x0A> ▁ Ġ",
    "",
    " ",
)
"""What the ids of two tokenizers are compared on: scripts, numbers, white space, code, and rare characters."""


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """File name -> content; empty where the source has no tokenizer."""
    source = checkpoint.tokenizer
    if source is None:
        return {}
    begin = _begins_with(source)
    if source.kind == "tokenizer.json":
        content = _copied(source.files[TOKENIZER], begin)
        made = json.loads(content)
    else:
        made = _MAKERS[source.kind](source)
        made["post_processor"] = _post_processor(begin, made["model"].get("byte_fallback") is not True)
        content = _text(made)
    return {TOKENIZER: content, SETTINGS: _text(_settings(checkpoint, source, made))}


def tokenizer_differences(source: TokenizerSource, exported: TokenizerSource, with_special: bool = True) -> list[str]:
    """The texts of `TEXTS` that the exported tokenizer gives other ids than the source's, or makes another text of.

    with_special: control tokens by their texts too.
    """
    from llamac.runtime.text.tokenizer import load_tokenizer

    own, made = (load_tokenizer(one.kind, one.files, one.info) for one in (source, exported))
    texts = [*TEXTS, *([" ".join(f"x{special} y" for special in list(own.special_ids)[:40])] if with_special else [])]
    found = []
    for text in texts:
        for special in (False, True) if with_special else (False,):
            ids = own.encode(text, allow_special=special)
            if made.encode(text, allow_special=special) != ids or made.decode(ids) != own.decode(ids):
                found.append(text)
    return list(dict.fromkeys(found))


def _begins_with(source: TokenizerSource) -> tuple[str, int] | None:
    """The text and id of the token that comes before every prompt, or None."""
    from llamac.runtime.text.tokenizer import load_tokenizer

    own = load_tokenizer(source.kind, source.files, source.info)
    if not own.add_bos or own.bos_id is None:
        return None
    text = own.special_text(own.bos_id)
    if not text:
        reason = f"prompts begin with the id {own.bos_id}, which is no special token of the vocabulary"
        raise LlamacError("LLC0952", "tokenizer", reason, "correct the tokenizer of the source")
    return text, own.bos_id


def _copied(data: bytes, begin: tuple[str, int] | None) -> bytes:
    """The file as it is, unless it disagrees with the checkpoint about the token that comes first."""
    from llamac.runtime.text.tokenizer import load_tokenizer

    own = load_tokenizer("tokenizer.json", {TOKENIZER: data}, {})
    found = own.bos_id if own.add_bos else None
    if found == (None if begin is None else begin[1]):
        return data
    parsed = json.loads(data)
    byte_level = "ByteLevel" in json.dumps(parsed.get("decoder"))
    return _text(parsed | {"post_processor": _post_processor(begin, byte_level)})


def _post_processor(begin: tuple[str, int] | None, byte_level: bool) -> dict[str, Any] | None:
    """Puts the begin-of-sequence token before one text, and before each of a pair."""
    if begin is None:
        return (
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
            if byte_level
            else None
        )
    text, token_id = begin
    first: list[Any] = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second: list[Any] = [{"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }


def _settings(checkpoint: Checkpoint, source: TokenizerSource, made: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the class that takes tokenizer.json as it is, the special roles, the chat template."""
    info, stops = source.info, checkpoint.generation.stop_ids
    texts = {row["id"]: row["content"] for row in made.get("added_tokens") or []}
    ids = {
        "bos_token": checkpoint.generation.bos_id,
        "eos_token": next(iter(stops), None) if info.get("eos_id") is None else info["eos_id"],
        "pad_token": info.get("pad_id"),
    }
    found: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": checkpoint.config.context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    found |= {role: texts[i] for role, i in ids.items() if isinstance(i, int) and i in texts}
    unknown = made["model"].get("unk_token")
    found |= {"unk_token": unknown} if unknown is not None else {}
    template = chat_template(checkpoint)
    if template is not None:
        found["chat_template"] = template
    return found


def _text(value: Mapping[str, Any]) -> bytes:
    """JSON as Hugging Face writes it, in the order of its keys."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

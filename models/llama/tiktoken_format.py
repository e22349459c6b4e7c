"""Meta's `tokenizer.model` since Llama 3: lines of "base64 rank", special tokens implied by their count."""

from __future__ import annotations

import re

RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")
NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
"""The first special tokens, in id order; the rest are reserved (llama-models, llama3/tokenizer.py)."""

SPECIAL_COUNT = 256


def is_rank_file(data: bytes) -> bool:
    """True when the file starts with rank lines; SentencePiece files are protobuf and do not."""
    lines = data[:4096].split(b"\n")[:8]
    complete = lines[:-1] if len(lines) > 1 else lines
    return bool(complete) and all(RANK_LINE.fullmatch(line) for line in complete)


def special_tokens(data: bytes) -> dict[str, int]:
    """Text -> id of the 256 special tokens that follow the ranks of the file."""
    base = sum(1 for line in data.split(b"\n") if line.strip())
    reserved = (f"<|reserved_special_token_{2 + index}|>" for index in range(SPECIAL_COUNT - len(NAMED)))
    return {text: base + index for index, text in enumerate([*NAMED, *reserved])}

"""How text is cut into words before merging, by the name a GGUF file gives it (`tokenizer.ggml.pre`).

A row is a list of patterns applied in order, each cutting the pieces the one before left; a match and the text between
matches both become pieces. Sources: Meta's llama3 and llama4 tokenizers, GPT-2's encoder, and llama.cpp's table for the
GGUF-only names.
"""

from __future__ import annotations

from dataclasses import dataclass

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` in order; `ignore_merges`: a piece that is a token as a whole is never built by merging."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


LLAMA3 = PreTokenizer((LLAMA3_PATTERN,), ignore_merges=True, add_bos=True)
DIGITS_APART = PreTokenizer((r"\p{N}", GPT2_PATTERN))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "midm-2.0": LLAMA3,
    "llama4": PreTokenizer((LLAMA4_PATTERN,)),
    "smollm": DIGITS_APART,
    "starcoder": DIGITS_APART,
    "refact": DIGITS_APART,
    "gpt-2": PreTokenizer((GPT2_PATTERN,)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]")),
}

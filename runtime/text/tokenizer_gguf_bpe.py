"""Byte-level BPE from a GGUF file's own vocabulary (tokens, token types, merges, pre-tokenizer name)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamac.errors import LlamacError, did_you_mean

from .byte_alphabet import bytes_of_piece
from .pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from .tokenizer_files import VOCABULARY_FILE, malformed, missing_library, optional_id, stored_json
from .tokenizer_rust import RustTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

CONTROL, USER_DEFINED = 3, 4
"""GGUF token types: control tokens are special; user-defined ones are matched as wholes in ordinary text."""


class GgufBpeTokenizer(RustTokenizer):
    """`tokens[id]` is the stored piece; control and user-defined ones are plain text, the others byte-level."""

    def __init__(self, rust: Rust, tokens: list[str], plain: set[int], **common: Any) -> None:
        super().__init__(rust, vocab_size=len(tokens), **common)
        self._tokens = tokens
        self._plain = plain

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._tokens[token_id]
        return piece.encode("utf-8") if token_id in self._plain else bytes_of_piece(piece)


def load_gguf_bpe(files: Mapping[str, bytes], info: Mapping[str, Any]) -> GgufBpeTokenizer:
    """Build from `vocabulary.json`: tokens, token_types, merges, pre, and optionally bos_id, eos_id, add_bos."""
    stored = stored_json(files, VOCABULARY_FILE)
    values = {**stored, **{name: value for name, value in info.items() if value is not None}}
    tokens = _strings(stored, "tokens")
    types = stored.get("token_types") or [1] * len(tokens)
    if not isinstance(types, list) or [type(kind) for kind in types] != [int] * len(tokens):
        raise malformed(VOCABULARY_FILE, f"'token_types' is not one number for each of {len(tokens)} tokens")
    pre = _pre_tokenizer(stored.get("pre"))
    added = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    special = {tokens[i]: i for i in added if types[i] == CONTROL}
    add_bos = values.get("add_bos")
    return GgufBpeTokenizer(
        _build(tokens, _strings(stored, "merges"), pre, added, set(special.values())),
        tokens,
        plain=set(added),
        special_ids=special,
        bos_id=optional_id(values, "bos_id", len(tokens)),
        eos_id=optional_id(values, "eos_id", len(tokens)),
        add_bos=pre.add_bos if add_bos is None else bool(add_bos),
    )


def _pre_tokenizer(name: Any) -> PreTokenizer:
    if name is None or name == "":
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise LlamacError(
            "LLC0904",
            "tokenizer.ggml.pre",
            f"unknown pre-tokenizer '{name}'{did_you_mean(str(name), PRE_TOKENIZERS)}",
            f"known are {', '.join(PRE_TOKENIZERS)}; compile the Hugging Face folder, whose tokenizer.json says all",
        )
    return PRE_TOKENIZERS[name]


def _strings(stored: Mapping[str, Any], name: str) -> list[str]:
    value = stored.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise malformed(VOCABULARY_FILE, f"'{name}' is not a list of strings")
    return value


def _build(tokens: list[str], merges: list[str], pre: PreTokenizer, added: list[int], special: set[int]) -> Rust:
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    except ImportError as problem:
        raise missing_library("tokenizers", "a GGUF vocabulary") from problem
    # Control tokens at the end of the vocabulary stay out of the model: with ignore_merges a word equal to one would
    # become it.
    tail = len(tokens)
    remaining = set(added)
    while tail - 1 in remaining:
        tail -= 1
    vocabulary = {token: i for i, token in enumerate(tokens[:tail])}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    lost = next((pair for pair in pairs if "".join(pair) not in vocabulary or not pair[1]), None)
    if lost:
        raise malformed(VOCABULARY_FILE, f"the merge {' '.join(lost)!r} does not make a token")
    try:
        rust = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre.ignore_merges))
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        rust.add_tokens([AddedToken(tokens[i], special=i in special, normalized=False) for i in added])
    except Exception as problem:  # the Rust library raises bare Exception
        raise malformed(VOCABULARY_FILE, f"the merges do not fit the tokens ({problem})") from problem
    moved = [tokens[i] for i in added if rust.token_to_id(tokens[i]) != i]
    if moved or len(vocabulary) != tail:
        raise malformed(VOCABULARY_FILE, f"tokens are listed twice{f', {moved[0]!r} among them' if moved else ''}")
    return rust

"""Hugging Face `tokenizer.json` through the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamac.errors import LlamacError

from .byte_alphabet import bytes_of_piece
from .tokenizer_files import malformed, missing_library, optional_id, stored_file
from .tokenizer_rust import RustTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

JSON_FILE = "tokenizer.json"
WORD_MARK = "▁"


class JsonTokenizer(RustTokenizer):
    """`byte_level`: pieces are in GPT-2's byte alphabet; otherwise SentencePiece style (U+2581 and <0xNN>)."""

    def __init__(self, rust: Rust, *, byte_level: bool, plain: set[int], leading_space: bool, **common: Any) -> None:
        super().__init__(rust, **common)
        self._byte_level = byte_level
        self._plain = plain
        self.leading_space = leading_space

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._rust.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self._plain:
            return piece.encode("utf-8")
        return bytes_of_piece(piece) if self._byte_level else sentencepiece_bytes(piece)


def load_tokenizer_json(files: Mapping[str, bytes], info: Mapping[str, Any]) -> JsonTokenizer:
    """Build from `tokenizer.json`; `info` may give `bos_id`, `eos_id`, `add_bos`, else its post-processor says them."""
    data = stored_file(files, JSON_FILE)
    try:
        from tokenizers import Tokenizer
    except ImportError as problem:
        raise missing_library("tokenizers", "a tokenizer.json") from problem
    try:
        rust = Tokenizer.from_buffer(data)
    except Exception as problem:  # the Rust library raises bare Exception
        raise malformed(JSON_FILE, f"the tokenizers library refuses it ({problem})") from problem
    rust.no_truncation()
    rust.no_padding()
    # The parts' state is their JSON: parsing the whole file again in Python would cost as much as loading it.
    decoder = None if rust.decoder is None else json.loads(rust.decoder.__getstate__())
    byte_level = _is_byte_level(decoder)
    added = rust.get_added_tokens_decoder()
    size = max([rust.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)])
    prefix = rust.encode("", add_special_tokens=True).ids[:1]
    given = {name: value for name, value in info.items() if value is not None}
    values = {"bos_id": prefix[0] if prefix else None, **given}
    return JsonTokenizer(
        rust,
        byte_level=byte_level,
        plain={i for i, token in added.items() if not token.special},
        leading_space=not byte_level and _strips_first_space(decoder),
        vocab_size=size,
        special_ids={token.content: i for i, token in added.items() if token.special},
        bos_id=optional_id(values, "bos_id", size),
        eos_id=optional_id(values, "eos_id", size),
        add_bos=bool(values.get("add_bos", bool(prefix))),
    )


def sentencepiece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece: `<0xNN>` is one byte, U+2581 a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace(WORD_MARK, " ").encode("utf-8")


def _is_byte_level(decoder: Any) -> bool:
    """Byte-level or SentencePiece style, by the decoder; LLC0905 for any other (WordPiece, CTC ...)."""
    kinds = _decoder_kinds(decoder)
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"}:
        return False
    named = ", ".join(sorted(kinds)) or "none"
    raise LlamacError(
        "LLC0905",
        f"tokenizer {JSON_FILE}",
        f"its decoder ({named}) is neither byte-level nor SentencePiece style",
        "use a checkpoint of the Llama family with its own tokenizer",
    )


def _decoder_kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    inner = decoder.get("decoders") or []
    return {str(decoder.get("type"))} | {kind for one in inner for kind in _decoder_kinds(one)} - {"Sequence"}


def _strips_first_space(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    if decoder.get("type") == "Strip":
        return bool(decoder.get("content") == " " and decoder.get("start"))
    return any(_strips_first_space(one) for one in decoder.get("decoders") or [])

"""Tokenizers behind one protocol: text to ids and back, whatever kind of vocabulary the checkpoint carried.

`load_tokenizer` picks the kind; each kind lives in a file of its own and imports its library only when it is built,
because start-up time is part of what the runtime promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llamac.errors import LlamacError, did_you_mean

KINDS = ("tokenizer.json", "tiktoken", "gguf-bpe", "gguf-spm")


class Tokenizer(Protocol):
    """What the rest of the runtime may ask of a tokenizer."""

    vocab_size: int
    """Number of ids the tokenizer knows; a model's (padded) vocabulary may be larger."""
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    """Whether `encode` puts the begin-of-sequence id first when it is not told."""
    special_ids: dict[str, int]
    """Control tokens by their text, never an empty one. They are ordinary text to `encode` unless `allow_special`."""
    leading_space: bool
    """True when `encode` adds a space before the first word, which `decode` takes away again (SentencePiece)."""

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Ids of `text`. `add_bos=None` follows the model's rule and never doubles a BOS the text brought itself."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """Text of `ids`; invalid UTF-8 becomes U+FFFD. With `continuation` a leading space is kept."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes one id stands for: empty for control tokens and for ids without a token."""
        ...

    def special_text(self, token_id: int) -> str:
        """The text of a control token, or an empty string for any other id."""
        ...


class TokenizerBase:
    """The parts every kind shares; a kind supplies `_encode_ordinary`, `_encode_with_special` and `_piece_bytes`."""

    leading_space = False

    def __init__(
        self, *, vocab_size: int, special_ids: Mapping[str, int], bos_id: int | None, eos_id: int | None, add_bos: bool
    ) -> None:
        self.vocab_size = vocab_size
        self.special_ids = {text: token_id for text, token_id in special_ids.items() if text}
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.add_bos = add_bos and bos_id is not None
        self._special_text = {token_id: text for text, token_id in self.special_ids.items()}
        self._bytes_of_id: dict[int, bytes] = {}

    def _encode_ordinary(self, text: str) -> list[int]:
        raise NotImplementedError

    def _encode_with_special(self, text: str) -> list[int]:
        raise NotImplementedError

    def _piece_bytes(self, token_id: int) -> bytes:
        raise NotImplementedError

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool | None = None) -> list[int]:
        """See `Tokenizer.encode`. Lone surrogates, which UTF-8 cannot carry, are encoded as U+FFFD."""
        text = _without_lone_surrogates(text)
        ids = self._encode_with_special(text) if allow_special else self._encode_ordinary(text)
        if self.bos_id is None or not (self.add_bos if add_bos is None else add_bos):
            return ids
        if add_bos is None and ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        known = self._bytes_of_id.get(token_id)
        if known is None:
            ordinary = 0 <= token_id < self.vocab_size and token_id not in self._special_text
            known = self._bytes_of_id[token_id] = self._piece_bytes(token_id) if ordinary else b""
        return known

    def special_text(self, token_id: int) -> str:
        """See `Tokenizer.special_text`."""
        return self._special_text.get(token_id, "")

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """See `Tokenizer.decode`."""
        pieces = [
            self.token_bytes(i) if skip_special or i not in self._special_text else self._special_text[i].encode()
            for i in map(int, ids)
        ]
        joined = b"".join(pieces)
        if self.leading_space and not continuation:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", errors="replace")


def load_tokenizer(kind: str, files: Mapping[str, bytes], info: Mapping[str, Any]) -> TokenizerBase:
    """Build the tokenizer that an artifact or a checkpoint describes.

    `files` holds the stored files by name, `ranks.table` among them where the compiler could make one; `info` may
    override what they say: `bos_id`, `eos_id`, `add_bos`, `special_tokens` (text -> id, Llama 3 and 4 only). Raises
    LLC0901 for a kind this runtime does not know, LLC0902 when the library it needs is missing and LLC0903/0904/0905
    for files it cannot use.
    """
    match kind:
        case "tokenizer.json" | "tiktoken" if "ranks.table" in files:
            from .tokenizer_llama import load_llama

            return load_llama(files, info)
        case "tokenizer.json":
            from .tokenizer_json import load_tokenizer_json

            return load_tokenizer_json(files, info)
        case "tiktoken":
            from .tokenizer_tiktoken import load_tiktoken

            return load_tiktoken(files, info)
        case "gguf-bpe":
            from .tokenizer_gguf_bpe import load_gguf_bpe

            return load_gguf_bpe(files, info)
        case "gguf-spm":
            from .tokenizer_gguf_spm import load_gguf_spm

            return load_gguf_spm(files, info)
    raise LlamacError(
        "LLC0901",
        "tokenizer",
        f"unknown tokenizer kind '{kind}'{did_you_mean(kind, KINDS)}",
        f"use a model whose tokenizer is one of {', '.join(KINDS)}, or pass token ids",
    )


def _without_lone_surrogates(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

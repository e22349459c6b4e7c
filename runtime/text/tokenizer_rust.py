"""What the two kinds built on the `tokenizers` library share: encoding with or without control tokens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .tokenizer import TokenizerBase

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust


class RustTokenizer(TokenizerBase):
    """Encodes through the library, never through its post-processor: BOS is this runtime's business."""

    def __init__(self, rust: Rust, **common: Any) -> None:
        super().__init__(**common)
        self._rust = rust
        # Whether control tokens are seen is a switch on the library's object, not an argument, so two threads must take
        # turns.
        self._lock = threading.Lock()

    def library_json(self) -> str:
        """The vocabulary and its rules as a tokenizer.json of the library."""
        with self._lock:
            return str(self._rust.to_str())

    def _encode(self, text: str, special_as_text: bool) -> list[int]:
        with self._lock:
            self._rust.encode_special_tokens = special_as_text
            ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._encode(text, special_as_text=True)

    def _encode_with_special(self, text: str) -> list[int]:
        return self._encode(text, special_as_text=False)

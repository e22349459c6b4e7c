"""A vocabulary in the form of GGUF's metadata, while it is being put together."""

from __future__ import annotations

from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's token types."""


@dataclass
class Words:
    """`tokens[id]` with `types[id]`; merges for model "gpt2", scores for model "llama"."""

    model: str
    tokens: list[str]
    types: list[int]
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    flags: dict[str, object] = field(default_factory=dict)

    @property
    def control(self) -> dict[str, int]:
        """Text -> id of the control tokens."""
        return {self.tokens[i]: i for i, kind in enumerate(self.types) if kind == CONTROL}

    def put(self, token_id: int, text: str, kind: int) -> None:
        """Enter a token; ids between it and the last so far become unused ones."""
        while len(self.tokens) <= token_id:
            self.tokens.append(f"[PAD{len(self.tokens)}]")
            self.types.append(UNUSED)
            if self.model == "llama":
                self.scores.append(0.0)
        self.tokens[token_id], self.types[token_id] = text, kind

    def cut(self, size: int) -> None:
        """Forget every id from `size` on."""
        for column in (self.tokens, self.types, self.scores):
            del column[size:]

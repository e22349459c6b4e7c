"""Stop ids and where each came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .ledger import LedgerEntry, entry

TURN_ENDS = ("<|end_of_text|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|im_end|>")
"""Special tokens that end a text, a turn or a message by their published meaning, whatever the metadata says."""


class StopIds:
    """Collects stop ids inside the vocabulary, each with its sources, in the order found."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.ledger: list[LedgerEntry] = []
        self._sources: dict[int, list[str]] = {}

    def add(self, value: object, source: str) -> None:
        """Add an id or a list of ids; None adds nothing, anything else that is no id goes to the ledger."""
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < self.vocab_size:
                reason = f"not a token id below {self.vocab_size}"
                self.ledger.append(entry("ignored", source, f"stop id {repr(one)[:60]}", reason))
            elif source not in self._sources.setdefault(one, []):
                self._sources[one].append(source)

    def add_turn_ends(self, special_tokens: Mapping[str, int]) -> None:
        """Add the special tokens that end a turn by their name."""
        for text in TURN_ENDS:
            if text in special_tokens:
                self.add(special_tokens[text], f"the special token {text}")

    def ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._sources))

    def sources(self) -> dict[int, tuple[str, ...]]:
        return {token_id: tuple(self._sources[token_id]) for token_id in self.ids()}


def special_ids(tokens: Iterable[str], types: Iterable[int], control: int) -> dict[str, int]:
    """Text -> id of the tokens of type `control`."""
    return {text: index for index, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == control}

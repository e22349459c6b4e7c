"""Typed access to a JSON object of settings: every value checked, every default that is taken noted."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry

MOST = 1 << 62
MOST_LAYERS = 4096
MOST_EXPERTS = 1 << 14
MOST_IN_ENCODER = 1 << 20
LARGEST_NUMBER = 1e30
"""Limits beyond any model, small enough that a hostile config costs nothing."""


class ConfigKeys:
    """Typed access to a JSON object; a default that is taken becomes a ledger entry."""

    def __init__(
        self,
        raw: Mapping[str, object],
        where: str,
        ledger: list[LedgerEntry],
        why_default: str = "the transformers default",
    ) -> None:
        self.raw = raw
        self.where = where
        self.ledger = ledger
        self.why_default = why_default

    def integer(self, key: str, default: int | None = None, reason: str = "", least: int = 1, most: int = MOST) -> int:
        """A whole number from `least` to `most`; whatever is counted through needs a limit before that."""
        value = self._value(key, default, reason)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if value < least:
            raise self._wrong(key, value, "a positive number" if least == 1 else f"a number from {least}")
        if value > most:
            raise self._wrong(key, value, f"at most {most}")
        return value

    def number(self, key: str, default: float | None = None, reason: str = "") -> float:
        """A positive number."""
        value = self._value(key, default, reason)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _positive(value):
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool, reason: str = "") -> bool:
        """True or false."""
        value = self._value(key, default, reason)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _value(self, key: str, default: object, reason: str) -> object:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise LlamacError("LLC0302", self.where, f"the key {key!r} is missing", "take the config of the checkpoint")
        why = f"not given: {reason or self.why_default}"
        self.ledger.append(entry("default", f"{self.where} {key}", f"{default}", why))
        return default

    def _wrong(self, key: str, value: object, expected: str) -> LlamacError:
        reason = f"{key} is {short(value)}, expected {expected}"
        return LlamacError("LLC0303", self.where, reason, "correct the config")


def _positive(value: int | float) -> bool:
    """True for a number above zero that is still one when it is squared, or multiplied by the largest size."""
    try:
        return 1 / LARGEST_NUMBER <= float(value) <= LARGEST_NUMBER
    except OverflowError:
        return False


def short(value: object) -> str:
    """A value as it may appear in a message: hostile input never floods the terminal."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Text as it is generated: whole characters only, and nothing that may turn out to belong to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llamac.errors import LlamacError

from .tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text piece by piece.

    All pieces followed by `finish()` are exactly `tokenizer.decode(ids)` with the same options, for any ids. A
    character whose bytes are not all there yet is held back; bytes become U+FFFD only once no further byte could make
    them valid.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continuation: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_space = tokenizer.leading_space and not continuation

    def feed(self, token_id: int) -> str:
        """The text that became certain with this id, often empty."""
        data = self._tokenizer.token_bytes(token_id)
        if not data and not self._skip_special:
            data = self._tokenizer.special_text(token_id).encode("utf-8")
        if data and self._strip_space:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def feed_all(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these ids."""
        return "".join(map(self.feed, token_ids))

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never came to its end, else nothing."""
        return self._utf8.decode(b"", final=True)


TAGS = ("<|python_tag|>", "<|python_start|>")
TAG_END = "<|python_end|>"
MESSAGE_ENDS = ("<|eot_id|>", "<|eot|>", "<|eom_id|>", "<|eom|>", "<|end_of_text|>")
MEANINGFUL = frozenset((*TAGS, TAG_END, *MESSAGE_ENDS))
"""Control tokens that say where a tool call begins and how a message ended."""


def text_with_tags(tokenizer: Tokenizer, token_ids: Iterable[int], *, continuation: bool = False) -> str:
    """The text of ids in which, of all control tokens, the `MEANINGFUL` ones are spelt out."""
    decoder, pieces = StreamDecoder(tokenizer, continuation=continuation), []
    for token_id in token_ids:
        control = tokenizer.special_text(token_id)
        if control in MEANINGFUL:
            pieces.append(decoder.finish() + control)
            decoder = StreamDecoder(tokenizer, continuation=True)
        else:
            pieces.append(decoder.feed(token_id))
    return "".join(pieces) + decoder.finish()


class StopMatch(NamedTuple):
    """`text` may be shown; `stop` is the stop string that came next, or None."""

    text: str
    stop: str | None


class StopStrings:
    """Ends a text before the first stop string that completes; of those completing together, the longest.

    The result does not depend on how the text was cut into pieces. Text that may be the beginning of a stop string is
    held back until it is not, or until `finish()`.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise LlamacError(
                "LLC0852", "stop", "a stop string is empty or not a string", "give a list of non-empty strings"
            )
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> StopMatch:
        """Take the next piece of text; once a stop string was found every later piece is dropped."""
        if self._stopped:
            return StopMatch("", None)
        self._held += text
        found = self._first_match()
        if found is not None:
            start, stop = found
            self._stopped = True
            shown, self._held = self._held[:start], ""
            return StopMatch(shown, stop)
        keep = self._possible_prefix()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return StopMatch(shown, None)

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        places = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        return min(ends)[1:] if ends else None

    def _possible_prefix(self) -> int:
        """Length of the longest tail that is a proper prefix of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

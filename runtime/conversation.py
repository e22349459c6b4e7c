"""A conversation with its cache: each turn computes only the tokens that the turn before did not."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Unpack

from .generation import Generation
from .model import GenerateOptions, Model


class Conversation:
    """Turns of one conversation. `messages` is its text so far, `last` the outcome of the last finished turn."""

    def __init__(self, model: Model, system: str | None = None, **options: Unpack[GenerateOptions]) -> None:
        self.model = model
        self.last: Generation | None = None
        self.messages: list[dict[str, Any]] = []
        self._system = system
        self._options = options
        self._sequence = model.session.open()
        self.reset()

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.last = None

    def close(self) -> None:
        """Give the cache's pages back."""
        self._sequence.close()

    def say(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece; `close` it to stop early.

        Both become part of the conversation, a stopped answer as far as it went; a turn that fails leaves no trace.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        stream = self.model.stream_chat(messages, sequence=self._sequence, **self._options)
        self.last = None
        pieces: list[str] = []
        said = True
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
            self.last = stream.outcome
        except Exception:
            said = False
            raise
        finally:
            stream.close()
            if said:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

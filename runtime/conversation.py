"""A conversation with its cache: each turn computes only the tokens that the turn before did not."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from .generation import Generation
from .images.loaded import LoadedPicture, PictureSource
from .model import GenerateOptions, Message, Model, TextStream

if TYPE_CHECKING:
    from .text.tools.offered import Tool
    from .text.tools.parser import Event


class Conversation:
    """Turns of one conversation. `messages` is its text so far, `last` the outcome of the last finished turn.

    tools and chat_format: as for `Model.encode_chat`, in every turn.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        chat_format: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> None:
        self.model = model
        self.last: Generation | None = None
        self.messages: list[dict[str, Any]] = []
        self._system = system
        self._tools = tools
        self._chat_format = chat_format
        self._options = options
        self._attached: list[LoadedPicture] = []
        self._sequence = model.session.open()
        self.reset()

    @property
    def offers_tools(self) -> bool:
        """Whether the model was offered tools to call."""
        return bool(self._tools)

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.last, self._attached = None, []

    def close(self) -> None:
        """Give the cache's pages back."""
        self._sequence.close()

    def say(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece; `close` it to stop early.

        Both become part of the conversation, a stopped answer as far as it went; a turn that fails leaves no trace.
        """
        message = self._with_pictures({"role": "user", "content": text})
        stream = self._stream(message)
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
            self._end(stream, message, "".join(pieces) if said else None)

    def send(self, message: Message) -> Generator[Event, None, None]:
        """As `say`, for any message (what a tool answered, say), and as events: text, tool calls, the end."""
        message = self._with_pictures(message)
        stream = self._stream(message)
        pieces: list[str] = []
        said = True
        try:
            for event in stream.events():
                pieces.append(getattr(event, "text", ""))
                yield event
            self.last = stream.outcome
        except Exception:
            said = False
            raise
        finally:
            self._end(stream, message, "".join(pieces) if said else None)

    def attach(self, picture: PictureSource) -> LoadedPicture:
        """Show a picture with the user's next message, in front of its text; LLC0838 for a model that takes none."""
        loaded = self.model.load_picture(picture)
        self._attached.append(loaded)
        return loaded

    def _with_pictures(self, message: Message) -> Message:
        if not self._attached or message.get("role") != "user" or not isinstance(message.get("content"), str):
            return message
        shown = [{"type": "image", "image": picture} for picture in self._attached]
        return {**message, "content": [*shown, {"type": "text", "text": message["content"]}]}

    def _stream(self, message: Message) -> TextStream:
        self.last = None
        options: GenerateOptions = {**self._options, "echo": False}  # earlier turns are not said again
        return self.model.stream_chat(
            [*self.messages, message],
            tools=self._tools,
            chat_format=self._chat_format,
            sequence=self._sequence,
            **options,
        )

    def _end(self, stream: TextStream, message: Message, said: str | None) -> None:
        """Take the turn into the conversation, unless it failed (`said` is None)."""
        stream.close()
        if said is not None:
            if message.get("role") == "user":
                self._attached = []
            self.messages = [*self.messages, dict(message), self._answer(said)]

    def _answer(self, said: str) -> dict[str, Any]:
        """The assistant's row; calls become calls again only where tools are in play, else they are what it said."""
        if self.last is not None and any(self._tools or call.tagged for call in self.last.tool_calls):
            return self.last.to_message()
        return {"role": "assistant", "content": said}

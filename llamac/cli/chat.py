"""`llamac chat`: a conversation in the terminal, or one line of stdin after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llamac.errors import LlamacError

from .answers import print_call, print_events, print_pieces
from .options import (
    chat_options,
    generate_options,
    loading_options,
    open_model,
    read_tools_file,
    sampling_options,
    speculation_options,
)
from .texts import Text

if TYPE_CHECKING:
    from llamac.runtime.conversation import Conversation

Item = TypeVar("Item")
HELP = (
    "/reset forgets the conversation · /image FILE shows a picture with the next message · "
    "/tool RESULT answers a call · /exit or Ctrl-D leaves · Ctrl-C stops an answer"
)
TOOL, IMAGE = "/tool ", "/image "


@click.command("chat")
@click.argument("artifact")
@click.option("--system", type=Text(), help="A system message: how the model should behave.")
@click.option(
    "--images", type=int, default=4, show_default=True, metavar="N",
    help="Room for N pictures at a time, in models that keep them in a cache of their own.",
)  # fmt: skip
@chat_options
@sampling_options
@speculation_options
@loading_options
def command(
    artifact: str, system: str | None, images: int, tools: str | None, chat_format: str | None, **values: Any
) -> None:
    """Talk with the model in ARTIFACT.

    \b
      llamac chat m.llamac --system "You answer in one sentence." --temperature 0.7
      printf 'Hello\\nWhat did I just say?\\n' | llamac chat m.llamac

    Each line is a message; answers stream to stdout. In a terminal: /reset forgets the conversation, /exit or
    Ctrl-D leaves, Ctrl-C stops an answer. The conversation's cache is kept, so a turn costs only its own tokens.
    With --tools the model's calls appear as lines of JSON, and /tool RESULT gives it what a tool answered. /image FILE
    shows the model a picture with the message that follows.
    """
    with open_model(artifact, values, images) as model:
        from llamac.runtime.conversation import Conversation

        offered = read_tools_file(tools)
        options = generate_options(values)
        conversation = Conversation(model, system, tools=offered, chat_format=chat_format, **options)
        if sys.stdin.isatty():
            _talk(conversation, model.name)
        else:
            for line in _lines():
                _turn(conversation, line.rstrip("\r\n"))


def _lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise LlamacError("LLC0102", "stdin", f"it is not UTF-8: {error}", "convert it first, with iconv") from None


def _talk(conversation: Conversation, name: str) -> None:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (its import gives input() line editing and history)
    click.echo(f"{name} · {HELP}", err=True)
    while True:
        try:
            line = input("> ")
        except EOFError:
            click.echo()
            return
        if not _turn(conversation, line, interactive=True):
            return


def _turn(conversation: Conversation, line: str, interactive: bool = False) -> bool:
    """Answer one line or obey its command; False when it was /exit."""
    match line.strip():
        case "":
            return True
        case "/exit":
            return False
        case "/reset":
            conversation.reset()
            return True
        case "/help" if interactive:
            click.echo(HELP, err=True)
            return True
    try:
        if line.startswith(IMAGE):
            _attach(conversation, line.removeprefix(IMAGE).strip())
        else:
            _answer(conversation, line)
    except LlamacError as error:
        if not interactive:
            raise
        click.echo(error.message(), err=True)
    return True


def _attach(conversation: Conversation, path: str) -> None:
    tiles = conversation.attach(path).tiles
    click.echo(f"[{path}: {tiles.rows} x {tiles.columns} tiles, for the next message]", err=True)


def _answer(conversation: Conversation, line: str) -> None:
    if conversation.offers_tools or line.startswith(TOOL):
        result = line.removeprefix(TOOL)
        message = {"role": "tool" if line.startswith(TOOL) else "user", "content": result}
        _interruptible(conversation.send(message), print_events)
    else:
        _interruptible(conversation.say(line), print_pieces)
    last = conversation.last
    if last is None:
        return
    if not conversation.offers_tools:  # a tag tells a call from text even where no tools were offered
        for call in last.tool_calls:
            if call.tagged:
                print_call(call)
    if last.stop_reason in ("length", "context"):
        click.echo(f"[ended by {last.stop_reason}]", err=True)


def _interruptible(stream: Generator[Item, None, None], show: Callable[[Iterable[Item]], None]) -> None:
    try:
        show(stream)
    except KeyboardInterrupt:
        stream.close()
        click.echo(" [stopped]", err=True)

"""`llamac chat`: a conversation in the terminal, or one line of stdin after another."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import generate_options, loading_options, open_model, sampling_options

if TYPE_CHECKING:
    from llamac.runtime.conversation import Conversation

HELP = "/reset forgets the conversation · /exit or Ctrl-D leaves · Ctrl-C stops an answer"


@click.command("chat")
@click.argument("artifact")
@click.option("--system", metavar="TEXT", help="A system message: how the model should behave.")
@sampling_options
@loading_options
def command(artifact: str, system: str | None, **values: Any) -> None:
    """Talk with the model in ARTIFACT.

    \b
      llamac chat m.llamac --system "You answer in one sentence." --temperature 0.7
      printf 'Hello\\nWhat did I just say?\\n' | llamac chat m.llamac

    Each line is a message; answers stream to stdout. In a terminal: /reset forgets the conversation, /exit or
    Ctrl-D leaves, Ctrl-C stops an answer. The conversation's cache is kept, so a turn costs only its own tokens.
    """
    with open_model(artifact, values) as model:
        from llamac.runtime.conversation import Conversation

        conversation = Conversation(model, system, **generate_options(values))
        if sys.stdin.isatty():
            _talk(conversation, model.name)
        else:
            for line in sys.stdin:
                _turn(conversation, line.rstrip("\r\n"))


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
        _answer(conversation, line)
    except LlamacError as error:
        if not interactive:
            raise
        click.echo(error.message(), err=True)
    return True


def _answer(conversation: Conversation, line: str) -> None:
    stream = conversation.say(line)
    try:
        for piece in stream:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        stream.close()
        click.echo(" [stopped]", err=True, nl=False)
    click.echo()
    if conversation.last is not None and conversation.last.stop_reason in ("length", "context"):
        click.echo(f"[ended by {conversation.last.stop_reason}]", err=True)

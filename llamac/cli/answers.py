"""Answers on stdout as they are written: text, and the tool calls in it as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from .options import print_json

if TYPE_CHECKING:
    from llamac.runtime.text.tools.call import ToolCall
    from llamac.runtime.text.tools.parser import Event


def print_pieces(pieces: Iterable[str]) -> None:
    """Pieces of text, then the end of the line."""
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def print_events(events: Iterable[Event]) -> None:
    """Text as it comes, each call on a line of its own."""
    from llamac.runtime.text.tools.parser import Call, Text

    at_line_start = True
    for event in events:
        match event:
            case Text(text):
                click.echo(text, nl=False)
                sys.stdout.flush()
                at_line_start = text.endswith("\n")
            case Call(call):
                if not at_line_start:
                    click.echo()
                print_call(call)
                at_line_start = True
    if not at_line_start:
        click.echo()


def print_call(call: ToolCall) -> None:
    """One line that a program can read, too."""
    print_json({"name": call.name, "arguments": call.arguments})

"""Texts on the command line: prompts, messages, stop strings."""

from __future__ import annotations

from typing import Any

import click


class Text(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A text in UTF-8, whatever the locale, whose unknown bytes come as lone surrogates, which no tokenizer takes."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, refused where a byte of it is not UTF-8."""
        try:
            return str(value).encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeError as error:
            self.fail(f"the text is not UTF-8: {error}", param, ctx)

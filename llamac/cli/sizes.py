"""Sizes in bytes on the command line."""

from __future__ import annotations

from typing import Any

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class ByteSize(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A number of bytes with an optional K, M or G."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`512M` -> 536870912."""
        text = str(value).upper().removesuffix("B").removesuffix("I")
        unit = text[-1:] if text[-1:] in _UNITS else ""
        number = text.removesuffix(unit) if unit else text
        if not number.isdigit() or int(number) == 0:
            self.fail(f"'{value}' is no size such as 512M or 2G", param, ctx)
        return int(number) * _UNITS[unit]

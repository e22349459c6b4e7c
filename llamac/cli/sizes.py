"""Sizes in bytes on the command line."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:I?B)?")


class ByteSize(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """A number of bytes with an optional K, M, G or T."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`512M` -> 536870912."""
        found = _SIZE.fullmatch(str(value).upper())
        if found is None or int(found[1]) == 0:
            self.fail(f"'{str(value)[:40]}' is no size such as 512M or 2G", param, ctx)
        return int(found[1]) * _UNITS[found[2]]

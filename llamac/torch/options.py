"""The options of `torch.compile(..., backend="llamac", options={...})`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llamac.errors import LlamacError, did_you_mean


@dataclass(frozen=True)
class CompileOptions:
    """How the backend compiles and runs.

    context: the longest text in tokens, also how far mask and rotation are checked. threads: one per core unless given.
    cache: the folder of compiled code (docs/torch.md). fallback: "eager" runs with a warning what cannot be compiled.
    keep: how many texts stay in memory, so that a longer one with the same beginning computes only what is new.
    sequences: how many rows and beams of the full context there is room for.
    """

    context: int = 2048
    threads: int | None = None
    cache: str | Path | None = None
    fallback: str | None = None
    keep: int = 4
    sequences: int = 8

    def __post_init__(self) -> None:
        for name, lowest in (("context", 2), ("threads", 1), ("keep", 0), ("sequences", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                reason = f"{value!r} is not a whole number of at least {lowest}"
                raise LlamacError("LLC0957", f"options['{name}']", reason, "leave it out")
        if self.fallback not in (None, "eager"):
            raise LlamacError(
                "LLC0957", "options['fallback']", f"{self.fallback!r} is unknown", "'eager', or leave it out"
            )


def read_options(options: Mapping[str, Any] | None, mode: str | None) -> CompileOptions:
    """The options as given to torch.compile; LLC0957 for an unknown one, and for a `mode`."""
    names = [row.name for row in fields(CompileOptions)]
    for name in options or {}:
        if name not in names:
            reason = f"unknown option '{name}'{did_you_mean(name, names)}"
            raise LlamacError("LLC0957", "options", reason, f"choose among {', '.join(names)}")
    if mode not in (None, "default"):
        raise LlamacError("LLC0957", "mode", f"'{mode}' is a mode of another backend", "leave mode out")
    return CompileOptions(**(options or {}))

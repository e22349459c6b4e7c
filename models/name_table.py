"""Names of weights as tables: model-level, as Hugging Face stores them, as Meta does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .llama.weights import HF, META

MODEL = 0
"""The style of model-level names, beside HF and META."""

_COLUMNS = {MODEL: 0, HF: 1, META: 2}

Row = tuple[str, str, str]
"""A weight's model-level name, Hugging Face's, Meta's. An empty name: that format has no such weight."""


@dataclass(frozen=True)
class LayerNames:
    """Rows that repeat for every layer; `prefix` comes before the layer's number in each of the columns."""

    prefix: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class NameTable:
    """Rows that occur once, and groups of layers."""

    outer: tuple[Row, ...]
    layers: tuple[LayerNames, ...] = ()

    def translated(self, name: str, source: int, target: int) -> str | None:
        """The name in style `target` of what style `source` calls `name`; None when it is not in the table."""
        before, after = _COLUMNS[source], _COLUMNS[target]
        for row in self.outer:
            if name and row[before] == name:
                return row[after] or None
        for group in self.layers:
            match = re.fullmatch(re.escape(group.prefix[before]) + r"(0|[1-9]\d{0,5})\.(.+)", name)
            found = next((row[after] for row in group.rows if match and row[before] == match.group(2)), "")
            if match and found:
                return f"{group.prefix[after]}{match.group(1)}.{found}"
        return None

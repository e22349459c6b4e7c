"""Covering arrays: few rows in which every pair of choices of two parameters occurs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def every_row(parameters: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The full product."""
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())]


def pairwise_rows(parameters: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows that hold every pair of values, chosen greedily: each row takes as many new pairs as it can.

    Deterministic. Parameters with the most choices come first, so that the count stays near their product.
    """
    names = sorted(parameters, key=lambda name: -len(parameters[name]))
    missing = set().union(*(_all_pairs(parameters, a, b) for a, b in itertools.combinations(names, 2)))
    rows: list[Row] = []
    while missing:
        row = _next_row(parameters, names, missing)
        missing -= _pairs(row, names)
        rows.append({name: row[name] for name in parameters})
    return rows


def _all_pairs(parameters: Mapping[str, Sequence[Any]], a: str, b: str) -> set[tuple[Any, ...]]:
    return {((a, x), (b, y)) for x in parameters[a] for y in parameters[b]}


def _pairs(row: Row, names: Sequence[str]) -> set[tuple[Any, ...]]:
    return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}


def _next_row(parameters: Mapping[str, Sequence[Any]], names: list[str], missing: set[tuple[Any, ...]]) -> Row:
    """Start from the first missing pair, then settle each further parameter on the value that adds most."""
    row: Row = dict(min(missing, key=lambda pair: [(names.index(n), parameters[n].index(v)) for n, v in pair]))
    for name in names:
        if name not in row:
            row[name] = max(parameters[name], key=lambda value: _gain(row, name, value, names, missing))
    return row


def _gain(row: Row, name: str, value: Any, names: list[str], missing: set[tuple[Any, ...]]) -> int:
    grown = {**row, name: value}
    known = [n for n in names if n in grown]
    return len(_pairs(grown, known) & missing)

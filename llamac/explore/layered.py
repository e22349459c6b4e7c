"""Layered drawing of a directed acyclic graph: ranks by longest path, crossings reduced by barycentres.

The four steps of Sugiyama, Tagawa and Toda (1981): rank, split long edges by dummies, order each rank, place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_GAP_X, _GAP_Y, _MARGIN = 26, 34, 16
_DUMMY_WIDTH = 8
_SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """The size of a node."""

    width: int
    height: int


@dataclass(frozen=True)
class Placed:
    """Left upper corners of the boxes, and each edge as x0, y0, x1, y1, ... from box to box."""

    width: int
    height: int
    places: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, ...], ...]


def place(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> Placed:
    """Places for `boxes` whose `edges` (from, to) make no cycle; edges point down."""
    if not boxes:
        return Placed(0, 0, (), ())
    ranks = _ranks(len(boxes), edges)
    widths = [box.width for box in boxes]
    chains, links = _split(ranks, edges, widths)
    rows: list[list[int]] = [[] for _ in range(max(ranks) + 1)]
    for node, rank in enumerate(ranks):
        rows[rank].append(node)
    _order(rows, links, len(widths))
    centres = _centres(rows, links, widths)
    tops, heights = _tops(rows, boxes)
    left = min(centres[n] - widths[n] / 2 for n in range(len(widths))) - _MARGIN
    places = [(round(centres[n] - left - b.width / 2), tops[ranks[n]]) for n, b in enumerate(boxes)]
    right = max(centres[n] + widths[n] / 2 for n in range(len(widths)))
    paths = []
    for chain in chains:
        first, last = chain[0], chain[-1]
        points = [(centres[first], tops[ranks[first]] + boxes[first].height)]
        for dummy in chain[1:-1]:
            # Straight through the whole row, so that the curve crosses no box of it.
            top = tops[ranks[dummy]]
            points += [(centres[dummy], top), (centres[dummy], top + heights[ranks[dummy]])]
        points.append((centres[last], tops[ranks[last]]))
        paths.append(tuple(round(v) for x, y in points for v in (x - left, y)))
    return Placed(round(right - left) + _MARGIN, tops[-1] + heights[-1] + _MARGIN, tuple(places), tuple(paths))


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from a source; then what has no more inputs than uses moves down to just above its first use."""
    ranks = [0] * count
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            if ranks[b] <= ranks[a]:
                ranks[b], changed = ranks[a] + 1, True
    for node in sorted(range(count), key=lambda n: -ranks[n]):
        uses = [ranks[b] for a, b in edges if a == node]
        if uses and len(uses) >= sum(b == node for _, b in edges):
            ranks[node] = min(uses) - 1
    lowest = min(ranks)
    return [rank - lowest for rank in ranks]


def _split(
    ranks: list[int], edges: Sequence[tuple[int, int]], widths: list[int]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Every edge as a chain of nodes one rank apart; dummies are appended to `ranks` and `widths`."""
    chains, links = [], []
    for a, b in edges:
        chain = [a]
        for rank in range(ranks[a] + 1, ranks[b]):
            chain.append(len(ranks))
            ranks.append(rank)
            widths.append(_DUMMY_WIDTH)
        chain.append(b)
        chains.append(chain)
        links += list(pairwise(chain))
    return chains, links


def _neighbours(links: Sequence[tuple[int, int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    return above, below


def _order(rows: list[list[int]], links: Sequence[tuple[int, int]], count: int) -> None:
    """Sort each row by the mean place of its neighbours, downwards and upwards in turn."""
    above, below = _neighbours(links, count)
    place = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            means = {n: _mean([place[m] for m in neighbours[n]], place[n]) for n in row}
            row.sort(key=means.__getitem__)
            place.update((node, float(i)) for i, node in enumerate(row))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _centres(rows: list[list[int]], links: Sequence[tuple[int, int]], widths: Sequence[int]) -> list[float]:
    """Pull every node over the mean of its neighbours, as far as its row leaves room."""
    above, below = _neighbours(links, len(widths))
    centres = [0.0] * len(widths)
    for row in rows:
        _spread(row, centres, widths)
    for sweep in range(2 * _SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            for node in row:
                centres[node] = _mean([centres[m] for m in neighbours[node]], centres[node])
            _spread(row, centres, widths)
    return centres


def _spread(row: Sequence[int], centres: list[float], widths: Sequence[int]) -> None:
    """Keep the order of a row and the gaps between its boxes, moving each as little as it takes (in the mean)."""
    groups: list[tuple[list[int], float]] = []  # nodes that touch, and the wished centre of their first
    for node in row:
        nodes, wish = [node], centres[node]
        while groups:
            before, first = groups[-1]
            reach = first + _span(before, widths) + _between(before[-1], nodes[0], widths)
            if reach <= wish:
                break
            groups.pop()
            shift = _span(before, widths) + _between(before[-1], nodes[0], widths)
            wish = (first * len(before) + (wish - shift) * len(nodes)) / (len(before) + len(nodes))
            nodes = before + nodes
        groups.append((nodes, wish))
    for nodes, first in groups:
        x = first
        for previous, node in zip([None, *nodes], nodes, strict=False):
            x += _between(previous, node, widths) if previous is not None else 0.0
            centres[node] = x


def _span(nodes: Sequence[int], widths: Sequence[int]) -> float:
    return sum(_between(a, b, widths) for a, b in pairwise(nodes))


def _between(a: int, b: int, widths: Sequence[int]) -> float:
    return (widths[a] + widths[b]) / 2 + _GAP_X


def _tops(rows: list[list[int]], boxes: Sequence[Box]) -> tuple[list[int], list[int]]:
    """Where each row starts, and how high it is."""
    heights = [max((boxes[n].height for n in row if n < len(boxes)), default=0) for row in rows]
    tops = [_MARGIN + sum(heights[:i]) + i * _GAP_Y for i in range(len(rows))]
    return tops, heights

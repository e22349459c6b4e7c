"""Symbolic dimensions: integer polynomials over named symbols, equal when their normal forms are equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from llamac.errors import LlamacError

from .dtypes import DTYPES

_MOST_TERMS = 4096
"""Terms of a product: a real dimension has two or three."""

Monomial = tuple[str, ...]
"""Symbol names in sorted order, repeated for powers; () is the constant term."""


class Dim:
    """A non-constant polynomial such as `past + tokens` or `2*T`. Constants are plain ints, never a `Dim`."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: tuple[tuple[Monomial, int], ...] = tuple(sorted((m, c) for m, c in terms.items() if c))

    def __add__(self, other: DimLike) -> DimLike:
        terms = dict(self.terms)
        for monomial, count in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + count
        return _normal(terms)

    __radd__ = __add__

    def __mul__(self, other: DimLike) -> DimLike:
        if len(self.terms) * len(_terms(other)) > _MOST_TERMS:
            raise LlamacError("LLC0401", "dimension", f"a product of {len(self.terms)} terms is too large")
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _normal(terms)

    __rmul__ = __mul__

    def __neg__(self) -> DimLike:
        return self * -1

    def __sub__(self, other: DimLike) -> DimLike:
        return self + (-other)

    def __rsub__(self, other: DimLike) -> DimLike:
        return (-self) + other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __str__(self) -> str:
        # Symbols before the constant, so that `P + 1` does not read `1 + P`.
        parts = [_term_text(m, c) for m, c in sorted(self.terms, key=lambda t: (not t[0], t[0]))]
        return " + ".join(parts).replace("+ -", "- ")

    __repr__ = __str__

    @property
    def lone_symbol(self) -> str | None:
        """The name when this dimension is one symbol and nothing else."""
        (monomial, count), *others = self.terms
        return monomial[0] if not others and count == 1 and len(monomial) == 1 else None

    @property
    def symbols(self) -> frozenset[str]:
        """The names this dimension depends on."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)


DimLike = int | Dim


_RESERVED = frozenset({"x", "true", "false", "inf", "nan", *DTYPES})
"""Words that mean something else where a dimension may stand."""


def symbol(name: str) -> Dim:
    """The dimension that is just the symbol `name` (LLC0401 when the name could not be read back)."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in _RESERVED:
        raise LlamacError("LLC0401", "dimension", f"'{name}' cannot name a dimension")
    return Dim({(name,): 1})


def evaluate(dim: DimLike, values: Mapping[str, int]) -> int:
    """The integer value of `dim` with every symbol bound in `values` (KeyError for an unbound one)."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, count in dim.terms:
        product = count
        for name in monomial:
            product *= values[name]
        total += product
    return total


def substitute(dim: DimLike, values: Mapping[str, DimLike]) -> DimLike:
    """`dim` with the symbols in `values` replaced; other symbols stay."""
    if isinstance(dim, int):
        return dim
    total: DimLike = 0
    for monomial, count in dim.terms:
        product: DimLike = count
        for name in monomial:
            product = product * values.get(name, symbol(name))
        total = total + product
    return total


def divide(dim: DimLike, divisor: DimLike) -> DimLike | None:
    """`dim / divisor` when it is exact as a polynomial by a single term, else None."""
    if isinstance(dim, int) and isinstance(divisor, int):
        return dim // divisor if divisor and dim % divisor == 0 else None
    parts = _terms(divisor)
    if len(parts) != 1:
        return 1 if dim == divisor else None
    (monomial, count) = parts[0]
    quotient: dict[Monomial, int] = {}
    for left, a in _terms(dim):
        remaining = list(left)
        for name in monomial:
            if name not in remaining:
                return None
            remaining.remove(name)
        if a % count:
            return None
        quotient[tuple(remaining)] = a // count
    return _normal(quotient)


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> DimLike:
    """The inverse of `str`: sums and products of integers and names, with parentheses."""
    tokens = re.findall(r"\d+|[A-Za-z_]\w*|[-+*()]", text)
    if "".join(tokens) != re.sub(r"\s", "", text) or not tokens:
        raise LlamacError("LLC0401", "dimension", f"'{text}' is not a dimension expression")
    _check_size(tokens)
    value, rest = _parse_sum(tokens)
    if rest:
        raise LlamacError("LLC0401", "dimension", f"unexpected '{rest[0]}' in '{text}'")
    return value


_MOST_TOKENS, MOST_DIGITS, _DEEPEST = 256, 18, 16
"""Far beyond any number or dimension that is meant (18 digits fit 64 bits).

Text from elsewhere must not exhaust the stack or the memory.
"""


def _check_size(tokens: list[str]) -> None:
    depth = deepest = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token, 0)
        deepest = max(deepest, depth)
        if token.isdigit() and len(token) > MOST_DIGITS:
            raise LlamacError("LLC0401", "dimension", f"a number of {len(token)} digits is too large")
    if len(tokens) > _MOST_TOKENS or deepest > _DEEPEST:
        raise LlamacError("LLC0401", "dimension", f"an expression of {len(tokens)} parts, {deepest} deep, is too large")


def _parse_sum(tokens: list[str]) -> tuple[DimLike, list[str]]:
    negative = tokens[:1] == ["-"]
    value, rest = _parse_product(tokens[negative:])
    value = -value if negative else value
    while rest and rest[0] in "+-":
        right, after = _parse_product(rest[1:])
        value = value + right if rest[0] == "+" else value - right
        rest = after
    return value, rest


def _parse_product(tokens: list[str]) -> tuple[DimLike, list[str]]:
    value, rest = _parse_atom(tokens)
    while rest and rest[0] == "*":
        right, rest = _parse_atom(rest[1:])
        value = value * right
    return value, rest


def _parse_atom(tokens: list[str]) -> tuple[DimLike, list[str]]:
    if not tokens:
        raise LlamacError("LLC0401", "dimension", "the expression ends too early")
    head, rest = tokens[0], tokens[1:]
    if head == "(":
        value, rest = _parse_sum(rest)
        if rest[:1] != [")"]:
            raise LlamacError("LLC0401", "dimension", "missing ')'")
        return value, rest[1:]
    if head.isdigit():
        return int(head), rest
    if head in "+-*)":
        raise LlamacError("LLC0401", "dimension", f"unexpected '{head}'")
    return symbol(head), rest


def _terms(dim: DimLike) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Dim) else ((((), dim),) if dim else ())


def _normal(terms: Mapping[Monomial, int]) -> DimLike:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    return kept[()] if set(kept) == {()} else Dim(kept)


def _term_text(monomial: Monomial, count: int) -> str:
    if not monomial:
        return str(count)
    product = "*".join(monomial)
    if count == 1:
        return product
    return f"-{product}" if count == -1 else f"{count}*{product}"

"""Symbolic dimensions: ring laws, evaluation, division, and text both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quick import QUICK

from llamac.errors import LlamacError
from llamac.ir.dims import Dim, DimLike, divide, evaluate, parse_dim, substitute, symbol

SYMBOLS = ("T", "P", "kv_1", "S")
values = st.fixed_dictionaries({name: st.integers(-50, 50) for name in SYMBOLS})
atoms = st.one_of(st.integers(-9, 9), st.sampled_from(SYMBOLS).map(symbol))


def _combine(children: st.SearchStrategy[DimLike]) -> st.SearchStrategy[DimLike]:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]), pairs.map(lambda p: p[0] - p[1]), pairs.map(lambda p: p[0] * p[1])
    )


dims = st.recursive(atoms, _combine, max_leaves=8)


@QUICK
@given(dims, dims, dims)
def test_ring_laws(a: DimLike, b: DimLike, c: DimLike) -> None:
    assert a + b == b + a and a * b == b * a
    assert (a + b) + c == a + (b + c) and (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert a + 0 == a and a * 1 == a and a * 0 == 0
    assert a - a == 0 and a + (-a) == 0 and a - b == -(b - a)


@QUICK
@given(dims, dims, values)
def test_evaluation_is_a_homomorphism(a: DimLike, b: DimLike, at: dict[str, int]) -> None:
    assert evaluate(a + b, at) == evaluate(a, at) + evaluate(b, at)
    assert evaluate(a * b, at) == evaluate(a, at) * evaluate(b, at)
    assert substitute(a, at) == evaluate(a, at)


@QUICK
@given(dims, dims, dims)
def test_substitution_is_composition(a: DimLike, b: DimLike, c: DimLike) -> None:
    at = {"T": 3, "P": -2, "kv_1": 5, "S": 7}
    inner = {"T": b, "P": c}
    values_inside = at | {name: evaluate(dim, at) for name, dim in inner.items()}
    assert evaluate(substitute(a, inner), at) == evaluate(a, values_inside)


@QUICK
@given(dims)
def test_text_round_trip(dim: DimLike) -> None:
    assert parse_dim(str(dim)) == dim
    assert hash(parse_dim(str(dim))) == hash(dim)


@QUICK
@given(dims, dims)
def test_equal_dimensions_print_equally_and_constants_are_ints(a: DimLike, b: DimLike) -> None:
    assert (str(a) == str(b)) == (a == b)
    difference = (a + b) - b
    assert difference == a and type(difference) is type(a)
    assert not isinstance(a, Dim) or a.symbols


@QUICK
@given(dims, st.sampled_from([1, 2, -3, symbol("T"), 2 * symbol("P"), symbol("T") * symbol("P")]))
def test_division_undoes_multiplication(dim: DimLike, divisor: DimLike) -> None:
    assert divide(dim * divisor, divisor) == dim


def test_division_that_is_not_exact() -> None:
    tokens, past = symbol("T"), symbol("P")
    assert divide(7, 2) is None and divide(7, 0) is None and divide(6, 2) == 3
    assert divide(tokens, past) is None and divide(3 * tokens, 2) is None
    assert divide(tokens + past, tokens) is None
    assert divide(tokens + past, tokens + past) == 1 and divide(2 * tokens, tokens + past) is None


def test_text_reads_like_the_paper() -> None:
    tokens, past = symbol("T"), symbol("P")
    assert str(past + tokens + 1) == "P + T + 1"
    assert str(2 * tokens - 1) == "2*T - 1"
    assert str(-tokens * past) == "-P*T"
    assert parse_dim("2 * (T + 3)") == 2 * tokens + 6
    assert parse_dim(" (P) ") == past and parse_dim("-T*2 + T") == -tokens


def test_lone_symbols() -> None:
    tokens, past = symbol("T"), symbol("P")
    assert isinstance(tokens, Dim) and tokens.lone_symbol == "T"
    for other in (2 * tokens, tokens + past, tokens * tokens, tokens + 1):
        assert isinstance(other, Dim) and other.lone_symbol is None


def test_unbound_symbols_are_key_errors() -> None:
    with pytest.raises(KeyError, match="P"):
        evaluate(symbol("T") + symbol("P"), {"T": 1})


@pytest.mark.parametrize(
    "text",
    ["", " ", "T +", "(T", "T)", "2 T", "T $ 1", "*T", "T + * 2", "a.b", "()", "T / 2", "f32", "x", "true", "1e3"],
)
def test_malformed_text(text: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_dim(text)
    assert caught.value.code == "LLC0401"


@pytest.mark.parametrize("name", ["x", "f32", "nan", "a-b", "1T", "", "é", "true"])
def test_symbols_that_could_not_be_read_back_are_refused(name: str) -> None:
    with pytest.raises(LlamacError, match="cannot name a dimension"):
        symbol(name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(" * 17 + "T" + ")" * 17, "35 parts, 17 deep, is too large"),
        ("+".join(["T"] * 200), "399 parts, 0 deep, is too large"),
        ("9" * 19, "a number of 19 digits is too large"),
    ],
)
def test_hostile_sizes_are_refused(text: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_dim(text)
    assert caught.value.code == "LLC0401" and reason in caught.value.reason


def test_a_product_of_large_sums_is_refused() -> None:
    wide = parse_dim(" + ".join(f"a{i}" for i in range(70)))
    with pytest.raises(LlamacError) as caught:
        wide * wide
    assert caught.value.reason == "a product of 70 terms is too large"

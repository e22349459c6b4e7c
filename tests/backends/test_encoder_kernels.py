"""The C kernels of image encoders against numpy; the same bits on any number of threads and every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from every_way import strided
from kernel_driver import Case, Runner, build_runners
from panel16 import Array, pack_dense

RANDOM = np.random.default_rng(21)
WIDTHS = (5, 100, 1408)
ROWS = 7
TOKENS = [(20, 2, 16), (300, 1, 88), (37, 3, 80), (8, 1, 20)]
"""Tokens, heads, width of a head: below and above a page, whole vectors and not."""

VIEW = "((llamac_view){4, {3, 2, 2, 4}, {16, 4, 8, 1}})"


def _token_cases() -> list[Case]:
    cases = []
    for tokens, heads, width in TOKENS:
        name, ld = f"{tokens}x{heads}x{width}", 3 * heads * width
        shape = f"{tokens}, {heads}, {width}"
        cases.append(
            Case(f"pages-{name}", f"llamac_token_pages(th, B(float, 0), B(float, 1), {ld}, {shape}, ORDER(2));")
        )
        attend = f"B(float, 0), {heads * width}, B(float, 1), {ld}, B(float, 2), {shape}, {width**-0.5!r}f"
        cases.append(Case(f"attend-{name}", f"llamac_attend_tokens(th, {attend}, ORDER(3), ORDER(4));"))
        turn = f"B(float, 0), {ld}, {tokens}, {2 * heads}, {width}, B(float, 1), B(float, 2)"
        cases.append(Case(f"turn-{name}", f"llamac_rope_pairs(th, {turn});"))
    return [Case(c.name, c.body.replace("ORDER(", "S(0) == 0 ? NULL : B(int32_t, ")) for c in cases]


def all_cases() -> list[Case]:
    cases = [*_token_cases()]
    for w in WIDTHS:
        norm = f"B(float, 0), {w + 1}, B(float, 1), {w + 3}, {ROWS}, {w}, B(float, 2), B(float, 3), 1e-5f"
        cases.append(Case(f"norm-{w}", f"llamac_layer_norm(th, {norm});"))
        cases.append(Case(f"gelu-{w}", f"llamac_gelu(th, B(float, 0), {w}, B(float, 1), {w}, {ROWS}, {w});"))
        for first in (0, 1):
            token = f"B(float, 0), {w}, B(float, 1), {w}, B(float, 2), 2, 3, {w}, {first}"
            cases.append(Case(f"class-{first}-{w}", f"llamac_class_token(th, {token});"))
        cases.append(Case(f"pad-{w}", f"llamac_pad_tiles(th, B(float, 0), {w}, B(float, 1), {w}, 2, 3, 5, {w});"))
        for kind in ("F32", "BF16"):
            for each in (w, 3 * w):
                add = f"B(float, 0), {w}, B(float, 1), {w}, 2, 3, {w}, B(uint8_t, 2), LLAMAC_{kind}, {each}, "
                add += "B(float, 3), S(0), S(1) ? B(int32_t, 4) : NULL"
                cases.append(Case(f"places-{kind}-{each // w}-{w}", f"llamac_add_places(th, {add});"))
        for kind in ("F32", "BF16"):
            linear = f"B(float, 0), {w + 2}, B(float, 1), 33, S(0), B(uint8_t, 2), {w}, 33, LLAMAC_{kind}, B(float, 3)"
            cases.append(Case(f"biased-{kind}-{w}", f"llamac_linear_biased(th, {linear}, S(1) ? B(float, 0) : NULL);"))
    cases.append(Case("view", f"llamac_rearrange(th, B(float, 0), 9, 8, B(float, 1) + 2, {VIEW});"))
    cases.append(
        Case("columns", "llamac_rearrange(th, B(float, 0), 3, 3, B(float, 1), ((llamac_view){2, {5, 3}, {1, 5}}));")
    )
    cases.append(Case("tables", "llamac_cos_sin(th, B(float, 0), B(float, 1), B(float, 2), S(0));"))
    cases.append(Case("order", "llamac_order_tokens(th, B(int32_t, 0), B(int32_t, 1), B(int32_t, 2), 4, 5, 8);"))
    cases.append(Case("rows", "llamac_tile_rows(th, B(int32_t, 0), B(int32_t, 1), 4);"))
    cases.append(Case("row", "llamac_lookup_row(th, B(int32_t, 0), B(int32_t, 1), B(int32_t, 2), 3);"))
    return cases


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, left_out: tuple[str, ...]) -> dict[str, Runner]:
    return build_runners(all_cases(), tmp_path_factory.mktemp("encoder"), left_out)


def everywhere(runners: dict[str, Runner], run: Callable[[Runner, int], Array]) -> Array:
    """What `run` gives with one to three threads and every instruction set: the same bits."""
    found = [run(runner, threads) for runner in runners.values() for threads in (1, 2, 3)]
    assert all(f.tobytes() == found[0].tobytes() for f in found)
    return found[0]


def near(found: Array, exact: Array, bound: float) -> None:
    assert np.abs(found - exact).max() <= bound * max(np.abs(exact).max(), 1e-30)


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(runners: dict[str, Runner], width: int) -> None:
    x, weight, bias = random(ROWS, width) * 3 + 5, random(width), random(width)
    x[1], x[2] = 7, 1e-12 * x[2]

    def run(runner: Runner, threads: int) -> Array:
        y = strided(np.zeros((ROWS, width), np.float32), width + 1)
        runner.run(f"norm-{width}", threads, [], [y, strided(x, width + 3), weight, bias])
        assert (y[:, width:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :width])

    wide = x.astype(np.float64)
    centered = wide - wide.mean(axis=1, keepdims=True)
    exact = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5) * weight + bias
    found = everywhere(runners, run)
    near(found, exact, 3e-6)
    assert (found[1] == bias).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_gelu(runners: dict[str, Runner], width: int) -> None:
    x = random(ROWS, width) * 3
    x[0, :5] = 0, -0.0, 40, -40, 6.0001

    def run(runner: Runner, threads: int) -> Array:
        y = np.zeros_like(x)
        runner.run(f"gelu-{width}", threads, [], [y, x])
        return y

    exact = np.vectorize(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))(x.astype(np.float64))
    found = everywhere(runners, run)
    assert np.abs(found - exact).max() <= 2e-7 * np.abs(x).max()
    inside = np.abs(x) < 5
    np.testing.assert_allclose(found[inside], exact[inside], rtol=2e-5)


def test_gelu_is_faithful_over_its_range(runners: dict[str, Runner]) -> None:
    """A grid of every size of x; what is not finite stays visible."""
    x = np.linspace(-7, 7, ROWS * 1408, dtype=np.float32).reshape(ROWS, 1408)
    x[0, :3] = np.nan, np.inf, -1e30
    y = np.zeros_like(x)
    next(iter(runners.values())).run("gelu-1408", 1, [], [y, x])
    assert np.isnan(y[0, 0]) and np.isinf(y[0, 1]) and y[0, 2] == 0
    exact = np.vectorize(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))(x[1:].astype(np.float64))
    assert np.abs(y[1:] - exact).max() < 4e-7


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize(("rows", "residual"), [(1, 0), (ROWS, 0), (ROWS, 1), (1, 1)])
def test_linear_with_a_bias(runners: dict[str, Runner], width: int, kind: str, rows: int, residual: int) -> None:
    import ml_dtypes

    x, bias, before = random(rows, 33), random(width), random(rows, width)
    weight = random(width, 33).astype(np.float32 if kind == "F32" else ml_dtypes.bfloat16)
    packed = pack_dense(weight, None)

    def run(runner: Runner, threads: int) -> Array:
        y = strided(before, width + 2)
        runner.run(f"biased-{kind}-{width}", threads, [rows, residual], [y, x, packed, bias])
        assert (y[:, width:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :width])

    product = np.zeros((rows, width), np.float32)
    for k in range(33):  # one chain of fused multiply-adds for each output
        product = (x[:, k : k + 1].astype(np.float64) * weight[:, k].astype(np.float64) + product).astype(np.float32)
    expected = product + bias
    assert (everywhere(runners, run) == (before + expected if residual else expected)).all()


@pytest.mark.parametrize("case", TOKENS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_attention_of_all_tokens(runners: dict[str, Runner], case: tuple[int, int, int], padded: bool) -> None:
    tokens, heads, width = case
    name, qkv = f"{tokens}x{heads}x{width}", random(tokens, 3 * heads * width)
    is_padding = (np.arange(tokens) % 5 == 4) & padded
    order = np.argsort(is_padding, kind="stable").astype(np.int32)
    real = np.array([(~is_padding).sum()], np.int32)

    def run(runner: Runner, threads: int) -> Array:
        pages = np.full((-(-tokens // 256), heads, 2 * width * 256), np.nan, np.float32)
        out = np.zeros((tokens, heads * width), np.float32)
        runner.run(f"pages-{name}", threads, [int(padded)], [pages, qkv, order])
        runner.run(f"attend-{name}", threads, [int(padded)], [out, qkv, pages, order, real])
        return out

    q, k, v = qkv.astype(np.float64).reshape(tokens, 3, heads, width).transpose(1, 2, 0, 3)
    scores = q @ k.swapaxes(1, 2) * width**-0.5
    scores[:, is_padding[:, None] & is_padding[None, :]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(tokens, -1)
    near(everywhere(runners, run), exact, 2e-6)


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_pairs_are_turned(runners: dict[str, Runner], case: tuple[int, int, int]) -> None:
    tokens, heads, width = case
    qkv, angles = random(tokens, 3 * heads * width), random(tokens, width // 2)
    cos, sin = np.cos(angles), np.sin(angles)

    def run(runner: Runner, threads: int) -> Array:
        x = qkv.copy()
        runner.run(f"turn-{tokens}x{heads}x{width}", threads, [], [x, cos, sin])
        return x

    pairs = qkv.reshape(tokens, 3 * heads, -1, 2)
    even, odd, c, s = pairs[..., 0], pairs[..., 1], cos[:, None], sin[:, None]
    turned = np.stack([even * c - odd * s, odd * c + even * s], axis=-1)
    expected = np.concatenate([turned[:, : 2 * heads], pairs[:, 2 * heads :]], axis=1)
    assert (everywhere(runners, run) == expected.reshape(qkv.shape)).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_tiles(runners: dict[str, Runner], width: int) -> None:
    x, token = random(6, width), random(width)
    rows = x.reshape(2, 3, width)

    def moved(name: str, count: int, *more: Array) -> Array:
        def run(runner: Runner, threads: int) -> Array:
            y = np.full((2 * count, width), np.nan, np.float32)
            runner.run(f"{name}-{width}", threads, [], [y, x, *more])
            return y

        return everywhere(runners, run).reshape(2, count, width)

    before, after = moved("class-1", 4, token), moved("class-0", 4, token)
    assert (before[:, 0] == token).all() and (before[:, 1:] == rows).all()
    assert (after[:, 3] == token).all() and (after[:, :3] == rows).all()
    padded = moved("pad", 5)
    assert (padded[:, :3] == rows).all() and not padded[:, 3:].any()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("complement", [0, 1])
def test_places(runners: dict[str, Runner], width: int, kind: str, times: int, complement: int) -> None:
    import ml_dtypes

    x, gate, index = random(6, width), np.array([0.6], np.float32), np.array([2, -1], np.int32)
    table = random(4, times * width).astype(np.float32 if kind == "F32" else ml_dtypes.bfloat16)
    factor = np.float32(np.tanh(gate.astype(np.float64))[0])
    factor = np.float32(1) - factor if complement else factor

    for indexed in (0, 1):

        def run(runner: Runner, threads: int, indexed: int = indexed) -> Array:
            y = np.zeros_like(x)
            runner.run(f"places-{kind}-{times}-{width}", threads, [complement, indexed], [y, x, table, gate, index])
            return y

        def added(place: int) -> Array:
            return np.broadcast_to(table[place].astype(np.float32).reshape(times, width) * factor, (3, width))

        second = np.zeros((3, width), np.float32) if indexed else added(0)
        expected = x + np.concatenate([added(2 if indexed else 0), second])
        assert (everywhere(runners, run) == expected).all()


def test_views_tables_and_small_integers(runners: dict[str, Runner]) -> None:
    x, angles = random(60), random(3, 8) * 50

    def view(runner: Runner, threads: int) -> Array:
        y = np.zeros((6, 9), np.float32)
        runner.run("view", threads, [], [y, x])
        return np.ascontiguousarray(y[:, :8])

    strides = tuple(4 * n for n in (16, 4, 8, 1))
    expected = np.lib.stride_tricks.as_strided(x[2:], (3, 2, 2, 4), strides).reshape(6, 8)
    assert (everywhere(runners, view) == expected).all()

    def tables(runner: Runner, threads: int) -> Array:
        cos, sin = np.zeros((2, 3, 8), np.float32)
        runner.run("tables", threads, [angles.size], [cos, sin, angles])
        return np.stack([cos, sin])

    exact = np.stack([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))])
    near(everywhere(runners, tables), exact, 6e-8)

    def integers(name: str, count: int, *given: Array) -> list[int]:
        def run(runner: Runner, threads: int) -> Array:
            y = np.zeros(count, np.int32)
            runner.run(name, threads, [], [y, *given])
            return y

        return everywhere(runners, run).tolist()

    slots = np.array([3, -1, 0, -1], np.int32)
    order = integers("order", 32, np.zeros(1, np.int32), slots)
    assert order[:10] == [0, 1, 2, 3, 4, 16, 17, 18, 19, 20] and sorted(order) == list(range(32))
    assert integers("rows", 4, np.array([5], np.int32)) == [20, 21, 22, 23]
    table = np.arange(12, dtype=np.int32)
    assert integers("row", 3, table, np.array([2], np.int32)) == [6, 7, 8]


def test_a_view_across_columns(runners: dict[str, Runner]) -> None:
    x = random(15)

    def run(runner: Runner, threads: int) -> Array:
        y = np.zeros((5, 3), np.float32)
        runner.run("columns", threads, [], [y, x])
        return y

    assert (everywhere(runners, run) == x.reshape(3, 5).T).all()

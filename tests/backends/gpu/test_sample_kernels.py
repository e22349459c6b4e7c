"""Tokens drawn in Triton's interpreter, against the host's sampler with the same random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from triton_interpreted import Array, Interpreter

from llamac.artifact.launch_plan import LISTED, SAMPLED_WORDS, SAMPLING_WORDS
from llamac.runtime.gpu.sampling import DrawnToken, drawn_token, sampling_rows
from llamac.runtime.sampler import Sampler, SamplerOptions, candidates, log_normalizer, top_logprobs


@dataclass(frozen=True)
class Found:
    """What a launch found: the ids for the next step, what the host is told, and the sums of the rows."""

    chosen: list[int]
    drawn: list[DrawnToken]
    sums: Array


def drawn(interpreter: Interpreter, logits: Array, sampling: Array, tile: int) -> Found:
    """A row's token by `tile_bests` and `draw`; everything that they write is poisoned before."""
    rows, vocab = logits.shape
    tiles = -(-vocab // tile)
    keys, mass = np.full((rows, tiles, LISTED), -1, np.int64), np.full((rows, 2, tiles), np.nan, np.float32)
    chosen, sampled = np.full(rows, -9, np.int32), np.full((rows, SAMPLED_WORDS), -9, np.int32)
    common = {
        "logits_ptr": logits, "sampling_ptr": sampling, "key_ptr": keys, "mass_ptr": mass, "N": vocab, "TILES": tiles,
        "LISTED": LISTED, "WORDS": SAMPLING_WORDS, "ID_BITS": vocab.bit_length(), "PDL": False,
    }  # fmt: skip
    interpreter.launch("sample.tile_bests", (tiles, rows), TILE=tile, **common)
    interpreter.launch(
        "sample.draw", (rows,), chosen_ptr=chosen, sampled_ptr=sampled, TILES_PAD=1 << (tiles - 1).bit_length(),
        BLOCK=128, **common,
    )  # fmt: skip
    return Found(chosen.tolist(), [drawn_token(row) for row in sampled], sampled[:, 3].view(np.float32))


def expected(logits: Array, options: SamplerOptions, bits: int) -> int:
    """The host's choice, as `Sampler` makes it."""
    if options.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, options)
    mass = np.cumsum(weights)
    return int(ids[np.searchsorted(mass, bits * 2.0**-53 * mass[-1], side="right")])


CASES = {
    "greedy": SamplerOptions(),
    "temperature alone": SamplerOptions(1.3),
    "top-k": SamplerOptions(0.8, top_k=20),
    "top-k larger than the list": SamplerOptions(2.5, top_k=90),
    "top-p within the list": SamplerOptions(0.6, top_p=0.8),
    "top-p beyond the list": SamplerOptions(3.0, top_p=0.9),
    "min-p within the list": SamplerOptions(1.0, min_p=0.1),
    "min-p beyond the list": SamplerOptions(4.0, min_p=0.2),
    "all": SamplerOptions(1.2, top_k=50, top_p=0.9, min_p=0.02),
    "all beyond the list": SamplerOptions(6.0, top_k=120, top_p=0.95, min_p=0.01),
    "more than the vocabulary": SamplerOptions(1.0, top_k=1 << 40, top_p=0.999999),
}


@pytest.mark.parametrize("coarse", [pytest.param(False, marks=pytest.mark.slow), True], ids=["distinct", "ties"])
def test_draws_are_those_of_the_host(interpreter: Interpreter, coarse: bool) -> None:
    """Every filter, ending within the list of the best and beyond it; equal logits at every border."""
    rng = np.random.default_rng(5)
    logits = (2 * rng.standard_normal((len(CASES), 203))).astype(np.float32)
    if coarse:
        logits = np.round(logits)
        logits[:, ::7] = -np.inf
    drawn_bits = [int(bits) for bits in rng.integers(0, 1 << 53, len(CASES))]
    rows = list(zip(CASES.values(), drawn_bits, strict=True))
    found = drawn(interpreter, logits, sampling_rows(rows), 64)
    wanted = [expected(row, *given) for row, given in zip(logits, rows, strict=True)]
    assert dict(zip(CASES, found.chosen, strict=True)) == dict(zip(CASES, wanted, strict=True))
    for row, one, total, options in zip(logits, found.drawn, found.sums, CASES.values(), strict=True):
        likely = top_logprobs(row, LISTED)
        assert one.best_ids.tolist() == [sample.token_id for sample in likely]
        np.testing.assert_allclose(one.best_logprobs, [sample.logprob for sample in likely], atol=2e-6)
        assert one.logprob == pytest.approx(float(row[one.token_id]) - log_normalizer(row), abs=2e-6)
        sums = np.exp((row.astype(np.float64) - row.max()) / (options.temperature or 1)).sum()
        assert total == pytest.approx(sums, rel=1e-6)


@pytest.mark.parametrize("options", [SamplerOptions(1.5), SamplerOptions(1.5, top_k=5), SamplerOptions(1.5, top_p=0.9)])
def test_each_token_has_its_share(interpreter: Interpreter, options: SamplerOptions) -> None:
    """The borders between tokens lie where the probabilities in f64 put them: numbers on both sides of each."""
    logits = np.array([0.5, -1, 2, 2, -3, 1, 0.25], np.float32)
    ids, weights = candidates(logits, options)
    borders = np.cumsum(weights)[:-1] / weights.sum()
    bits = [int((border + side) * 2**53) for border in borders for side in (-3e-7, 3e-7)]
    bits = [0, *bits, (1 << 53) - 1]
    rows = sampling_rows([(options, each) for each in bits])
    found = drawn(interpreter, np.tile(logits, (len(bits), 1)), rows, 64)
    assert found.chosen == np.repeat(ids, 2).tolist()


def test_rows_that_are_no_distribution(interpreter: Interpreter) -> None:
    """Token 0 for the step that may be on its way, -1 for the host; what is beside them is drawn as ever."""
    logits = np.zeros((5, 70), np.float32)
    logits[0, 33], logits[1, 2], logits[2], logits[3, 69] = np.nan, np.inf, -np.inf, -np.nan
    rows = sampling_rows([(SamplerOptions(1.0, top_p=0.5), 1 << 51)] * 5)
    found = drawn(interpreter, logits, rows, 64)
    assert [one.token_id for one in found.drawn[:4]] == [-1] * 4 and found.chosen[:4] == [0] * 4
    assert found.chosen[4] == found.drawn[4].token_id == expected(logits[4], SamplerOptions(1.0, top_p=0.5), 1 << 51)


def test_a_vocabulary_smaller_than_the_list(interpreter: Interpreter) -> None:
    logits = np.array([[3, 1, 3, 0, 2]], np.float32)
    found = drawn(interpreter, logits, sampling_rows([(SamplerOptions(2.0, top_k=3), 1 << 52)]), 64)
    assert found.drawn[0].best_ids.tolist() == [0, 2, 4, 1, 3] and found.chosen == [2]


def test_numbers_of_seeds_are_uniform() -> None:
    """Chi-square of what is drawn from a tiny vocabulary, over seeds at one place of the text and over its places."""
    logits = np.array([0, 1, -1, 0.5], np.float32)
    _, weights = candidates(logits, SamplerOptions(0.9))
    over_seeds = [Sampler(SamplerOptions(0.9, seed=seed)).upcoming(3) for seed in range(4000)]
    one = Sampler(SamplerOptions(0.9, seed=7))
    over_places = [one.upcoming(place) for place in range(4000)]
    for bits in (over_seeds, over_places):
        counts = np.bincount([expected(logits, SamplerOptions(0.9), each) for each in bits], minlength=4)
        wanted = 4000 * weights / weights.sum()
        assert ((counts - wanted) ** 2 / wanted).sum() < 16.3, "p < 0.001 with three degrees of freedom"


def test_numbers_ahead_are_those_to_come() -> None:
    """Looking ahead uses nothing up; numbers used elsewhere are passed over."""
    first, second = (Sampler(SamplerOptions(1.0, seed=11)) for _ in range(2))
    ahead = [first.upcoming(n) * 2.0**-53 for n in range(6)]
    assert [second.uniform() for _ in range(6)] == ahead
    first.skip()
    assert [first.uniform() for _ in range(5)] == ahead[1:]
    assert Sampler(SamplerOptions()).upcoming(4) == 0

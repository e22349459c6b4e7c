"""Figures of the CPU benchmark: operations against torch's own counter, quartiles against numpy, shares by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from figures import Measured, Timing, decode_operations, figures, multiples, operations, prefill_operations, spread
from rows import Point

from llamac.models.presets import preset

CONFIG = replace(preset("tiny"), context_length=256)


def test_operations_are_those_that_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        head_dim=CONFIG.head_dim,
        attn_implementation="eager",
    )
    tokens = 24
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model = LlamaForCausalLM(config)
        model(torch.arange(tokens)[None])
    # Eager attention computes the masked half too.
    assert counter.get_total_flops() == operations(CONFIG, tokens, tokens * tokens, tokens)


def test_a_prefill_is_the_sum_of_its_steps() -> None:
    steps = [operations(CONFIG, 1, place + 1, 0) for place in range(40)]
    assert prefill_operations(CONFIG, 40) == sum(steps) + 2 * CONFIG.vocab_size * CONFIG.hidden_size


def test_rows_together_cost_as_many_times_one() -> None:
    assert decode_operations(CONFIG, Point(32, 9, 8)) == 8 * decode_operations(CONFIG, Point(32, 9))


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_spread_is_numpys_quartiles(count: int) -> None:
    values = np.random.default_rng(count).uniform(1, 1000, count).tolist()
    assert spread(values) == pytest.approx(np.percentile(values, [25, 50, 75]), rel=1e-3)


def _measured(point: Point, own: list[Timing], other: list[Timing]) -> Measured:
    return Measured(point, {"llamac": own, "llama.cpp": other})


def test_shares_and_ratios() -> None:
    point, weights = Point(100, 11), 10**6
    rate = prefill_operations(CONFIG, 100) / 100
    own = [Timing(prefill=50, decode=20, peak=100 * rate, read=4e7, mapped_read=2.5e7)]
    found = figures(_measured(point, own, [Timing(prefill=25, decode=40)]), CONFIG, weights)
    assert found["shares"]["peak"] == pytest.approx([0.5] * 3)
    assert found["shares"]["read"] == pytest.approx([0.5] * 3)
    assert found["shares"]["mapped_read"] == pytest.approx([0.8] * 3)
    assert found["shares"]["roof"] == pytest.approx([0.8] * 3)  # the bytes take longer than the operations
    assert found["ratios"] == {"llama.cpp": {"prefill": [2.0] * 3, "decode": [0.5] * 3}}


def test_the_roof_of_many_rows_can_be_the_peak() -> None:
    point = Point(32, 9, 8)
    own = [Timing(decode=80, peak=20 * decode_operations(CONFIG, point), read=1e12, mapped_read=1e12)]
    found = figures(Measured(point, {"llamac": own}), CONFIG, 10**6)
    assert found["shares"]["roof"] == pytest.approx([0.5] * 3)  # ten steps a second of twenty
    assert "peak" not in found["shares"]


def test_ratios_pair_runs_of_the_same_pair() -> None:
    own = [Timing(decode=value) for value in (10, 20, 90)]
    other = [Timing(decode=value) for value in (10, 10, 30)]
    own = [replace(timing, read=1, mapped_read=1) for timing in own]
    found = figures(_measured(Point(1, 2), own, other), CONFIG, 1)
    assert found["ratios"]["llama.cpp"]["decode"][1] == 2


def test_multiples_are_of_one_sequence() -> None:
    one = _measured(Point(1, 2), [Timing(decode=10), Timing(decode=30)], [Timing(decode=5), Timing(decode=5)])
    eight = _measured(Point(1, 2, 8), [Timing(decode=50), Timing(decode=90)], [Timing(decode=5), Timing(decode=15)])
    assert multiples(one, eight) == {"llamac": [3.5, 4.0, 4.5], "llama.cpp": [1.5, 2.0, 2.5]}

"""No false alarms: the pipeline as it is passes validation on random models."""

from __future__ import annotations

import pytest
from random_models import random_llama4, random_model
from small_models import SmallModel

ORDINARY, ALL = 10, 200
ORDINARY_LLAMA4, ALL_LLAMA4 = 8, 120


def check(model: SmallModel, seed: int) -> None:
    verdicts = model.run(seed=seed)
    assert all(verdict.passed for verdict in verdicts)
    assert verdicts[-1].after in ("plan-memory", "dtype mode")


@pytest.mark.parametrize("seed", range(ORDINARY))
def test_random_model_is_compiled_right(seed: int) -> None:
    check(random_model(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ORDINARY, ALL))
def test_further_random_model_is_compiled_right(seed: int) -> None:
    check(random_model(seed), seed)


@pytest.mark.parametrize("seed", range(ORDINARY_LLAMA4))
def test_random_llama4_is_compiled_right(seed: int) -> None:
    check(random_llama4(seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ORDINARY_LLAMA4, ALL_LLAMA4))
def test_further_random_llama4_is_compiled_right(seed: int) -> None:
    check(random_llama4(seed), seed)

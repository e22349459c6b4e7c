"""No false alarms: the pipeline as it is passes validation on random models."""

from __future__ import annotations

import pytest
from random_models import random_model

ORDINARY, ALL = 20, 200


def check(seed: int) -> None:
    model = random_model(seed)
    verdicts = model.run(seed=seed)
    assert all(verdict.passed for verdict in verdicts)
    assert verdicts[-1].after in ("plan-memory", "dtype mode")


@pytest.mark.parametrize("seed", range(ORDINARY))
def test_random_model_is_compiled_right(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ORDINARY, ALL))
def test_further_random_model_is_compiled_right(seed: int) -> None:
    check(seed)

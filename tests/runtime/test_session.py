"""The ragged session: any cut into steps and any company gives the same logits, and refusals say the numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

Reference = Callable[[list[int]], Any]
TEXTS = st.lists(st.lists(st.integers(0, 259), min_size=1, max_size=30), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def model(toy_artifact: Path) -> Iterator[Model]:
    with load(toy_artifact, sequences=4) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _every_page_comes_back(model: Model) -> Iterator[None]:
    yield
    assert model.session.pools[0].free_pages == model.session.pools[0].page_count


def test_all_logits_of_a_prompt_longer_than_a_step(model: Model, toy_logits: Reference) -> None:
    ids = [(7 * index) % 250 for index in range(101)]
    np.testing.assert_array_equal(model.logits(ids), toy_logits(ids))


def test_prefill_in_one_call_gives_the_last_row(model: Model, toy_logits: Reference) -> None:
    ids = list(range(50, 90))
    sequence = model.session.open()
    np.testing.assert_array_equal(model.session.prefill(sequence, ids), toy_logits(ids)[-1])
    sequence.close()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, seed=st.integers(0, 1 << 32))
def test_any_partition_of_any_company_gives_the_same_logits(
    texts: list[list[int]], seed: int, model: Model, toy_logits: Reference
) -> None:
    cut = random.Random(seed)
    sequences = [model.session.open() for _ in texts]
    found: list[list[Any]] = [[] for _ in texts]
    while any(len(row) < len(text) for row, text in zip(found, texts, strict=True)):
        room, feeds, owners = model.session.max_step_tokens, [], []
        for index, (sequence, text) in enumerate(zip(sequences, texts, strict=True)):
            count = min(cut.randint(0, 5), room, len(text) - len(sequence))
            if count:
                feeds.append(Feed(sequence, text[len(sequence) : len(sequence) + count], "all"))
                owners += [index] * count
                room -= count
        if feeds:
            for owner, logits in zip(owners, model.session.step(feeds), strict=True):
                found[owner].append(logits)
    for sequence in sequences:
        sequence.close()
    for rows, text in zip(found, texts, strict=True):
        np.testing.assert_array_equal(np.array(rows), toy_logits(text))


def test_a_freed_page_serves_another_sequence(toy_artifact: Path, toy_logits: Reference) -> None:
    with load(toy_artifact, context=8) as small:
        for start in (10, 90, 200):
            ids = list(range(start, start + 8))
            np.testing.assert_array_equal(small.logits(ids), toy_logits(ids))


def test_a_step_takes_no_more_than_it_can(model: Model) -> None:
    sequence = model.session.open()
    with pytest.raises(ValueError, match=r"1\.\.8 tokens, not 9"):
        model.session.step([Feed(sequence, [1] * 9)])
    with pytest.raises(ValueError, match="not 0"):
        model.session.step([])


def test_rows_are_those_asked_for(model: Model, toy_logits: Reference) -> None:
    first, second, third = (model.session.open() for _ in range(3))
    feeds = [Feed(first, [1, 2], "none"), Feed(second, [3, 4], "all"), Feed(third, [5, 6], "last")]
    logits = model.session.step(feeds)
    np.testing.assert_array_equal(logits, np.concatenate([toy_logits([3, 4]), toy_logits([5, 6])[1:]]))
    for sequence in (first, second, third):
        sequence.close()


def test_more_than_the_context_is_refused_with_the_numbers(model: Model) -> None:
    with pytest.raises(LlamacError, match=r"LLC0809 prompt: 161 tokens, the context holds 160: 1 too many"):
        model.logits([1] * 161)


def test_an_empty_prompt_is_refused(model: Model) -> None:
    with pytest.raises(LlamacError, match="LLC0810"):
        model.logits([])


@pytest.mark.parametrize("token", [-1, 260])
def test_ids_outside_the_vocabulary_are_refused(model: Model, token: int) -> None:
    with pytest.raises(LlamacError, match=rf"LLC0812 prompt: token 1 has id {token}.*0\.\.259"):
        model.logits([5, token])


def test_out_of_pages_leaves_the_sequence_where_it_was(toy_artifact: Path) -> None:
    with load(toy_artifact, context=8) as small:
        first, second = small.session.open(), small.session.open()
        small.session.prefill(first, [1] * 8)
        with pytest.raises(LlamacError, match="LLC0808"):
            small.session.step([Feed(second, [1])])
        assert len(second) == 0


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("sequences", -1), ("context", 0), ("threads", True)])
def test_counts_must_be_positive(toy_artifact: Path, name: str, value: Any) -> None:
    with pytest.raises(LlamacError, match=f"LLC0811 {name}"):
        load(toy_artifact, **{name: value})


def test_a_context_beyond_the_models_is_refused(toy_artifact: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0816 context: 161 tokens.*made for 160"):
        load(toy_artifact, context=161)

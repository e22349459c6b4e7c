"""Guessed and ranked, real and random models give the tokens that single steps over whole rows give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smollm2 import smollm2_file
from tiny_llama import TinyShape, make_reference, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from wild_guesses import WildSpeculator

import llamac
from llamac.runtime.generation import Continuation, GenerationOptions
from llamac.runtime.model import Model
from llamac.runtime.ranked import RankedRows
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.scheduler import run_together
from llamac.runtime.session import Feed, Session
from llamac.runtime.speculation.lookup import PromptLookup
from llamac.runtime.speculation.proposal import Speculator

CONTEXT = 620
NEW = 40

SHAPES: dict[str, Any] = {
    "llama": TinyShape(vocab=523, group=3, head_dim=16),
    "chunks of 300": Tiny4(chunk=300, step=1),
    "chunks of 40": Tiny4(chunk=40, tempered=False, top_k=3, kv_heads=4, seed=4),
}

PROMPTS = [some_ids(131, n, n) for n in (1, 250, 256, 291, 17)] + [some_ids(131, 590, 9)]
"""The texts cross a page (256), the end of a chunk (280, 300) and the end of the context."""


@pytest.fixture(scope="module", params=SHAPES)
def tiny(request: pytest.FixtureRequest, make_once: Callable[..., Path]) -> Iterator[Model]:
    def make(path: Path) -> None:
        shape, source = SHAPES[request.param], path.with_suffix(".source")
        if isinstance(shape, Tiny4):
            save_model(make_model(shape), shape, source)
        else:
            save_checkpoint(make_reference(shape), shape, source)
        llamac.compile(source, output=path, quantize="f32", tokenizer=False, validate=False, max_step_tokens=64)

    with llamac.load(make_once(f"guessed-{request.param}.llamac", make), context=CONTEXT, sequences=4) as model:
        yield model


def texts(model: Model, sampling: dict[str, Any], speculators: list[Speculator | None]) -> list[list[int]]:
    """New ids of every prompt, run together."""
    options = GenerationOptions(NEW, SamplerOptions(**sampling, seed=7))
    made = [
        Continuation(prompt, options, None, CONTEXT, speculator=speculator)
        for prompt, speculator in zip(PROMPTS, speculators, strict=True)
    ]
    for _ in run_together(model.session, made):
        pass
    assert all(pool.free_pages == pool.page_count for pool in model.session.pools)
    return [text.token_ids for text in made]


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.1},
]


@pytest.fixture
def whole_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and nothing is ranked any more."""
    return lambda: monkeypatch.setattr(Session, "most_top", 0)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_guesses_and_ranks_change_nothing(
    tiny: Model, sampling: dict[str, Any], whole_rows: Callable[[], None]
) -> None:
    ranked = texts(tiny, sampling, [None] * len(PROMPTS))
    outcomes = {tuple(prompt): ids for prompt, ids in zip(PROMPTS, ranked, strict=True)}
    for hits in (0.3, 0.9):
        wild = WildSpeculator(outcomes, hits, 1)
        assert texts(tiny, sampling, [wild] * len(PROMPTS)) == ranked
    lookup = PromptLookup(6)
    assert texts(tiny, sampling, [lookup, None, lookup, wild, lookup, wild]) == ranked
    whole_rows()
    assert texts(tiny, sampling, [None] * len(PROMPTS)) == ranked
    assert texts(tiny, sampling, [wild] * len(PROMPTS)) == ranked


def test_ranks_are_those_of_the_logits(tiny: Model) -> None:
    """For steps of any rows, on any number of threads, with the sums of any temperature."""
    session, vocab = tiny.session, tiny.vocab_size
    assert session.most_top == min(64, vocab)
    ids = PROMPTS[3][:64]
    logits = session.all_logits(ids)
    inverse = np.linspace(0.2, 3, 64).astype(np.float32)
    sums = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) * inverse[:, None]).sum(axis=1)
    for size in (1, 2, 7, 33, 64):
        sequence, done = session.open(), 0
        while done < len(ids):
            part = slice(done, min(done + size, len(ids)))
            ranked = RankedRows.empty(part.stop - part.start, 9, inverse[part])
            session.step_ranked([Feed(sequence, ids[part], "all")], ranked)
            order = np.argsort(-logits[part], axis=1, kind="stable")[:, :9]
            assert (ranked.ids == order).all()
            assert (ranked.values == np.take_along_axis(logits[part], order, axis=1)).all()
            assert ranked.sums is not None and np.allclose(ranked.sums, sums[part], rtol=1e-5)
            done = part.stop
        sequence.close()


def test_more_than_the_code_ranks_is_refused(tiny: Model) -> None:
    sequence = tiny.session.open()
    ranked = RankedRows.empty(1, tiny.session.most_top + 1)
    with pytest.raises(llamac.LlamacError) as caught:
        tiny.session.step_ranked([Feed(sequence, [1])], ranked)
    assert caught.value.code == "LLC0806" and "more of the best logits" in caught.value.reason
    sequence.close()


@pytest.fixture(scope="module")
def smollm2(make_once: Callable[..., Path]) -> Iterator[Model]:
    smollm2_file()

    def make(path: Path) -> None:
        llamac.compile("smollm2-135m", output=path, quantize="keep")

    path = make_once("smollm2-keep.llamac", make)
    with llamac.load(path, context=512, sequences=3, draft=path) as model:
        yield model


STORY = "Anna has three apples, two pears and a small red box. She puts the small red box under the old oak table."
REAL_PROMPTS = [
    f"Copy this text: {STORY}\nThe copy: {STORY[:20]}",
    "The capital of France is",
    "1, 2, 3, 1, 2, 3, 1, 2, 3,",
]


@pytest.mark.parametrize("way", ["lookup", "draft"])
def test_a_real_model_says_the_same(smollm2: Model, way: str) -> None:
    options: Any = {"max_new_tokens": 48, "temperature": 0.0}
    plain = smollm2.generate_batch(REAL_PROMPTS, speculate="off", **options)
    found = smollm2.generate_batch(REAL_PROMPTS, speculate=way, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in plain]
    assert [row.text for row in found] == [row.text for row in plain]
    first = found[0].speculation
    assert first is not None and first.tokens_per_step > 1.5, "a copy is guessed well"
    if way == "draft":
        for row in found:
            counts = row.speculation
            assert counts is not None and (row.stop_reason != "length" or counts.accepted == counts.drafted)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=str)
def test_a_real_model_draws_the_same(smollm2: Model, sampling: dict[str, Any], whole_rows: Callable[[], None]) -> None:
    options: Any = {"max_new_tokens": 32, "seed": 5, **sampling}
    ranked = smollm2.generate_batch(REAL_PROMPTS, speculate="off", **options)
    guessed = smollm2.generate_batch(REAL_PROMPTS, speculate="lookup", **options)
    whole_rows()
    plain = smollm2.generate_batch(REAL_PROMPTS, speculate="off", **options)
    for rows in (ranked, guessed):
        assert [row.token_ids for row in rows] == [row.token_ids for row in plain]

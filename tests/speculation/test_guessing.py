"""Whatever is guessed, the same text comes out: on the toy model, in any batch, at every kind of end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wild_guesses import WildSpeculator

from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.generation import Continuation, Generation, GenerationOptions, Timings
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.scheduler import run_together
from llamac.runtime.speculation.proposal import Speculator

EOS, CONTEXT = 257, 160

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "until the context is full": {"max_new_tokens": None},
    "one token": {"max_new_tokens": 1},
    "stop string": {"stop": ("klm",)},
    "stop string that is not": {"stop": ("mlk", "zz")},
    "stop ids": {"stop_ids": frozenset({EOS, 120})},
    "log-probabilities": {"logprobs": 2},
    "sampled": {"sampling": SamplerOptions(temperature=4.0, seed=3)},
    "sampled from few": {"sampling": SamplerOptions(temperature=4.0, top_k=5, seed=4)},
    "penalty": {"sampling": SamplerOptions(repetition_penalty=30.0)},
}

PROMPTS = [list(b"ab"), list(b"abcdefgh" * 9), [250], list(b"x"), list(b"mnopqr" * 3), [1, 2, 3, 1, 2]]


@pytest.fixture(scope="module")
def model(toy_artifact: Path) -> Iterator[Model]:
    with load(toy_artifact, sequences=3) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _every_page_comes_back(model: Model) -> Iterator[None]:
    yield
    assert model.session.pools[0].free_pages == model.session.pools[0].page_count


def settings(way: str) -> GenerationOptions:
    return GenerationOptions(**{"max_new_tokens": 40, **WAYS[way]})


def run(model: Model, prompts: list[list[int]], way: str, speculators: list[Speculator | None]) -> list[Generation]:
    """The prompts together, each with its own speculator."""
    texts = [
        Continuation(prompt, settings(way), model.tokenizer, CONTEXT, speculator=speculator)
        for prompt, speculator in zip(prompts, speculators, strict=True)
    ]
    pieces = dict.fromkeys(range(len(texts)), "")
    for progress in run_together(model.session, texts):
        pieces[progress.request] += progress.text
    found = [text.result() for text in texts]
    assert [row.text for row in found] == list(pieces.values()), "the stream is the text"
    return found


def essence(rows: list[Generation]) -> list[Generation]:
    """All but times and counts."""
    return [replace(row, timings=Timings(0, 0), speculation=None) for row in rows]


@pytest.mark.parametrize("hits", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_guesses_change_nothing(model: Model, way: str, hits: float) -> None:
    plain = run(model, PROMPTS, way, [None] * len(PROMPTS))
    outcomes = {tuple(row.prompt_ids): row.token_ids for row in plain}
    for seed in range(3):
        wild = WildSpeculator(outcomes, hits, seed)
        found = run(model, PROMPTS, way, [wild] * len(PROMPTS))
        assert essence(found) == essence(plain)
        mixed: list[Speculator | None] = [wild if n % 2 else None for n in range(len(PROMPTS))]
        assert essence(run(model, PROMPTS, way, mixed)) == essence(plain)
        assert all(guesser.closed == 1 for guesser in wild.made)
        for prompt in PROMPTS[:2]:
            (alone,) = run(model, [prompt], way, [wild])
            assert alone.token_ids == outcomes[tuple(prompt)]


@pytest.mark.parametrize("hits", [0.0, 0.6, 1.0])
def test_counts_are_what_happened(model: Model, hits: float) -> None:
    plain = run(model, PROMPTS, "greedy", [None] * len(PROMPTS))
    wild = WildSpeculator({tuple(row.prompt_ids): row.token_ids for row in plain}, hits, 1)
    for row, guesser in zip(run(model, PROMPTS, "greedy", [wild] * len(PROMPTS)), wild.made, strict=True):
        counts = row.speculation
        assert counts is not None
        assert counts.steps == len(guesser.learned)
        assert counts.drafted == sum(drafted for drafted, _, _ in guesser.learned)
        assert counts.accepted == sum(accepted for _, accepted, _ in guesser.learned)
        assert counts.steps + counts.accepted == len(row.token_ids) or row.stop_reason == "stop_id"
        assert counts.tokens_per_step == 1 + counts.accepted / counts.steps
        tokens = [tokens for _, _, tokens in guesser.learned]
        assert tokens == sorted(tokens) and tokens[-1] < len(row.prompt_ids) + len(row.token_ids)
        if hits == 0:
            assert counts.accepted == 0
        if hits == 1 and row.stop_reason == "length":
            assert counts.drafted == counts.accepted and counts.steps < len(row.token_ids) / 2


def test_a_kept_sequence_holds_what_was_said(model: Model) -> None:
    """A conversation goes on from the cache that guesses were fed to and taken back from."""
    kept = model.session.open()
    prompt = list(b"abcdefgh")
    for turn in range(6):
        (plain,) = run(model, [prompt], "greedy", [None])
        wild = WildSpeculator({tuple(prompt): plain.token_ids}, 0.6, turn)
        text = Continuation(prompt, settings("greedy"), model.tokenizer, CONTEXT, speculator=wild)
        for _ in run_together(model.session, [text], kept):
            pass
        said = [*prompt, *text.token_ids]
        assert text.token_ids == plain.token_ids and list(kept.ids) == said[: len(kept)]
        assert len(kept) >= len(prompt)
        prompt = [*said[: len(said) - turn], 7 * turn]
        if len(prompt) > CONTEXT - 45:
            break
    kept.close()


ALPHABET = "abcdefghijklmnopqrstuvwxyz. "


def test_lookup_finds_what_was_there(model: Model) -> None:
    plain = model.generate(ALPHABET + "abc", max_new_tokens=24)
    found = model.generate(ALPHABET + "abc", max_new_tokens=24, speculate="lookup")
    assert found.text == plain.text and plain.speculation is None
    assert found.speculation is not None and found.speculation.tokens_per_step > 3
    assert found.to_json()["speculation"]["accepted"] == found.speculation.accepted
    for size in (1, 2, 7):
        some = model.generate(
            ALPHABET + "abc", max_new_tokens=24, speculate="lookup", draft_tokens=size, lookup_ngram=size
        )
        assert some.text == plain.text
    with_stream = "".join(model.stream(ALPHABET + "abc", max_new_tokens=24, speculate="lookup"))
    assert with_stream == plain.text


def test_conversations_and_batches_guess(model: Model) -> None:
    said = []
    for way in ("off", "lookup"):
        talk = Conversation(model, max_new_tokens=20, speculate=way)
        said.append(["".join(talk.say(text)) for text in ("abcdefgh abc", "defgh abcd")])
        assert talk.last is not None and (talk.last.speculation is None) == (way == "off")
        talk.close()
    assert said[0] == said[1]
    prompts: list[Any] = [ALPHABET + "abc", "q", ALPHABET * 3, [250]]
    plain = model.generate_batch(prompts, max_new_tokens=20)
    found = model.generate_batch(prompts, max_new_tokens=20, speculate="lookup")
    assert [row.token_ids for row in found] == [row.token_ids for row in plain]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"speculate": "lokup"}, "speculate"),
        ({"speculate": "draft"}, "speculate"),
        ({"speculate": "lookup", "draft_tokens": 0}, "draft_tokens"),
        ({"speculate": "lookup", "draft_tokens": True}, "draft_tokens"),
        ({"speculate": "lookup", "lookup_ngram": 17}, "lookup_ngram"),
    ],
)
def test_options_out_of_range(model: Model, options: Any, where: str) -> None:
    with pytest.raises(LlamacError) as caught:
        model.generate("a", **options)
    assert (caught.value.code, caught.value.where) == ("LLC0841", where)


def test_rows_are_computed_only_where_they_are_wanted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of several steps asks for one row, its last."""
    asked: list[int] = []
    device = model.session.device
    plain = device.step

    def counting(*arguments: Any, **named: Any) -> None:
        asked.append(len(arguments[4]))
        plain(*arguments, **named)

    monkeypatch.setattr(device, "step", counting)
    model.generate([5] * 30, max_new_tokens=1)
    assert asked == [0, 0, 0, 1] and np.sum(asked) == 1

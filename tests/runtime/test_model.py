"""Generation as users call it: text, batches, streams, stops, log-probabilities, conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.loader import load
from llamac.runtime.model import Model

Reference = Callable[[list[int]], Any]
EOS = 257


@pytest.fixture(scope="module")
def model(toy_artifact: Path) -> Iterator[Model]:
    with load(toy_artifact) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _every_page_comes_back(model: Model) -> Iterator[None]:
    yield
    assert model.session.pools[0].free_pages == model.session.pools[0].page_count


def test_greedy_text(model: Model) -> None:
    outcome = model.generate("ab", max_new_tokens=5)
    assert outcome.text == "cdefg"
    assert outcome.prompt_ids == [97, 98]
    assert outcome.token_ids == [99, 100, 101, 102, 103]
    assert outcome.stop_reason == "length"
    assert outcome.logprobs is None
    assert 0 < outcome.timings.first_token_seconds <= outcome.timings.total_seconds


def test_ids_go_in_as_they_are(model: Model) -> None:
    assert model.generate([97, 98], max_new_tokens=2).token_ids == [99, 100]
    assert model.generate(np.array([97, 98]), max_new_tokens=2).token_ids == [99, 100]


def test_a_stop_id_ends_the_text_and_is_reported(model: Model) -> None:
    outcome = model.generate([254], max_new_tokens=20)
    assert (outcome.token_ids, outcome.stop_reason) == ([255, 256, EOS], "stop_id")
    assert outcome.text == "\ufffd"  # byte 255 is no UTF-8; control tokens have no text


def test_stop_ids_can_be_added_and_ignored(model: Model) -> None:
    assert model.generate("ab", stop_ids=[101]).token_ids == [99, 100, 101]
    outcome = model.generate([254], max_new_tokens=6, ignore_stop_ids=True)
    assert (outcome.token_ids, outcome.stop_reason) == ([255, 256, 257, 258, 259, 0], "length")


@pytest.mark.parametrize(("stop", "text"), [("ef", "cd"), (["xyz", "g"], "cdef"), (["fgh", "g"], "cdef"), ("cd", "")])
def test_a_stop_string_ends_the_text_before_it(model: Model, stop: str | list[str], text: str) -> None:
    outcome = model.generate("ab", stop=stop)
    assert (outcome.text, outcome.stop_reason) == (text, "stop_string")
    assert "".join(model.stream("ab", stop=stop)) == text


def test_text_held_back_for_a_stop_string_appears_at_the_end(model: Model) -> None:
    assert model.generate("ab", stop="efz", max_new_tokens=4).text == "cdef"
    assert model.generate("ab", stop="efz", stop_ids=[103]).text == "cdef"


def test_the_context_ends_the_text(model: Model) -> None:
    outcome = model.generate([1] * 158, max_new_tokens=None)
    assert (outcome.token_ids, outcome.stop_reason) == ([2, 3, 4], "context")


def test_a_full_prompt_still_gives_one_token(model: Model) -> None:
    outcome = model.generate([1] * 160, max_new_tokens=50)
    assert (outcome.token_ids, outcome.stop_reason) == ([2], "context")


def test_a_prompt_longer_than_the_context_is_never_cut(model: Model) -> None:
    with pytest.raises(LlamacError, match=r"LLC0809.*200 tokens, the context holds 160: 40 too many"):
        model.generate("x" * 200)


def test_echo_puts_the_prompt_first(model: Model) -> None:
    assert model.generate("ab", max_new_tokens=2, echo=True).text == "abcd"
    assert model.generate([97, 98], max_new_tokens=2, echo=True).text == "abcd"
    assert list(model.stream("ab", max_new_tokens=2, echo=True)) == ["ab", "c", "d"]
    assert "".join(stream := model.stream_chat([{"role": "user", "content": "a"}], echo=True)) == stream.outcome.text


def test_a_conversation_says_nothing_twice(model: Model) -> None:
    conversation = Conversation(model, max_new_tokens=2, echo=True)
    said = "".join(conversation.say("a"))
    assert (len(said), conversation.messages[-1]["content"]) == (2, said)
    conversation.close()


def test_options_that_are_none_are_not_given(model: Model) -> None:
    nothing: Any = dict.fromkeys(("stop", "stop_ids", "temperature", "top_p", "seed", "speculate", "logprobs"))
    assert model.generate("ab", max_new_tokens=3, **nothing).text == "cde"


def test_a_stream_is_the_text_in_pieces(model: Model) -> None:
    stream = model.stream("ab", max_new_tokens=6)
    assert next(stream) == "c"
    assert list(stream) == ["d", "e", "f", "g", "h"]
    assert stream.outcome.text == "cdefgh"


def test_a_stream_never_splits_a_character(toy: Any) -> None:
    # The toy writes bytes in order, so let it start inside the two-byte form of U+00C2..: C3 then C4 is no character.
    with load(toy.make()) as model:
        pieces = list(model.stream([0xC2], max_new_tokens=3))
        assert "".join(pieces) == "\ufffd\ufffd\ufffd"


def test_a_stream_left_early_gives_its_pages_back(model: Model) -> None:
    stream = model.stream("ab")
    next(stream)
    assert model.session.pools[0].free_pages < model.session.pools[0].page_count
    stream.close()
    with pytest.raises(LlamacError, match="LLC0815"):
        _ = stream.outcome


def test_logprobs_are_those_of_the_logits(model: Model, toy_logits: Reference) -> None:
    outcome = model.generate("ab", max_new_tokens=3, logprobs=2)
    assert outcome.logprobs is not None
    rows = toy_logits([97, 98, 99, 100])[1:].astype(np.float64)
    for found, row, token in zip(outcome.logprobs, rows, outcome.token_ids, strict=True):
        expected = row - math.log(np.exp(row).sum())
        assert found.token_id == token
        assert found.logprob == pytest.approx(expected[token], abs=1e-5)
        assert [pair[0] for pair in found.top] == list(np.argsort(-expected, kind="stable")[:2])
    assert model.generate("ab", max_new_tokens=2, logprobs=0).logprobs[0].top == []  # type: ignore[index]


def test_a_batch_gives_what_each_gives_alone(model: Model) -> None:
    prompts: list[str | list[int]] = ["ab", "x" * 70, [1, 2, 3], "k", "q" * 30, [250]]
    alone = [model.generate(prompt, max_new_tokens=12) for prompt in prompts]
    together = model.generate_batch(prompts, max_new_tokens=12)
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]
    assert [row.text for row in together] == [row.text for row in alone]
    assert [row.stop_reason for row in together] == [row.stop_reason for row in alone]


def test_a_batch_larger_than_the_cache_waits_its_turn(model: Model) -> None:
    outcomes = model.generate_batch(["a" * 100, "b" * 100, "c" * 100, "d"], max_new_tokens=20)
    assert [row.token_ids[0] for row in outcomes] == [98, 99, 100, 101]


def test_a_batch_wider_than_a_step_is_served_in_turn(toy: Any) -> None:
    with load(toy.make(), sequences=4) as wide:
        outcomes = wide.generate_batch([[n] for n in range(30)], max_new_tokens=4)
    assert [row.token_ids for row in outcomes] == [[n + 1, n + 2, n + 3, n + 4] for n in range(30)]


def test_threads_share_a_model(toy: Any) -> None:
    with load(toy.make(), sequences=4) as shared, ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda n: shared.generate([n], max_new_tokens=30).token_ids, range(40)))
    assert outcomes == [list(range(n + 1, n + 31)) for n in range(40)]


def test_an_empty_batch(model: Model) -> None:
    assert model.generate_batch([]) == []


def test_sampling_follows_the_seed(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 8.0, "ignore_stop_ids": True}
    first = model.generate("ab", seed=1, **options)
    assert first.token_ids == model.generate("ab", seed=1, **options).token_ids
    assert first.token_ids != model.generate("ab", seed=2, **options).token_ids
    assert first.token_ids == model.generate_batch(["zz", "ab"], seed=1, **options)[1].token_ids


def test_the_artifacts_defaults_apply_unless_given(toy: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["generation"]["defaults"] = {"temperature": 8.0, "max_length": 20}

    with load(toy.make(edit)) as model:
        greedy = model.generate("ab", max_new_tokens=20, temperature=0)
        assert greedy.text == "cdefghijklmnopqrstuv"
        assert model.generate("ab", max_new_tokens=20, seed=3, ignore_stop_ids=True).token_ids != greedy.token_ids


def test_a_repetition_penalty_sees_the_prompt(model: Model) -> None:
    ids = list(range(120, 90, -1))
    assert model.generate(ids, max_new_tokens=1).token_ids == [92]
    assert model.generate(ids, max_new_tokens=1, repetition_penalty=50.0).token_ids != [92]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_new_tokens": 0}, "LLC0811 max_new_tokens"),
        ({"logprobs": -1}, "LLC0811 logprobs"),
        ({"temperature": -1.0}, "LLC0850 temperature"),
        ({"stop": [""]}, "LLC0852 stop"),
        ({"stop": ""}, "LLC0852 stop"),
        ({"stop_ids": ["<eos>"]}, "LLC0811 stop_ids: '<eos>' is no token id"),
        ({"stop_ids": [True]}, "LLC0811 stop_ids"),
    ],
)
def test_options_out_of_range(model: Model, options: Any, code: str) -> None:
    with pytest.raises(LlamacError, match=code):
        model.generate("ab", **options)


def test_an_unknown_option_is_a_type_error(model: Model) -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        model.generate("ab", max_tokens=3)  # type: ignore[call-arg]


def test_without_a_tokenizer_ids_still_run(toy: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["tokenizer"] = None
        manifest["chat_template"] = None

    with load(toy.make(edit)) as model:
        outcome = model.generate([97], max_new_tokens=2)
        assert (outcome.token_ids, outcome.text) == ([98, 99], "")
        with pytest.raises(LlamacError, match="LLC0813"):
            model.generate("a")
        with pytest.raises(LlamacError, match="LLC0813"):
            model.generate([97], stop=["c"])
        with pytest.raises(LlamacError, match="LLC0814"):
            model.chat([{"role": "user", "content": "a"}])


def test_chat_uses_the_template(model: Model) -> None:
    outcome = model.chat([{"role": "user", "content": "hi"}], max_new_tokens=1)
    assert outcome.prompt_ids == [256, 258, *b"hi", 259]


def test_control_tokens_inside_a_message_stay_text(model: Model) -> None:
    outcome = model.chat([{"role": "user", "content": "<eos>"}], max_new_tokens=1)
    assert outcome.prompt_ids == [256, 258, *b"<eos>", 259]


def test_a_conversation_computes_only_what_is_new(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    step = model._device.step

    def watched(ids: Any, *rest: Any) -> None:
        fed.extend(ids.tolist())
        step(ids, *rest)

    monkeypatch.setattr(model._device, "step", watched)
    conversation = Conversation(model, max_new_tokens=3)
    first = "".join(conversation.say("hello"))
    del fed[:]
    second = "".join(conversation.say("more"))
    # What the cache holds of turn one is not fed again: its prompt and all but the last drawn token.
    assert conversation.last is not None
    assert len(fed) == len(conversation.last.prompt_ids) - (3 + len("hello") + 2) + 2
    alone = model.chat(conversation.messages[:-1], max_new_tokens=3)
    assert (alone.text, alone.prompt_ids) == (second, conversation.last.prompt_ids)
    assert [row["content"] for row in conversation.messages] == ["hello", first, "more", second]
    conversation.reset()
    assert conversation.messages == []
    conversation.close()


def test_a_failed_turn_leaves_no_trace(model: Model) -> None:
    conversation = Conversation(model, "sys", max_new_tokens=3)
    with pytest.raises(LlamacError, match="LLC0809"):
        list(conversation.say("x" * 300))
    assert [row["role"] for row in conversation.messages] == ["system"]
    conversation.close()


def test_a_closed_model_says_so(toy_artifact: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    uses: list[Callable[[Model], object]] = [
        lambda model: model.generate("ab"),
        lambda model: model.chat(messages),
        lambda model: model.logits([1]),
        lambda model: model.expert_counts(),
    ]
    for use in uses:
        model = load(toy_artifact)
        model.close()
        model.close()
        with pytest.raises(LlamacError, match=r"LLC0815 .*: the model is closed"):
            use(model)


def test_golden_vectors_are_replayed(toy: Any) -> None:
    from llamac.runtime.golden import replay

    def edit(manifest: dict[str, Any]) -> None:
        vector = manifest["golden"]["vectors"][0]
        manifest["golden"]["vectors"].append({**vector, "greedy_ids": [99, 100, 7]})
        manifest["golden"]["vectors"].append({**vector, "top": [[99, 9.5]]})

    with load(toy.make(edit)) as model:
        good, parted, moved = replay(model)
    assert (good.passed, good.parted_at, good.logit_difference) == (True, None, 0.0)
    assert (parted.passed, parted.parted_at) == (False, 2)
    assert (moved.passed, moved.logit_difference) == (False, 0.5)

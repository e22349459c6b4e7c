"""A second model as the draft: what fits, what does not, and the same text either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.loader import load

PROMPTS: list[Any] = ["abc", "x" * 50, [250], "mnop" * 6, "q"]


def test_a_perfect_draft_is_always_right(toy_artifact: Path) -> None:
    with load(toy_artifact) as alone, load(toy_artifact, draft=toy_artifact) as model:
        for prompt in PROMPTS:
            plain, found = alone.generate(prompt, max_new_tokens=30), model.generate(prompt, max_new_tokens=30)
            assert (found.token_ids, found.text, found.stop_reason) == (plain.token_ids, plain.text, plain.stop_reason)
            assert found.speculation is not None and plain.speculation is None
            if found.stop_reason == "length":
                assert found.speculation.accepted == found.speculation.drafted > 20
        off = model.generate("abc", max_new_tokens=30, speculate="off")
        assert off.speculation is None


def test_a_batch_larger_than_both_caches_waits(toy_artifact: Path) -> None:
    with load(toy_artifact, sequences=2, draft=toy_artifact) as model:
        plain = model.generate_batch(PROMPTS * 3, max_new_tokens=60, speculate="off")
        for options in ({}, {"draft_tokens": 1}, {"speculate": "lookup"}):
            found = model.generate_batch(PROMPTS * 3, max_new_tokens=60, **options)
            assert [row.token_ids for row in found] == [row.token_ids for row in plain]
        assert model.session.pools[0].free_pages == model.session.pools[0].page_count
        assert model._draft is not None
        pool = model._draft.session.pools[0]
        assert pool.page_count - pool.free_pages <= pool.pages_for(110), "the text that ended last"


def test_a_draft_with_less_context_stops_guessing(toy: Any, toy_artifact: Path) -> None:
    def short(manifest: dict[str, Any]) -> None:
        manifest["model"]["context_length"] = 20

    with load(toy_artifact, draft=toy.make(short)) as model:
        found = model.generate("abc", max_new_tokens=40)
        assert found.token_ids == [ord("d") + n for n in range(40)]
        assert found.speculation is not None and 10 <= found.speculation.accepted <= 18
        far = model.generate("a" * 60, max_new_tokens=20)
        assert far.token_ids == [ord("b") + n for n in range(20)]
        assert far.speculation is not None and far.speculation.drafted == 0


def test_sampled_texts_follow_their_seed(toy_artifact: Path) -> None:
    with load(toy_artifact, draft=toy_artifact) as model:
        options: Any = {"max_new_tokens": 25, "temperature": 3.0, "seed": 11}
        first, second = (model.generate("abc", **options) for _ in range(2))
        other = model.generate("abc", **options | {"seed": 12})
        (batched, _) = model.generate_batch(["abc", "hello"], **options)
        assert first.token_ids == second.token_ids == batched.token_ids != other.token_ids
        assert first.speculation is not None and first.speculation.accepted > 0


def test_a_turn_computes_only_what_is_new(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft keeps the cache of the turn before, as the model does."""
    fed: list[int] = []
    with load(toy_artifact, draft=toy_artifact) as model:
        assert model._draft is not None
        device = model._draft.session.device
        plain = device.step

        def counting(*arguments: Any, **named: Any) -> None:
            fed.append(len(arguments[0]))
            plain(*arguments, **named)

        monkeypatch.setattr(device, "step", counting)
        talk = Conversation(model, max_new_tokens=10)
        "".join(talk.say("x" * 50))
        first, fed[:] = sum(fed), []
        "".join(talk.say("abc"))
        assert first > 50 and sum(fed) < 35
        talk.close()


def vocabulary(manifest: dict[str, Any]) -> None:
    manifest["model"]["vocab_size"] = 261


def tokenizer(manifest: dict[str, Any]) -> None:
    manifest["tokenizer"] = None
    manifest["chat_template"] = None


@pytest.mark.parametrize(("edit", "reason"), [(vocabulary, "holds 261 tokens"), (tokenizer, "the files differ")])
def test_another_vocabulary_is_refused(toy: Any, toy_artifact: Path, edit: Any, reason: str) -> None:
    with pytest.raises(LlamacError, match=reason) as caught:
        load(toy_artifact, draft=toy.make(edit))
    assert caught.value.code == "LLC0840" and caught.value.where == "toy"


def test_a_draft_that_is_no_artifact(toy_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamacError) as caught:
        load(toy_artifact, draft=tmp_path / "none.llamac")
    assert caught.value.code == "LLC0704"

"""Pictures through the whole path: PIL images in, logits against transformers' models, however they are stepped."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import assert_same_bits
from tiny_llama import relative_error
from tiny_pictures import Floats, llama4_logits, make_llama4, make_mllama, mllama_logits, picture

import llamac
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.images.placed import PicturePrompt
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

TOLERANCE = 1e-5
BUILDERS: dict[str, Any] = {"llama4": (make_llama4, llama4_logits), "mllama": (make_mllama, mllama_logits)}
PICTURES = [picture(60, 50, 1), picture(20, 100, 2), picture(25, 27, 3), picture(300, 40, 4)]
"""Of 2 x 3 or 2 x 2 tiles, 4 x 1, one, and 1 x 11 or 1 x 4 tiles."""

PROMPTS: dict[str, tuple[str, list[int]]] = {
    "text alone": ("No picture here.", []),
    "in the middle": ("Look: <|image|>what is it?", [0]),
    "at the beginning": ("<|image|>What?", [2]),
    "at the end": ("What is this? <|image|>", [1]),
    "several": ("<|image|>One, <|image|>two and <|image|>three.", [2, 3, 0]),
    "a group": ("Both <|image|><|image|>of them, and<|image|>.", [1, 2, 0]),
}


@dataclass
class Tiny:
    """A model as transformers runs it, and loaded."""

    name: str
    reference: Any
    model: Model

    def prompt(self, key: str) -> PicturePrompt:
        text, numbers = PROMPTS[key]
        return self.model.encode_with_images(text, [PICTURES[n] for n in numbers])

    def expected(self, prompt: PicturePrompt) -> Floats:
        found: Floats = BUILDERS[self.name][1](self.reference, prompt)
        return found


@pytest.fixture(scope="module", params=list(BUILDERS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp(request.param)
    reference = BUILDERS[request.param][0](folder / "source")
    options = {"quantize": "f32", "kv": "f32", "context": 1024, "validate": False, "max_step_tokens": 256}
    llamac.compile(folder / "source", output=folder / "m.llamac", **options)
    with llamac.load(folder / "m.llamac", threads=2, sequences=3, images=4) as model:
        yield Tiny(request.param, reference, model)


def logits(model: Model, prompt: PicturePrompt, cuts: tuple[int, ...] = ()) -> Floats:
    """The logits of every position of a prompt, its ids given in pieces that end at `cuts`."""
    return together(model, [prompt], [cuts])[0]


def together(model: Model, prompts: list[PicturePrompt], cuts: list[tuple[int, ...]]) -> list[Floats]:
    """Logits of every position of several prompts, stepped side by side."""
    sequences = [model.session.open() for _ in prompts]
    rows: list[list[Floats]] = [[] for _ in prompts]
    try:
        for sequence, prompt in zip(sequences, prompts, strict=True):
            model.session.place(sequence, prompt.images)
        lengths = [len(prompt.ids) for prompt in prompts]
        bounds = [[0, *sorted({c % n for c in own} - {0}), n] for n, own in zip(lengths, cuts, strict=True)]
        for step in range(max(map(len, bounds)) - 1):
            running = [n for n in range(len(prompts)) if step + 1 < len(bounds[n])]
            parts = {n: prompts[n].ids[bounds[n][step] : bounds[n][step + 1]] for n in running}
            found = model.session.step([Feed(sequences[n], parts[n], "all") for n in running])
            for n in running:
                rows[n].append(found[: len(parts[n])])
                found = found[len(parts[n]) :]
    finally:
        for sequence in sequences:
            sequence.close()
    return [np.concatenate(part) for part in rows]


@pytest.mark.parametrize("key", PROMPTS)
def test_logits_equal_transformers(tiny: Tiny, key: str) -> None:
    prompt = tiny.prompt(key)
    found, expected = logits(tiny.model, prompt), tiny.expected(prompt)
    assert relative_error(found, expected) < TOLERANCE
    assert np.abs(found - expected).max(axis=1).max() < TOLERANCE * np.abs(expected).max()


def test_pictures_matter(tiny: Tiny) -> None:
    """And only from where they stand."""
    text = "Look: <|image|>what is it?"
    found = [logits(tiny.model, tiny.model.encode_with_images(text, [p])) for p in (PICTURES[2], picture(25, 27, 9))]
    different = np.abs(found[0] - found[1]).max(axis=1) > 1e-3
    first = tiny.model.encode_with_images(text, [PICTURES[2]]).images[0].start
    # A separator before the first patch of Llama 4 sees nothing of it yet.
    assert not different[:first].any() and different[first + 2 :].all()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_bits_however_it_is_cut(tiny: Tiny, data: st.DataObject) -> None:
    """Whole, in pieces that end inside pictures, and beside prompts with and without pictures."""
    keys = data.draw(st.lists(st.sampled_from(list(PROMPTS)), min_size=1, max_size=3))
    prompts = [tiny.prompt(key) for key in keys]
    cuts = [tuple(data.draw(st.lists(st.integers(0, 200), max_size=6))) for _ in keys]
    if sum(len(p.ids) for p in prompts) > tiny.model.session.max_step_tokens:
        prompts, cuts, keys = prompts[:1], cuts[:1], keys[:1]
    for key, found in zip(keys, together(tiny.model, prompts, cuts), strict=True):
        assert_same_bits(found, logits(tiny.model, tiny.prompt(key)), f"{key}, cut at {cuts}")


def test_same_bits_on_one_thread(tiny: Tiny) -> None:
    prompt = tiny.prompt("several")
    with llamac.load(tiny.model._artifact.path, threads=1, images=4) as one:
        assert_same_bits(logits(one, prompt), logits(tiny.model, prompt), "one thread against two")


def test_greedy_text_is_that_of_transformers(tiny: Tiny) -> None:
    text, numbers = PROMPTS["in the middle"]
    pictures = [PICTURES[n] for n in numbers]
    outcome = tiny.model.generate(text, images=pictures, max_new_tokens=6, ignore_stop_ids=True)
    prompt = tiny.prompt("in the middle")
    assert outcome.prompt_ids == prompt.ids
    for count, token in enumerate(outcome.token_ids):
        longer = PicturePrompt([*prompt.ids, *outcome.token_ids[:count]], prompt.images)
        assert int(tiny.expected(longer)[-1].argmax()) == token


def test_batches_give_what_each_prompt_gives_alone(tiny: Tiny) -> None:
    keys = ["text alone", "several", "in the middle", "a group"]
    texts, shown = [PROMPTS[k][0] for k in keys], [[PICTURES[n] for n in PROMPTS[k][1]] for k in keys]
    outcomes = tiny.model.generate_batch(texts, images=shown, max_new_tokens=5, ignore_stop_ids=True)
    for text, pictures, outcome in zip(texts, shown, outcomes, strict=True):
        alone = tiny.model.generate(text, images=pictures, max_new_tokens=5, ignore_stop_ids=True)
        assert outcome.token_ids == alone.token_ids
    assert all(pool.free_pages == pool.page_count for pool in tiny.model.session.pools)


def test_pictures_stand_in_front_of_a_text_without_a_place(tiny: Tiny) -> None:
    written = tiny.model.encode_with_images("<|image|><|image|>What?", PICTURES[:2])
    assert tiny.model.encode_with_images("What?", PICTURES[:2]).ids == written.ids
    ids = [256, 87, 104, 97, 116, 63]
    given = tiny.model.encode_with_images(ids, PICTURES[:1])
    assert given.ids[0] == 256 and given.images[0].start == 1 and given.ids[-5:] == ids[1:]


def test_files_bytes_and_images_are_the_same_picture(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    PICTURES[0].save(path)
    sources = [str(path), path, path.read_bytes(), PICTURES[0], tiny.model.load_picture(path)]
    assert len({tiny.model.load_picture(source).digest for source in sources}) == 1
    assert tiny.model.load_picture(PICTURES[1]).digest != tiny.model.load_picture(path).digest


# Conversations.


def asked(path_or_picture: Any, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": path_or_picture}, {"type": "text", "text": text}]}


def test_a_message_holds_pictures(tiny: Tiny) -> None:
    messages = [asked(PICTURES[0], "one"), {"role": "assistant", "content": "A."}, asked(PICTURES[1], "two")]
    ids = tiny.model.encode_chat(messages)
    written = [{"role": "user", "content": "<|image|>one"}, messages[1], {"role": "user", "content": "<|image|>two"}]
    plain = tiny.model.encode_chat(written)
    assert ids != plain, "what a user spells out is no picture"
    prompt = tiny.model._encode_conversation(messages, None, None)
    assert [image.picture.digest for image in prompt.images] == [
        tiny.model.load_picture(p).digest for p in PICTURES[:2]
    ]
    assert relative_error(logits(tiny.model, prompt), tiny.expected(prompt)) < TOLERANCE


def test_the_familys_own_formats_write_the_same_places(tiny: Tiny) -> None:
    name = {"llama4": "llama4", "mllama": "llama3.2"}[tiny.name]
    prompt = tiny.model._encode_conversation([asked(PICTURES[0], "one")], None, name)
    assert len(prompt.images) == 1 and prompt.ids[0] == 256


class Counting:
    """Counts how often the image encoder of a device runs."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        original = model.session.device.encode_image  # type: ignore[attr-defined]

        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return original(*arguments, **named)

        monkeypatch.setattr(model.session.device, "encode_image", counted, raising=False)


def test_turns_reuse_what_they_share(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(tiny.model, max_new_tokens=3, ignore_stop_ids=True)
    counting = Counting(tiny.model, monkeypatch)
    conversation.attach(PICTURES[0])
    "".join(conversation.say("one"))
    conversation.attach(PICTURES[1])
    "".join(conversation.say("two"))
    "".join(conversation.say("three"))
    assert counting.calls == 2, "every picture is encoded once"
    assert conversation.last is not None
    fresh = tiny.model.chat(conversation.messages[:-1], max_new_tokens=3, ignore_stop_ids=True)
    assert conversation.last.token_ids == fresh.token_ids
    conversation.close()


def test_another_picture_at_the_same_place_is_another_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids are equal: only the picture tells the two apart."""
    one, other = PICTURES[2], picture(25, 27, 9)
    sequence = tiny.model.session.open()
    found = [
        tiny.model.stream_chat([asked(p, "what?")], sequence=sequence, max_new_tokens=4, ignore_stop_ids=True).outcome
        for p in (one, other, other)
    ]
    assert found[0].prompt_ids == found[1].prompt_ids and found[1].token_ids == found[2].token_ids
    alone = tiny.model.chat([asked(other, "what?")], max_new_tokens=4, ignore_stop_ids=True)
    assert found[1].token_ids == alone.token_ids
    counting = Counting(tiny.model, monkeypatch)
    tiny.model.stream_chat([asked(other, "what?")], sequence=sequence, max_new_tokens=4).outcome  # noqa: B018
    assert counting.calls == 0, "nothing new to encode"
    sequence.close()


# Refusals.


def refusal(tiny: Tiny, *arguments: Any, **named: Any) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        tiny.model.generate(*arguments, **named)
    return caught.value


def test_what_cannot_be_shown(tiny: Tiny, tmp_path: Path) -> None:
    error = refusal(tiny, "<|image|>one", images=PICTURES[:2])
    assert error.code == "LLC0834" and "1 places" in error.reason
    assert refusal(tiny, "one", images=[tmp_path / "none.png"]).where == str(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    assert refusal(tiny, "one", images=[tmp_path / "text.png"]).code == "LLC0831"
    assert refusal(tiny, "one", images=[7]).code == "LLC0831"
    with pytest.raises(LlamacError, match=r"LLC0914 messages\[0\].content\[0\]: the image part holds no picture"):
        tiny.model.chat([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}])
    assert all(pool.free_pages == pool.page_count for pool in tiny.model.session.pools)


def test_more_pictures_than_there_is_room_for(tiny: Tiny) -> None:
    with llamac.load(tiny.model._artifact.path, threads=1, context=300) as small:
        pictures = [PICTURES[3]] * 30
        with pytest.raises(LlamacError) as caught:
            small.generate("Many", images=pictures)
        expected = {"llama4": "LLC0809", "mllama": "LLC0839"}
        assert caught.value.code == expected[tiny.name]
        assert all(pool.free_pages == pool.page_count for pool in small.session.pools)


def test_a_model_for_text_takes_no_pictures(toy_artifact: Path) -> None:
    with llamac.load(toy_artifact) as toy:
        for call in (
            lambda: toy.generate("ab", images=PICTURES[:1]),
            lambda: toy.chat([asked(PICTURES[0], "what?")]),
            lambda: Conversation(toy).attach(PICTURES[0]),
        ):
            with pytest.raises(LlamacError, match="LLC0838 toy: the model takes no pictures"):
                call()


# The command line.


Printed = Callable[..., tuple[str, str, int]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """What `llamac` prints on stdout and stderr for some words and lines of stdin, and its exit code."""

    def run(*words: str, given: str = "") -> tuple[str, str, int]:
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        capsys.readouterr()
        code = main(words)
        return (*capsys.readouterr(), code)

    return run


def test_run_shows_pictures(tiny: Tiny, printed: Printed, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{n}.png") for n in (0, 1)]
    for path, shown in zip(paths, PICTURES[:2], strict=True):
        shown.save(path)
    artifact, images = str(tiny.model._artifact.path), ["--image", paths[0], "--image", paths[1]]
    options = ["--max-new-tokens", "4", "--ignore-stop-ids", "--json"]
    plain, _, code = printed("run", artifact, *images, "--prompt", "A <|image|> and <|image|>", *options)
    expected = tiny.model.generate(
        "A <|image|> and <|image|>", images=paths, max_new_tokens=4, ignore_stop_ids=True
    ).token_ids
    assert code == 0 and json.loads(plain)["token_ids"] == expected
    chat, _, code = printed("run", artifact, "--chat", *images, "--prompt", "What?", *options)
    parts = [*({"type": "image", "path": path} for path in paths), {"type": "text", "text": "What?"}]
    answer = tiny.model.chat([{"role": "user", "content": parts}], max_new_tokens=4, ignore_stop_ids=True)
    assert code == 0 and json.loads(chat)["token_ids"] == answer.token_ids
    _, error, code = printed("run", artifact, "--image", str(tmp_path / "no.png"), "--prompt", "x")
    assert code == 2 and error.startswith(f"LLC0831 {tmp_path / 'no.png'}")


def test_chat_shows_a_picture_with_the_next_line(tiny: Tiny, printed: Printed, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    PICTURES[1].save(path)
    artifact = str(tiny.model._artifact.path)
    given = f"/image {path}\nwhat?\nand now?\n"
    _, talk, code = printed("chat", artifact, "--max-new-tokens", "2", given=given)
    rows, columns = tiny.model.load_picture(path).tiles.rows, tiny.model.load_picture(path).tiles.columns
    assert code == 0 and f"[{path}: {rows} x {columns} tiles, for the next message]" in talk
    _, error, code = printed("chat", artifact, given="/image nothing.png\n")
    assert code == 2 and error.startswith("LLC0831 nothing.png")

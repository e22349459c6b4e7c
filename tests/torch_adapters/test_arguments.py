"""What compiled code cannot do is refused by name, with one coded error each, and leaves the cache as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_llama import some_ids
from transformers import DynamicCache

import llamac.torch
from llamac.errors import LlamacError
from llamac.runtime.loader import load
from llamac.torch import LlamacModel, tokenizer_of

PROMPT = torch.tensor([some_ids(200, 21, 1)])


def columns(*shown: int) -> torch.Tensor:
    return torch.tensor([shown])


def other_cache(model: LlamacModel) -> Any:
    return LlamacModel.from_loaded(load(model.artifact._artifact.path, threads=1)).new_cache()


REFUSED: dict[str, tuple[str, Callable[[LlamacModel], Any]]] = {
    "inputs_embeds": ("inputs_embeds", lambda m: m(PROMPT, inputs_embeds=torch.zeros(1, 2, 3))),
    "attentions": ("output_attentions", lambda m: m(PROMPT, output_attentions=True)),
    "hidden states": ("output_hidden_states", lambda m: m.generate(PROMPT, output_hidden_states=True)),
    "no ids": ("input_ids", lambda m: m()),
    "one axis": ("input_ids", lambda m: m(PROMPT[0])),
    "floats": ("input_ids", lambda m: m(PROMPT.float())),
    "nothing in it": ("input_ids", lambda m: m(PROMPT[:, :0])),
    "a mask of scores": ("attention_mask", lambda m: m(PROMPT, attention_mask=torch.zeros(1, 1, 21, 21))),
    "a short mask": ("attention_mask", lambda m: m(PROMPT, attention_mask=torch.ones(1, 20))),
    "another past": (
        "attention_mask",
        lambda m: m(PROMPT, attention_mask=columns(*[0] * 21, *[1] * 21), past_key_values=m(PROMPT).past_key_values),
    ),
    "positions of pads": ("position_ids", lambda m: m(PROMPT, position_ids=torch.arange(5, 26)[None])),
    "positions of another shape": ("position_ids", lambda m: m(PROMPT, position_ids=torch.arange(5)[None])),
    "a torch cache": ("past_key_values", lambda m: m(PROMPT, past_key_values=DynamicCache())),
    "a torch cache in generate": ("past_key_values", lambda m: m.generate(PROMPT, past_key_values=DynamicCache())),
    "another artifact's cache": ("past_key_values", lambda m: m(PROMPT, past_key_values=other_cache(m))),
    "another batch": (
        "past_key_values",
        lambda m: m(PROMPT.repeat(2, 1), past_key_values=m(PROMPT).past_key_values),
    ),
    "a static cache": ("generate", lambda m: m.generate(PROMPT, cache_implementation="static")),
    "keys from outside": ("past_key_values", lambda m: m.new_cache().update(torch.zeros(1), torch.zeros(1), 0)),
    "crop forward": ("past_key_values", lambda m: m(PROMPT).past_key_values.crop(3)),
    "crop too much": ("past_key_values", lambda m: m(PROMPT).past_key_values.crop(-22)),
    "rows that are not there": (
        "past_key_values",
        lambda m: m(PROMPT).past_key_values.reorder_cache(torch.tensor([0, 1])),
    ),
    "labels of another shape": ("labels", lambda m: m(PROMPT, labels=PROMPT[:, 1:])),
    "keep less than nothing": ("logits_to_keep", lambda m: m(PROMPT, logits_to_keep=-1)),
    "keep what is not there": ("logits_to_keep", lambda m: m(PROMPT, logits_to_keep=torch.tensor([3, 21]))),
    "training": ("train", lambda m: m.train()),
    "another device": ("to", lambda m: m.to("meta")),
    "another dtype": ("to", lambda m: m.to(torch.bfloat16)),
    "saving": ("save_pretrained", lambda m: m.save_pretrained("x")),
    "a hub name": ("from_pretrained", lambda m: type(m).from_pretrained("x")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, model: LlamacModel) -> None:
    where, call = REFUSED[what]
    with pytest.raises(LlamacError, match="LLC0956") as caught:
        call(model)
    assert caught.value.where == where and caught.value.hint


def test_an_id_outside_the_vocabulary(model: LlamacModel) -> None:
    with pytest.raises(LlamacError, match="LLC0812"):
        model(torch.tensor([[3, 260]]))


def test_a_failed_call_leaves_the_cache_as_it_was(model: LlamacModel) -> None:
    cache = model(PROMPT).past_key_values
    expected = model(PROMPT[:, :7], past_key_values=copy.deepcopy(cache)).logits
    with pytest.raises(LlamacError, match="LLC0812"):
        model(torch.tensor([[*range(40), 999]]), past_key_values=cache)
    assert cache.get_seq_length() == 21 and cache.lengths == [21]
    assert torch.equal(model(PROMPT[:, :7], past_key_values=cache).logits, expected)


def test_what_is_kept(model: LlamacModel) -> None:
    whole = model(PROMPT).logits
    assert torch.equal(model(PROMPT, logits_to_keep=1).logits, whole[:, -1:])
    assert torch.equal(model(PROMPT, logits_to_keep=5).logits, whole[:, -5:])
    some = torch.tensor([0, 3, 17])
    assert torch.equal(model(PROMPT, logits_to_keep=some).logits, whole[:, some])
    logits, past = model(PROMPT, return_dict=False)
    assert torch.equal(logits, whole) and past.get_seq_length() == 21
    assert model(PROMPT, use_cache=False).past_key_values is None


def test_padding_on_the_right_and_columns_in_between(model: LlamacModel) -> None:
    """Columns that the mask hides do not exist: positions count the others."""
    ids = PROMPT[0].tolist()
    holed = torch.tensor([[*ids[:4], 0, 0, *ids[4:9], 0]])
    mask = columns(*[1] * 4, 0, 0, *[1] * 5, 0)
    found = model(holed, attention_mask=mask).logits[0]
    assert torch.equal(found[mask[0].bool()], model(PROMPT[:, :9]).logits[0])


def test_cropping(model: LlamacModel) -> None:
    cache = model(PROMPT).past_key_values
    cache.crop(-6)
    again = model(PROMPT[:, 15:], past_key_values=cache).logits
    assert torch.equal(again, model(PROMPT).logits[:, 15:])


def test_closed(artifact: Any) -> None:
    with LlamacModel.from_artifact(artifact, threads=1) as short:
        pass
    with pytest.raises(LlamacError, match="LLC0815"):
        short(PROMPT)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_the_libraries(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LlamacError, match="LLC0955") as caught:
        llamac.torch.LlamacModel  # noqa: B018
    assert caught.value.where == library and 'pip install "llamac[torch]"' in caught.value.hint


def test_no_such_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        llamac.torch.Nothing  # noqa: B018
    assert "LlamacModel" in dir(llamac.torch)


def test_a_tokenizer_of_meta_s(model: LlamacModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.artifact.__dict__, "tokenizer", object())
    with pytest.raises(LlamacError, match="LLC0955") as caught:
        tokenizer_of(model)
    assert "AutoTokenizer" in caught.value.hint

"""An artifact behind `generate()` gives what transformers gives with the same weights, in every way of generating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smollm2 import load_smollm2, smollm2_file
from tiny_llama import some_ids
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

import llamac
from llamac.torch import LlamacModel, tokenizer_of
from llamac.torch.cache import LlamacCache

VOCABULARY = 256
"""Ids of plain tokens; prompts hold no control tokens."""

PROMPT = torch.tensor([some_ids(VOCABULARY, 40, 1)])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}


def left_padded(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    rows = [some_ids(VOCABULARY, length, length) for length in lengths]
    longest = max(lengths)
    ids = [[257] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_the_artifact_says_how_to_generate(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    own, wanted = model.generation_config, reference.generation_config
    assert own.eos_token_id == [257] and own.bos_token_id == 256 and own.pad_token_id == 257
    assert (own.do_sample, own.temperature, own.top_k) == (True, 0.8, 20)
    assert (wanted.do_sample, wanted.temperature, wanted.top_k) == (True, 0.8, 20)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"):
        assert getattr(model.config, name) == getattr(reference.config, name)


def test_logits(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    with torch.no_grad():
        expected = reference(PROMPT).logits
    found = model(PROMPT).logits
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        {**GREEDY, "use_cache": False, "max_new_tokens": 6},
        {**GREEDY, "repetition_penalty": 1.3},
        {**GREEDY, "num_beams": 4, "num_return_sequences": 3},
        {**GREEDY, "num_beams": 3, "length_penalty": 0.2, "early_stopping": True, "eos_token_id": 9},
        {"do_sample": True, "max_new_tokens": 24, "eos_token_id": None},
        {"do_sample": True, "max_new_tokens": 12, "num_beams": 3},
        {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 4, "top_p": 0.9},
        {**GREEDY, "prompt_lookup_num_tokens": 3},
        {**GREEDY, "prefill_chunk_size": 7},
    ],
    ids="greedy no-cache penalty beams beams-eos sample beam-sample returns lookup chunks".split(),
)
def test_as_transformers(model: LlamacModel, reference: LlamaForCausalLM, options: dict[str, Any]) -> None:
    torch.manual_seed(11)
    expected = reference.generate(PROMPT, **options)
    torch.manual_seed(11)
    assert torch.equal(model.generate(PROMPT, **options), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_padded_batch_is_its_rows(model: LlamacModel, reference: LlamaForCausalLM, beams: int) -> None:
    batch = left_padded((5, 17, 30, 17))
    options = {**GREEDY, "num_beams": beams}
    found = model.generate(**batch, **options)
    assert torch.equal(found, reference.generate(**batch, **options))
    for row, ids, mask in zip(found, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = model.generate(ids[mask.bool()][None], **options)
        assert torch.equal(alone[0, -24:], row[-24:])


def test_rows_of_a_batch_have_the_bits_of_a_single_row(model: LlamacModel) -> None:
    batch = left_padded((5, 17, 30))
    together = model(**batch).logits
    for row, ids, mask in zip(together, batch["input_ids"], batch["attention_mask"], strict=True):
        assert torch.equal(row[mask.bool()], model(ids[mask.bool()][None]).logits[0])
        assert not row[~mask.bool()].any()


def test_scores_and_logits(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found, expected = model.generate(PROMPT, **options), reference.generate(PROMPT, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for own, other in zip(found[name], expected[name], strict=True):
            assert (own - other).abs().max() < 1e-5 * other.abs().max()
    assert isinstance(found.past_key_values, LlamacCache)
    assert found.past_key_values.get_seq_length() == found.sequences.shape[1] - 1


def test_a_conversation_goes_on_from_its_cache(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    """The second turn computes its own tokens only, and gives what one long prompt gives."""
    cache = model.new_cache()
    first = model.generate(PROMPT, past_key_values=cache, **GREEDY)
    longer = torch.cat([first, torch.tensor([some_ids(VOCABULARY, 9, 3)])], dim=1)
    held = cache.get_seq_length()
    found = model.generate(longer, past_key_values=cache, **GREEDY)
    assert held == first.shape[1] - 1
    assert torch.equal(found, reference.generate(longer, **GREEDY))


def test_a_copy_of_a_cache_serves_many_texts(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    import copy

    cache = model(PROMPT).past_key_values
    for seed in (1, 2):
        whole = torch.cat([PROMPT, torch.tensor([some_ids(VOCABULARY, 5, seed)])], dim=1)
        found = model.generate(whole, past_key_values=copy.deepcopy(cache), **GREEDY)
        assert torch.equal(found, reference.generate(whole, **GREEDY))


@pytest.mark.parametrize("who", ["llamac-by-torch", "torch-by-llamac", "llamac-by-llamac"])
def test_assisted(model: LlamacModel, reference: LlamaForCausalLM, who: str) -> None:
    large, small = {
        "llamac-by-torch": (model, reference),
        "torch-by-llamac": (reference, model),
        "llamac-by-llamac": (model, model),
    }[who]
    expected = reference.generate(PROMPT, **GREEDY)
    assert torch.equal(large.generate(PROMPT, assistant_model=small, **GREEDY), expected)


def test_stopping_criteria(model: LlamacModel) -> None:
    whole = model.generate(PROMPT, **GREEDY)[0, PROMPT.shape[1] :].tolist()

    class AfterFive(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= PROMPT.shape[1] + 5)

    stopped = model.generate(PROMPT, stopping_criteria=StoppingCriteriaList([AfterFive()]), **GREEDY)
    assert stopped[0, PROMPT.shape[1] :].tolist() == whole[:5]


def test_loss_is_that_of_transformers(model: LlamacModel, reference: LlamaForCausalLM) -> None:
    labels = PROMPT.clone()
    labels[0, :7] = -100
    with torch.no_grad():
        expected = reference(PROMPT, labels=labels).loss
    assert torch.allclose(model(PROMPT, labels=labels).loss, expected, rtol=1e-5)


def test_the_pipeline_and_a_streamer(model: LlamacModel, reference: LlamaForCausalLM, checkpoint: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    own = tokenizer_of(model)
    options = {"do_sample": False, "max_new_tokens": 12}
    texts = ["Hello there", "A longer text than the first"]
    expected = pipeline("text-generation", model=reference, tokenizer=theirs)(texts, batch_size=2, **options)
    assert pipeline("text-generation", model=model, tokenizer=own)(texts, batch_size=2, **options) == expected
    chat = [{"role": "user", "content": "Hi"}]
    expected = pipeline("text-generation", model=reference, tokenizer=theirs)(chat, **options)
    assert pipeline("text-generation", model=model, tokenizer=own)(chat, **options) == expected
    streamer = TextIteratorStreamer(own, skip_prompt=True)
    ids = own(texts[0], return_tensors="pt")
    found = model.generate(**ids, streamer=streamer, **options)
    assert "".join(streamer) == own.decode(found[0, ids["input_ids"].shape[1] :])


def test_tokenizers_agree(model: LlamacModel, checkpoint: Path) -> None:
    theirs, own = AutoTokenizer.from_pretrained(checkpoint), tokenizer_of(model)
    text = "Größe <eos> and 42"
    assert own(text)["input_ids"] == theirs(text)["input_ids"]
    assert (own.bos_token_id, own.eos_token_id, own.pad_token_id) == (256, 257, 257)
    chat = [{"role": "user", "content": "x"}]
    rendered = own.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def test_left_over_texts_are_beyond_the_cache(artifact: Path) -> None:
    """Rows and beams are bounded by `sequences`; pages of a batch that did not fit come back."""
    from llamac.errors import LlamacError

    with LlamacModel.from_artifact(artifact, threads=1, sequences=1, context=256) as small:
        batch = torch.tensor([some_ids(VOCABULARY, 40, seed) for seed in range(3)])
        with pytest.raises(LlamacError, match="LLC0808"):
            small(batch)
        assert small.artifact.session.pools[0].free_pages == small.artifact.session.pools[0].page_count
        with pytest.raises(LlamacError, match="LLC0809"):
            small(torch.zeros((1, 300), dtype=torch.int64))


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """A real model in f32: greedy text of the artifact and of transformers on the same values."""
    source = smollm2_file()
    reference = load_smollm2(source)
    llamac.compile(source, output=tmp_path / "smollm2.llamac", quantize="f32")
    with LlamacModel.from_artifact(tmp_path / "smollm2.llamac") as model:
        tokenizer = tokenizer_of(model)
        texts = ["The capital of France is", "Once upon a time", "2, 4, 6,"]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        options = {"do_sample": False, "max_new_tokens": 32, "pad_token_id": tokenizer.pad_token_id}
        found = model.generate(**batch, **options)
        for text, row in zip(texts, found, strict=True):
            ids = tokenizer(text, return_tensors="pt")
            alone = reference.generate(**ids, eos_token_id=model.generation_config.eos_token_id, **options)[0]
            new = alone[ids["input_ids"].shape[1] :]
            greedy = model.artifact.generate(text, max_new_tokens=32, temperature=0)
            assert tokenizer.decode(new, skip_special_tokens=True) == greedy.text
            assert torch.equal(row[batch["input_ids"].shape[1] :][: len(new)], new)
    assert np.isfinite(found.numpy()).all()

"""torch.compile with a cache outside: tokens, logits, keys and values of eager, whatever is done to the cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_llama import TinyShape, make_reference, some_ids
from torch._dynamo.exc import BackendCompilerFailed
from transformers import DynamicCache, StaticCache

from llamac.errors import LlamacError
from llamac.torch import llamac_backend
from llamac.torch.outside import OutsideCaches

TOLERANCE = 1e-5
"""Relative to the largest logit, key or value, in f32."""

VOCABULARY = 131


class Compiled:
    """A tiny Llama in torch, and the same behind torch.compile.

    graphs: how many were compiled. reads: the lengths of the pasts that calls since then read into pages anew.
    """

    def __init__(self, folder: str, seed: int = 4) -> None:
        self.eager = make_reference(TinyShape(seed=seed)).requires_grad_(False)
        self.eager.generation_config.eos_token_id = None
        self.ours = copy.deepcopy(self.eager)
        self.graphs = 0
        self.reads: list[int] = []
        options = {"threads": 1, "context": 128, "cache": folder}

        def backend(graph: Any, examples: Any) -> Any:
            self.graphs += 1
            before = len(self.reads)
            made = llamac_backend(graph, examples, options=options)
            del self.reads[before:]  # those of trials
            return made

        self.ours.forward = torch.compile(self.ours.forward, backend=backend)

    def generated(self, ids: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What eager and what compiled code generates."""
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
        how.setdefault("attention_mask", torch.ones_like(ids))
        return self.eager.generate(ids, **how), self.ours.generate(ids, **how)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.config, "recompile_limit", 32)
        yield Compiled(str(tmp_path_factory.mktemp("outside") / "code"))
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def reads(pair: Compiled, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found = pair.reads
    found.clear()
    plain = OutsideCaches._read_in

    def counted(self: OutsideCaches, call: Any, held: Any) -> None:
        found.append(call.past)
        plain(self, call, held)

    monkeypatch.setattr(OutsideCaches, "_read_in", counted)
    return found


def rows(batch: int, length: int, first: int = 0) -> torch.Tensor:
    return torch.tensor([some_ids(VOCABULARY, length, first + seed) for seed in range(batch)])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


def same_caches(found: Any, expected: Any) -> bool:
    return all(
        close(a, b)
        for one, other in zip(found.layers, expected.layers, strict=True)
        for a, b in ((one.keys, other.keys), (one.values, other.values))
    )


def test_generate(pair: Compiled, reads: list[int]) -> None:
    """Three graphs: the prompt, the first token of one length, every token; nothing is read back from the cache."""
    before, ids = pair.graphs, rows(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected, found = pair.generated(ids, attention_mask=mask, max_new_tokens=20)
    assert torch.equal(found, expected)
    assert pair.graphs - before <= 3 and not reads


def test_what_is_done_to_a_cache(pair: Compiled, reads: list[int]) -> None:
    """Rolled back, reordered, repeated, filled and read by eager, written to: the tensors are the truth."""
    ours, theirs = DynamicCache(), DynamicCache()

    def step(ids: torch.Tensor) -> None:
        expected = pair.eager(ids, past_key_values=theirs, logits_to_keep=1).logits
        assert close(pair.ours(input_ids=ids, past_key_values=ours, logits_to_keep=1).logits, expected)
        assert same_caches(ours, theirs)

    def both(change: Any) -> None:
        change(ours), change(theirs)

    step(rows(2, 9))
    step(rows(2, 1, 5))
    step(rows(2, 1, 7))
    assert not reads
    both(lambda cache: cache.crop(-4))
    step(rows(2, 1, 9))
    assert reads == [7]
    both(lambda cache: cache.reorder_cache(torch.tensor([1, 0])))
    step(rows(2, 1, 11))
    both(lambda cache: cache.layers[1].values.mul_(0.5))
    step(rows(2, 1, 12))
    assert reads == [7, 8, 9]
    other = copy.deepcopy(theirs)
    pair.eager(rows(2, 1, 14), past_key_values=other)
    expected = pair.eager(rows(2, 1, 15), past_key_values=copy.deepcopy(other), logits_to_keep=1).logits
    assert close(pair.ours(input_ids=rows(2, 1, 15), past_key_values=other, logits_to_keep=1).logits, expected)
    step(rows(2, 1, 13))
    assert reads == [7, 8, 9, 11]


def test_padding_without_positions(pair: Compiled) -> None:
    """Keys stand where the module puts them: columns count, when nobody says otherwise."""
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, :3] = 0
    ours, theirs = DynamicCache(), DynamicCache()
    ids = rows(2, 9)
    for cache, model in ((theirs, pair.eager), (ours, pair.ours)):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        shown = mask.bool()
        assert close(one.keys.transpose(1, 2)[shown], other.keys.transpose(1, 2)[shown])
    with pytest.raises(LlamacError, match="LLC0957 attention_mask: the mask shows a column of the cache that holds"):
        pair.ours(input_ids=rows(2, 1), attention_mask=torch.ones(2, 10), past_key_values=ours, logits_to_keep=1)


@pytest.mark.slow
def test_static(pair: Compiled, reads: list[int]) -> None:
    before, ids = pair.graphs, rows(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    expected, found = pair.generated(ids, attention_mask=mask, cache_implementation="static", max_new_tokens=32)
    assert torch.equal(found, expected)
    assert pair.graphs - before <= 2 and not reads


@pytest.mark.slow
def test_a_static_cache_filled_by_eager(pair: Compiled, reads: list[int]) -> None:
    """What transformers does by itself on other devices: it compiles the step of one token alone."""
    caches = [StaticCache(config=pair.eager.config, max_cache_len=24) for _ in range(2)]
    for cache in caches:
        pair.eager(rows(1, 9), past_key_values=cache)
    for token in range(3):
        ids = rows(1, 1, token)
        expected = pair.eager(ids, past_key_values=caches[0]).logits
        assert close(pair.ours(input_ids=ids, past_key_values=caches[1]).logits, expected)
        assert same_caches(caches[1], caches[0])
    assert reads == [9]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_searches(attention: str, kind: str, tmp_path: Any) -> None:
    """Beams, prompt lookup and a cache that serves two calls, under both attentions."""
    torch._dynamo.reset()
    pair = Compiled(str(tmp_path))
    for model in (pair.eager, pair.ours):
        model.config._attn_implementation = attention
    ids = rows(2, 9)
    expected, found = pair.generated(ids, num_beams=3, cache_implementation=kind)
    assert torch.equal(found, expected)
    if kind == "dynamic":
        expected, found = pair.generated(rows(1, 12), prompt_lookup_num_tokens=3)
        assert torch.equal(found, expected)
    torch._dynamo.reset()


@pytest.mark.slow
def test_two_models_and_inference_mode(tmp_path: Any) -> None:
    torch._dynamo.reset()
    one, other = (Compiled(str(tmp_path), seed) for seed in (4, 5))
    ids = rows(1, 9)
    with torch.inference_mode():
        caches = [DynamicCache() for _ in range(4)]
        models = (one.eager, one.ours, other.eager, other.ours)
        for token in (ids, *(rows(1, 1, seed) for seed in range(4))):
            found = [m(input_ids=token, past_key_values=c).logits for m, c in zip(models, caches, strict=True)]
            assert close(found[1], found[0]) and close(found[3], found[2])
    other.ours.lm_head.weight.mul_(2)
    with torch.inference_mode(), pytest.raises(LlamacError, match="LLC0958"):
        other.ours(input_ids=rows(1, 1, 9), past_key_values=caches[3])
    assert torch.equal(*one.generated(ids))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype, tmp_path: Any) -> None:
    """The cache of the code has the module's own type: what goes out and comes back is the same."""
    torch._dynamo.reset()
    pair = Compiled(str(tmp_path))
    for model in (pair.eager, pair.ours):
        model.to(dtype)
    caches = [DynamicCache(), DynamicCache()]
    for token in (rows(1, 9), rows(1, 1), rows(1, 1, 2)):
        expected = pair.eager(token, past_key_values=caches[0]).logits
        found = pair.ours(input_ids=token, past_key_values=caches[1]).logits
        assert found.dtype == dtype
        assert float((found - expected).abs().max() / expected.abs().max()) < 6e-2
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("sliding", "values beside a cache"),
        ("hidden states", "values beside a cache"),
    ],
)
def test_what_is_refused(what: str, reason: str, tmp_path: Any) -> None:
    torch._dynamo.reset()
    model = make_reference(TinyShape(seed=4)).requires_grad_(False)
    options: dict[str, Any] = {"past_key_values": DynamicCache()}
    if what == "sliding":
        config = copy.deepcopy(model.config)
        config.sliding_window, config.layer_types = 8, ["sliding_attention"] * config.num_hidden_layers
        options["past_key_values"] = DynamicCache(config=config)
    else:
        options["output_hidden_states"] = True
    compiled = torch.compile(model, backend=llamac_backend, options={"threads": 1, "cache": tmp_path})
    with pytest.raises(BackendCompilerFailed, match="LLC0957") as caught:
        compiled(input_ids=rows(1, 9), **options)
    assert reason in str(caught.value)
    torch._dynamo.reset()

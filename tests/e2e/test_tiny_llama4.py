"""Tiny Llama 4 models of every kind: the compiled code against transformers, and against itself in other steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import kernel_graph, kernel_logits_of
from stepping import Floats, assert_same_bits, in_chunks, side_by_side
from tiny_llama import relative_error, some_ids
from tiny_llama4 import Tiny4, make_model, reference_logits, save_model

import llamac
from llamac.certificate import certify
from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.config_json import config_from_json
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.runtime.generation import Continuation, GenerationOptions
from llamac.runtime.model import Model
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.scheduler import run_together
from llamac.runtime.session import Feed

TOLERANCE_F32 = 1e-5
TOLERANCE_ROW = 5e-6
TOLERANCE_FLIP = 3e-2
BF16_FACTOR = 1.5
MAX_STEP = 640
IDS = some_ids(131, 620)
"""Over two pages of 256 and two chunks of 300."""

SHAPES = {
    "scout": Tiny4(chunk=300, step=1),
    "maverick": Tiny4(chunk=300, experts=8, layers=5, tied=True, seed=3),
    "two experts, no norm": Tiny4(step=1, top_k=2, qk_norm=False, chunk=256, seed=1),
    "no temperature": Tiny4(tempered=False, top_k=3, chunk=40, kv_heads=4, seed=4),
    "guard": Tiny4(experts=0, tempered=False, interval=0, chunk=0, seed=2),
}


@dataclass
class Tiny:
    """A model as transformers runs it, its artifact in f32, and the logits of IDS."""

    shape: Tiny4
    reference: Any
    artifact: Path
    expected: Floats

    def load(self, threads: int = 1, context: int = 1024, sequences: int = 3) -> Model:
        return llamac.load(self.artifact, threads=threads, context=context, sequences=sequences)


def compiled(shape: Tiny4, folder: Path, quantize: str = "f32", kv: str | None = "f32") -> tuple[Any, Path]:
    """The reference of a shape and its artifact."""
    reference = make_model(shape)
    source = save_model(reference, shape, folder / "source")
    options = {"quantize": quantize, "kv": kv, "tokenizer": False, "validate": False, "max_step_tokens": MAX_STEP}
    llamac.compile(source, output=folder / "model.llamac", **options)
    return reference, folder / "model.llamac"


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The model of a name, made once."""
    made: dict[str, Tiny] = {}

    def tiny(name: str) -> Tiny:
        if name not in made:
            reference, artifact = compiled(SHAPES[name], tmp_path_factory.mktemp("llama4"))
            made[name] = Tiny(SHAPES[name], reference, artifact, reference_logits(reference, IDS))
        return made[name]

    return tiny


@pytest.fixture(scope="module", params=SHAPES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(request.param)


@pytest.fixture(scope="module")
def model(tiny: Tiny, request: pytest.FixtureRequest) -> Model:
    loaded = tiny.load(threads=2)
    request.addfinalizer(loaded.close)
    return loaded


@pytest.fixture(scope="module")
def whole(model: Model) -> Floats:
    """Logits after every id, computed in one step."""
    return in_chunks(model, IDS, (len(IDS),))


def test_code_computes_what_transformers_computes(tiny: Tiny, whole: Floats) -> None:
    error = relative_error(whole, tiny.expected)
    print(f"{error:.1e}")
    assert error <= TOLERANCE_F32


def test_the_caches_are_those_of_the_layers(tiny: Tiny, model: Model) -> None:
    """A cache for the rotated layers, with their chunk, and one for the others."""
    pattern = tiny.shape.config().attention
    assert pattern is not None
    layers = range(tiny.shape.layers)
    kinds = {pattern.chunk: tuple(i for i in layers if i not in pattern.unrotated)}
    kinds[0] = tuple(i for i in layers if i in pattern.unrotated or not pattern.chunk)
    assert {cache.chunk: cache.layers for cache in model.plan.memory.caches} == kinds


CUTS = [(1,), (2,), (255, 1, 1), (256,), (299, 1, 1, 1), (300,), (301,), (40,), (39, 2), (1, 618, 1), (511, 1, 87, 2)]
"""Sizes of steps; the last one repeats. Pages end after 256 and 512 tokens, chunks after 40, 256, 300 and so on."""


@pytest.mark.parametrize("sizes", CUTS, ids=lambda sizes: "-".join(map(str, sizes)))
def test_steps_do_not_matter(model: Model, whole: Floats, sizes: tuple[int, ...]) -> None:
    assert_same_bits(in_chunks(model, IDS, sizes), whole, f"steps of {sizes}")


QUICK = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PLACES = st.lists(st.integers(0, len(IDS)), max_size=8)
PROMPTS = [IDS[:311], IDS[7:8], IDS]


@QUICK
@given(cuts=st.tuples(PLACES, PLACES, PLACES))
def test_batch_mates_do_not_matter(model: Model, whole: Floats, cuts: tuple[list[int], ...]) -> None:
    """Three ragged sequences, stepped together and cut anywhere, equal each alone."""
    parts = [
        sorted({c for c in cut if c <= len(p)} | set(range(200, len(p), 200)))
        for cut, p in zip(cuts, PROMPTS, strict=True)
    ]
    found = side_by_side(model, PROMPTS, parts)
    assert_same_bits(found[0], whole[:311], "the beginning")
    assert_same_bits(found[1], in_chunks(model, PROMPTS[1], (1,)), "one token")
    assert_same_bits(found[2], whole, "all")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(tiny: Tiny, whole: Floats, threads: int) -> None:
    with tiny.load(threads) as model:
        assert_same_bits(in_chunks(model, IDS, (len(IDS),)), whole, f"{threads} threads")
        assert_same_bits(in_chunks(model, IDS[:310], (299, 1)), whole[:310], f"{threads} threads, token by token")


def test_ragged_prompts_against_transformers(tiny: Tiny, model: Model) -> None:
    prompts = [some_ids(131, n, seed) for seed, n in enumerate((301, 17, 290))]
    found = side_by_side(model, prompts, [[256, 300], [], [255, 289]])
    for logits, prompt in zip(found, prompts, strict=True):
        assert relative_error(logits, reference_logits(tiny.reference, prompt)) <= TOLERANCE_F32


def test_the_certificate_shows_every_kind_of_layer(tiny: Tiny) -> None:
    """What compile validates its passes on: small, but with rotation and without, experts and none, chunks, norms."""
    source = tiny.artifact.parent / "source"
    record = certify(open_source(source), parse_quantization("keep"), "f16")
    assert all(verdict["passed"] for verdict in record["verdicts"])
    small, config = config_from_json(record["config"]), tiny.shape.config()
    assert kinds_of(small) == kinds_of(config) and small.hidden_size < config.hidden_size
    assert small.attention is not None and config.attention is not None
    for name in ("qk_norm", "temperature_scale"):
        assert getattr(small.attention, name) == getattr(config.attention, name)
    assert bool(small.attention.chunk) == bool(config.attention.chunk)


def kinds_of(config: LlamaConfig) -> set[tuple[bool, bool]]:
    """Whether a layer is rotated and whether it is a mixture, for each layer."""
    assert config.attention is not None
    return {(layer in config.attention.unrotated, config.is_moe(layer)) for layer in range(config.layers)}


def test_choices_of_experts_are_counted_as_transformers_makes_them(tiny: Tiny) -> None:
    """Per layer and expert, over steps of any size; a model without experts counts nothing."""
    with tiny.load(threads=2) as model:
        in_chunks(model, IDS, (300, 1, 1))
        found = model.expert_counts()
    assert found == chosen_experts(tiny.reference, tiny.shape)
    assert set(found) == (set(tiny.shape.config().moe.layers) if tiny.shape.experts else set())


def chosen_experts(reference: Any, shape: Tiny4) -> dict[int, list[int]]:
    """How many of IDS each expert of each layer of the reference gets."""
    import torch

    counts: dict[int, list[int]] = {}

    def counting(layer: int) -> Callable[..., None]:
        def hook(router: Any, inputs: Any, outputs: Any) -> None:
            chosen = torch.topk(outputs[1], shape.top_k, dim=1).indices
            counts[layer] = torch.bincount(chosen.flatten(), minlength=shape.experts).tolist()

        return hook

    routers = {i: getattr(layer.feed_forward, "router", None) for i, layer in enumerate(reference.model.layers)}
    hooks = [router.register_forward_hook(counting(i)) for i, router in routers.items() if router is not None]
    reference_logits(reference, IDS)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kinds"), [("llama-4-scout", 2), ("llama-4-maverick", 3)])
def test_published_shapes_are_a_function_for_each_kind_of_layer(name: str, kinds: int) -> None:
    """48 layers: with and without rotation, and where every second one is dense, that too."""
    graphs = kernel_graph(open_source(name, random_weights=0), "int4").module.graphs
    layers = [name for name in graphs if name.startswith("layer")]
    assert len(layers) == kinds and set(graphs) == {"step", "step_top", *layers}
    assert sum(op.opcode == "call" for op in graphs["step"].ops) == 48


# bf16


def test_bf16_checkpoint_is_nearer_to_fp32_than_bf16_itself(tmp_path: Path) -> None:
    """Per token: a token whose experts were chosen otherwise may be further away, as it is in bf16 itself."""
    import torch

    shape = Tiny4(dtype="bf16", chunk=40, step=1, seed=5)
    reference, artifact = compiled(shape, tmp_path, "keep", None)
    narrow = reference.to(torch.bfloat16)
    bf16 = reference_logits(narrow, IDS[:300])
    exact = reference_logits(narrow.float(), IDS[:300])
    with llamac.load(artifact, threads=2, context=512) as model:
        found = model.logits(IDS[:300])
    ours, theirs = (np.abs(logits - exact).max(axis=1) for logits in (found, bf16))
    further = ours > BF16_FACTOR * theirs
    print(f"further off than bf16: {further.mean():.1%}; medians {np.median(ours):.1e} and {np.median(theirs):.1e}")
    assert further.mean() <= 0.02 and np.median(ours) <= np.median(theirs)
    assert np.max(ours) <= BF16_FACTOR * np.max(theirs)


# Quantized


@pytest.mark.parametrize(
    "scheme", ["int8", "int4", "fp8", *(pytest.param(s, marks=pytest.mark.slow) for s in ("int4:g64:asym", "f16"))]
)
def test_quantized_code_computes_what_its_graph_means(scheme: str, tmp_path: Path) -> None:
    """Short sequences in one step, most without an activation that is rounded, or a token that is sent, another way."""
    shape = Tiny4(hidden=80, inner=112, top_k=2, step=1, seed=6)
    _, artifact = compiled(shape, tmp_path, scheme)
    prompts = [some_ids(shape.vocab, n, seed) for seed, n in enumerate([3] * 16 + [23])]
    checkpoint = open_source(tmp_path / "source")
    expected = kernel_logits_of(checkpoint, kernel_graph(checkpoint, scheme, "f32"), prompts)
    with llamac.load(artifact, threads=2, context=64, sequences=len(prompts)) as model:
        found = side_by_side(model, prompts, [[] for _ in prompts])
    errors = [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
    tight = np.mean([error <= TOLERANCE_ROW for error in errors[:-1]])
    print(f"{scheme}: {tight:.0%} without a flip, worst {max(errors):.1e}")
    assert tight >= 0.7 and max(errors) <= TOLERANCE_FLIP, errors


def test_routers_are_kept(tmp_path: Path) -> None:
    """Rounded, they would send tokens to other experts; the ledger says that they were left as they are."""
    _, artifact = compiled(Tiny4(), tmp_path, "int4")
    with llamac.load(artifact, context=64) as model:
        kept = {entry["where"] for entry in model.manifest["ledger"] if entry["kind"] == "kept"}
    assert kept == {"layers.1.moe.router", "layers.3.moe.router"}


def test_experts_that_no_kernel_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlamacError) as caught:
        compiled(Tiny4(expert_inner=40), tmp_path)
    assert (caught.value.code, caught.value.where) == ("LLC0506", "layers.1.moe.gate")
    assert "40 rows" in caught.value.reason and not (tmp_path / "model.llamac").exists()


# The memory of the caches

LONG = some_ids(131, 1500, 9)
GREEDY = GenerationOptions(max_new_tokens=24, sampling=SamplerOptions(temperature=0.0))


def test_a_long_generation_stays_in_the_planned_pages(tiny_of: Callable[[str], Tiny]) -> None:
    """1500 tokens one by one in chunks of 300: at most two pages for the chunked layers, and the bits of one run."""
    with tiny_of("scout").load(threads=1, context=1500, sequences=1) as model:
        whole = model.logits(LONG)
        sequence = model.session.open()
        most = [pool.page_count for pool in model.session.pools]
        planned = {c.chunk: n for c, n in zip(model.plan.memory.caches, most, strict=True)}
        # One step of the most tokens from anywhere in a chunk, which begins anywhere in a page.
        assert planned == {0: 6, 300: -(-(300 - 1 + MAX_STEP) // 256) + 1}
        held = []
        for position, token in enumerate(LONG):
            logits = model.session.step([Feed(sequence, [token])])
            assert_same_bits(logits, whole[position : position + 1], f"position {position}")
            owned = [table.owned for table in sequence.tables]
            assert all(mine <= all_ for mine, all_ in zip(owned, most, strict=True))
            held.append(sum(page >= 0 for page in sequence.tables[1].pages))
        assert max(held) == 2
        assert [p.free_pages + o for p, o in zip(model.session.pools, owned, strict=True)] == most
        sequence.close()
        assert [pool.free_pages for pool in model.session.pools] == most


@pytest.mark.parametrize("kept", [1499, 1401, 1200, 1000, 899, 600, 310, 10, 0])
def test_going_back_in_a_conversation(tiny_of: Callable[[str], Tiny], kept: int) -> None:
    """Pages behind a chunk are gone: the sequence goes back to the chunk's start, and from there equals a fresh run."""
    after = some_ids(131, 1500 - kept, kept + 1)
    conversation = LONG[:kept] + after
    with tiny_of("scout").load(threads=2, context=1500, sequences=1) as model:
        sequence = model.session.open()
        for start in range(0, len(LONG), 500):
            model.session.step([Feed(sequence, LONG[start : start + 500], "none")])
        sequence.truncate(kept)
        begun = len(sequence)
        assert begun == kept or (begun < kept and begun % 300 == 0 and kept - begun < 300)
        rows = []
        for start in [*range(begun, min(begun + 20, 1500)), *range(begun + 20, 1500, 97)]:
            stop = start + 1 if start < begun + 20 else min(start + 97, 1500)
            rows.append(model.session.step([Feed(sequence, conversation[start:stop], "all")]))
            assert all(table.owned <= table.pool.page_count for table in sequence.tables)
        sequence.close()
        assert all(pool.free_pages == pool.page_count for pool in model.session.pools)
        assert_same_bits(np.concatenate(rows), model.logits(conversation)[begun:], f"from {begun} on")


def test_turns_of_a_conversation_that_was_edited(tiny_of: Callable[[str], Tiny]) -> None:
    """A kept sequence goes on, goes back within its chunk, behind it and to the start: every turn as a fresh run."""
    with tiny_of("scout").load(threads=2, context=1500, sequences=2) as model:
        kept = model.session.open()
        prompt = LONG[:700]
        for shared, more in ((700, 200), (880, 300), (1100, 50), (905, 20), (610, 400), (20, 333), (353, 900)):
            continuation = Continuation(prompt, GREEDY, None, model.context)
            for _ in run_together(model.session, [continuation], kept):
                pass
            fresh = model.generate(prompt, max_new_tokens=24, temperature=0.0, ignore_stop_ids=True)
            assert continuation.token_ids == fresh.token_ids, len(prompt)
            assert all(table.owned <= table.pool.pages_for(len(kept)) for table in kept.tables)
            prompt = (prompt + continuation.token_ids)[:shared] + some_ids(131, more, shared)
        kept.close()
        assert all(pool.free_pages == pool.page_count for pool in model.session.pools)


def test_two_conversations_share_the_pools(tiny_of: Callable[[str], Tiny]) -> None:
    """Each gives back what lies behind its chunks, so that both fit for as long as the context lasts."""
    with tiny_of("scout").load(threads=2, context=1500, sequences=2) as model:
        prompts = [LONG, LONG[::-1]]
        expected = [model.logits(prompt) for prompt in prompts]
        found = side_by_side(model, prompts, [list(range(50, 1500, 150)), list(range(120, 1500, 150))])
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b, "side by side")


def test_any_shape_may_be_asked_for_a_shorter_context(tiny: Tiny) -> None:
    with tiny.load(context=16, sequences=1) as model:
        assert relative_error(model.logits(IDS[:16]), tiny.expected[:16]) <= TOLERANCE_F32
        with pytest.raises(LlamacError, match="LLC0809"):
            model.logits(IDS[:17])


def test_shapes_cover_the_kinds() -> None:
    """What the shapes of this file are there for."""
    assert {s.top_k for s in SHAPES.values()} >= {1, 2} and {s.step for s in SHAPES.values()} == {1, 2}
    assert {s.qk_norm for s in SHAPES.values()} == {s.tempered for s in SHAPES.values()} == {True, False}
    assert any(not s.experts for s in SHAPES.values()) and any(s.chunk % 256 for s in SHAPES.values())
    assert replace(SHAPES["guard"], chunk=1) != SHAPES["guard"]

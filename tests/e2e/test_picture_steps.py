"""The text step alone: any embeddings at any rows, any ranges of any vision tokens, and what the code refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stepping import assert_same_bits
from tiny_llama import relative_error, some_ids
from tiny_pictures import VOCABULARY, Floats, make_llama4, make_mllama

import llamac
from llamac.driver import compile_graph
from llamac.errors import LlamacError
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import kv_groups, whole_sequences
from llamac.ir.ops.cache_ops import CacheState
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.model import Model
from llamac.runtime.step_pictures import StepPictures

TOLERANCE = 1e-5
OPTIONS: dict[str, Any] = {"quantize": "f32", "kv": "f32", "context": 1024, "validate": False}
IDS = some_ids(VOCABULARY, 40)
PAGE = 256
VISION_TOKENS = 600
"""Over two pages of 256."""


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Model]]:
    folder = tmp_path_factory.mktemp("llama4")
    reference = make_llama4(folder / "source")
    llamac.compile(folder / "source", output=folder / "m.llamac", **OPTIONS)
    with llamac.load(folder / "m.llamac", threads=2) as model:
        yield reference, model


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkpoint, Model]]:
    folder = tmp_path_factory.mktemp("mllama")
    make_mllama(folder / "source")
    llamac.compile(folder / "source", output=folder / "m.llamac", **OPTIONS)
    with llamac.load(folder / "m.llamac", threads=2, images=100) as model:
        yield open_source(folder / "source"), model


def device_of(model: Model) -> CpuDevice:
    device = model.session.device
    assert isinstance(device, CpuDevice)
    return device


def run(
    model: Model, rows: list[tuple[int, int]], ids: list[list[int]], tables: Any, pictures: StepPictures | None
) -> Floats:
    """The logits of (sequence, position) rows, all in one step, in the order of the rows."""
    logits = np.empty((len(rows), model.vocab_size), np.float32)
    device_of(model).step(
        np.array([ids[s][p] for s, p in rows], np.int32),
        np.array([p for _, p in rows], np.int32),
        np.array([s for s, _ in rows], np.int32),
        np.ascontiguousarray(tables, np.int32),
        np.arange(len(rows), dtype=np.int32),
        logits,
        pictures,
    )
    return logits


def tables_of(model: Model, sequences: int) -> Any:
    """One page of text for each sequence, and three of vision tokens where there are any, in no order."""
    caches = model.plan.memory.caches
    tables = np.full((len(caches), sequences, 3), -1, np.int32)
    for number, cache in enumerate(caches):
        pages = np.arange(sequences * 3)[::-1].reshape(sequences, 3)
        tables[number] = pages if cache.cross else np.where(np.arange(3) == 0, np.arange(sequences)[:, None], -1)
    return tables


# Llama 4: rows of embeddings.


def test_any_embedding_at_any_row(llama4: tuple[Any, Model]) -> None:
    """Against transformers given the embeddings themselves; rows repeat, and come in no order."""
    reference, model = llama4
    random = np.random.default_rng(3)
    embeddings = random.standard_normal((9, 64)).astype(np.float32)
    image_rows = np.where(random.random(40) < 0.5, random.integers(0, 9, 40), -1).astype(np.int32)
    with torch.no_grad():
        hidden = reference.get_input_embeddings()(torch.tensor([IDS]))
        shown = torch.from_numpy(embeddings[np.maximum(image_rows, 0)])[None]
        hidden = torch.where(torch.from_numpy(image_rows >= 0)[None, :, None], shown, hidden)
        text = reference.language_model
        expected = text(inputs_embeds=hidden, use_cache=False).logits[0].numpy()
    with llamac.load(model._artifact.path, threads=2) as fresh:
        rows = [(0, p) for p in range(40)]
        found = run(fresh, rows, [IDS], np.array([[[0]], [[0]]]), StepPictures(image_rows, embeddings))
        assert relative_error(found, expected) < TOLERANCE
        halves = [
            run(fresh, rows[a:b], [IDS], np.array([[[0]], [[0]]]), StepPictures(image_rows[a:b].copy(), embeddings))
            for a, b in ((0, 17), (17, 18), (18, 40))
        ]
    assert_same_bits(np.concatenate(halves), found, "in three steps")


def test_rows_that_are_text_cost_nothing_and_change_nothing(llama4: tuple[Any, Model]) -> None:
    _, model = llama4
    rows, table = [(0, p) for p in range(40)], np.array([[[0]], [[0]]])
    none = StepPictures(np.full(40, -1, np.int32), np.zeros((1, 64), np.float32))
    assert_same_bits(run(model, rows, [IDS], table, none), run(model, rows, [IDS], table, None), "no picture")


@pytest.mark.parametrize("row", [9, 2**31 - 1])
def test_an_embedding_that_is_not_there(llama4: tuple[Any, Model], row: int) -> None:
    _, model = llama4
    pictures = StepPictures(np.array([-1, row], np.int32), np.zeros((9, 64), np.float32))
    with pytest.raises(LlamacError, match="an image row is outside the image embeddings"):
        run(model, [(0, 0), (0, 1)], [IDS], np.array([[[0]], [[0]]]), pictures)
    ranges = StepPictures(vision_start=np.zeros(2, np.int32), vision_stop=np.ones(2, np.int32))
    with pytest.raises(LlamacError, match="a range of vision tokens is outside"):
        run(model, [(0, 0), (0, 1)], [IDS], np.array([[[0]], [[0]]]), ranges)


# Llama 3.2 Vision: ranges of vision tokens.


def states_of(seed: int) -> dict[str, Floats]:
    """Keys and values of 600 vision tokens for the layers 1 and 4."""
    random = np.random.default_rng(seed)
    names = [f"cross_{part}.{layer}" for layer in (1, 4) for part in "kv"]
    return {name: random.standard_normal((2, VISION_TOKENS, 16)).astype(np.float32) for name in names}


def write_states(model: Model, table: Any, states: dict[str, Floats]) -> None:
    """Put vision tokens into their pages: [layer][kv head][K: 16 x 256, V: 256 x 16]."""
    place = [cache.cross for cache in model.plan.memory.caches].index(True)
    device = device_of(model)
    count = device.page_counts[place] * device.plan.caches[place].page_bytes
    cache = device._buffers[1 + place][:count].view(np.float32).reshape(-1, 2, 2, 2, 16 * PAGE)
    for number, layer in enumerate((1, 4)):
        for token in range(VISION_TOKENS):
            page, slot = cache[table[token // PAGE], number], token % PAGE
            panels = page[:, 0].reshape(2, PAGE // 16, 16, 16)
            panels[:, slot // 16, :, slot % 16] = states[f"cross_k.{layer}"][:, token]
            page[:, 1].reshape(2, PAGE, 16)[:, slot] = states[f"cross_v.{layer}"][:, token]


def captured(checkpoint: Checkpoint, ids: list[int], states: dict[str, Floats], ranges: Any) -> Floats:
    inputs: dict[str, Any] = {"ids": ids, "positions": np.arange(len(ids)), **states}
    inputs |= {"vision_start": ranges[0], "vision_stop": ranges[1]}
    inputs |= {f"past_{part}.{layer}": np.zeros((2, 0, 16), np.float32) for layer in (0, 2, 3, 5) for part in "kv"}
    module = build_graph(checkpoint.config, checkpoint.tensors)
    return np.asarray(Interpreter(module, checkpoint.read_rows).run(inputs)[0], np.float32)


RANGES = {
    "anything": lambda random: np.sort(random.integers(0, VISION_TOKENS + 1, (2, 40)), axis=0),
    "runs": lambda random: np.array([[0] * 10 + [250] * 30, [0] * 5 + [256] * 5 + [510] * 20 + [600] * 10]),
    "backwards": lambda random: np.array([[7] * 40, [600, 300, 8, 520] * 10]),
    "empty": lambda random: np.array([[9] * 40, [9, 3] * 20]),
}


@pytest.mark.parametrize("kind", RANGES)
def test_any_range(mllama: tuple[Checkpoint, Model], kind: str) -> None:
    """Against the captured graph; two sequences with vision tokens of their own, mixed row by row."""
    checkpoint, model = mllama
    random, tables = np.random.default_rng(7), tables_of(model, 2)
    ids = [IDS, IDS[::-1]]
    ranges = [RANGES[kind](random).astype(np.int32), RANGES["anything"](random).astype(np.int32)]
    states = [states_of(n) for n in (1, 2)]
    for sequence in (0, 1):
        write_states(model, tables[-1, sequence], states[sequence])
    rows = [(s, p) for p in range(40) for s in (0, 1)]
    start, stop = (np.array([ranges[s][end][p] for s, p in rows], np.int32) for end in (0, 1))
    found = run(model, rows, ids, tables, StepPictures(vision_start=start, vision_stop=stop))
    for s in (0, 1):
        expected = captured(checkpoint, ids[s], states[s], ranges[s])
        assert relative_error(found[s::2], expected) < TOLERANCE
    order = [2 * p for p in range(40)]
    pieces = []
    for a, b in ((0, 13), (13, 14), (14, 40)):
        part = StepPictures(vision_start=start[order[a:b]].copy(), vision_stop=stop[order[a:b]].copy())
        pieces.append(run(model, [(0, p) for p in range(a, b)], ids, tables, part))
    assert_same_bits(np.concatenate(pieces), found[::2], "alone, in three steps")


def test_no_picture_is_the_model_without_its_cross_layers(mllama: tuple[Checkpoint, Model]) -> None:
    """They are not even run; rows that see nothing beside rows that do come out the same."""
    _, model = mllama
    rows, tables = [(0, p) for p in range(40)], tables_of(model, 2)
    skipped = run(model, rows, [IDS], tables, None)
    nothing = StepPictures(vision_start=np.zeros(40, np.int32), vision_stop=np.zeros(40, np.int32))
    assert_same_bits(run(model, rows, [IDS], tables, nothing), skipped, "empty ranges")
    beside = [*((1, p) for p in range(40)), *rows]
    write_states(model, tables[-1, 1], states_of(4))
    ends = np.array([VISION_TOKENS] * 40 + [0] * 40, np.int32)
    found = run(model, beside, [IDS, IDS], tables, StepPictures(vision_start=np.zeros(80, np.int32), vision_stop=ends))
    assert_same_bits(found[40:], skipped, "beside a sequence with pictures")


OUTSIDE = [(-1, 3), (0, 3 * PAGE + 1), (0, 2**31 - 1), (-(2**31), 2**31 - 1), (511, 513)]


@pytest.mark.parametrize("bounds", OUTSIDE, ids=str)
def test_vision_tokens_that_are_not_there(mllama: tuple[Checkpoint, Model], bounds: tuple[int, int]) -> None:
    _, model = mllama
    tables = tables_of(model, 1)
    tables[-1, 0, 2] = -1 if bounds == (511, 513) else 10**6 if bounds[1] == 3 else tables[-1, 0, 2]
    start, stop = (np.array([0, bound], np.int32) for bound in bounds)
    stop[0] = 1
    with pytest.raises(LlamacError, match="a range of vision tokens is outside their pages"):
        run(model, [(0, 0), (0, 1)], [IDS], tables, StepPictures(vision_start=start, vision_stop=stop))
    images = StepPictures(np.array([0, -1], np.int32), np.zeros((1, 64), np.float32))
    with pytest.raises(LlamacError, match="an image row is outside the image embeddings"):
        run(model, [(0, 0), (0, 1)], [IDS], tables, images)


def test_arrays_of_the_wrong_kind_never_reach_the_code(mllama: tuple[Checkpoint, Model]) -> None:
    _, model = mllama
    good = np.zeros(1, np.int32)
    for pictures, error in (
        (StepPictures(vision_start=np.zeros(1, np.int64), vision_stop=good), TypeError),  # type: ignore[arg-type]
        (StepPictures(vision_start=np.zeros(2, np.int32), vision_stop=good), ValueError),
        (StepPictures(vision_start=good), ValueError),
        (StepPictures(image_rows=good), ValueError),
        (StepPictures(good, np.zeros((1, 64))), TypeError),  # type: ignore[arg-type]
    ):
        with pytest.raises(error):
            run(model, [(0, 0)], [IDS], tables_of(model, 1), pictures)


def test_the_images_token_is_fed_and_never_drawn(mllama: tuple[Checkpoint, Model]) -> None:
    _, model = mllama
    assert model.session.token_ids == VOCABULARY + 8 and model.vocab_size == VOCABULARY
    assert np.isfinite(model.logits([1, VOCABULARY, VOCABULARY + 7])).all()
    with pytest.raises(LlamacError, match=r"LLC0812.*0\.\.295"):
        model.logits([VOCABULARY + 8])


@pytest.mark.parametrize(
    ("quantize", "tolerance"), [("bf16:f32-activations", 1e-5), ("int8", 2e-2), ("int4:g64", 2e-2)]
)
def test_quantized_weights(mllama: tuple[Checkpoint, Model], quantize: str, tolerance: float, tmp_path: Path) -> None:
    """Against the kernel graph that the code was made of, run by the interpreter."""
    checkpoint, _ = mllama
    llamac.compile(checkpoint, output=tmp_path / "m.llamac", **{**OPTIONS, "quantize": quantize})
    compiled = compile_graph(checkpoint, parse_quantization(quantize), "f32", 512, None, [])
    states, random = states_of(1), np.random.default_rng(11)
    start, stop = (RANGES["anything"](random)[end].astype(np.int32) for end in (0, 1))
    graph = compiled.module.step
    inputs = {**whole_sequences(graph, [IDS]), "vision_start": start, "vision_stop": stop}
    group = next(g for g in kv_groups(graph) if g.type.cross)
    pages = np.array([[2, 0, 1]], np.int32)
    inputs |= dict.fromkeys(("page_tables", group.tables.name), pages)
    inputs |= {g.cache.name: CacheState.empty(g.type, 3, False) for g in kv_groups(graph)}
    for number, layer in enumerate((1, 4)):
        for token in range(VISION_TOKENS):
            place = (pages[0, token // PAGE], number, slice(None), token % PAGE)
            inputs[group.cache.name].keys[place] = states[f"cross_k.{layer}"][:, token]
            inputs[group.cache.name].values[place] = states[f"cross_v.{layer}"][:, token]
    expected = np.asarray(Interpreter(compiled.module, checkpoint.read_rows).run(inputs)[0], np.float32)
    with llamac.load(tmp_path / "m.llamac", threads=2, images=100) as model:
        tables = tables_of(model, 1)
        write_states(model, tables[-1, 0], states)
        found = run(model, [(0, p) for p in range(40)], [IDS], tables, StepPictures(None, None, start, stop))
    assert relative_error(found, expected) < tolerance

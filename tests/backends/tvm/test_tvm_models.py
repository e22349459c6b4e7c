"""Artifacts whose code is TVM's: tiny Llamas and Llama 4s against transformers in f32, whole and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_llama4 import reference_logits as reference_logits4

import llamac
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

TOLERANCE = 1e-5
"""As of the CPU code: f32 sums in another order."""

DENSE = {
    "grouped queries, scaled rotation": TinyShape(),
    "tied, one kv head, prime vocabulary": TinyShape(tied=True, kv_heads=1, group=4, vocab=257, scaled=False),
    "wide heads, three layers": TinyShape(head_dim=80, layers=3, inner=33, dtype="bf16"),
}

LLAMA4 = {
    "maverick": Tiny4(chunk=40, experts=8, layers=5, tied=True, seed=3),
    "scout": Tiny4(chunk=40, step=1),
    "two experts, no norm": Tiny4(step=1, top_k=2, qk_norm=False, chunk=32, seed=1),
    "guard": Tiny4(experts=0, tempered=False, interval=0, chunk=0, seed=2),
}


def _first_quick(shapes: dict[str, Any]) -> list[Any]:
    first, *others = shapes
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


def _compiled(source: Path, folder: Path) -> Path:
    options = {"quantize": "f32", "kv": "f32", "tokenizer": False, "validate": False, "max_step_tokens": 128}
    llamac.compile(source, target="tvm:llvm", output=folder / "model.llamac", **options)
    return folder / "model.llamac"


def _in_pieces(model: Model, ids: list[int], cuts: list[int]) -> np.ndarray:
    """The logits of every token, fed in pieces that end at `cuts`, then one by one, beside another sequence."""
    first, other = model.session.open(), model.session.open()
    rows, start = [], 0
    for stop in [*cuts, *range(cuts[-1] + 1, len(ids) + 1)]:
        feeds = [Feed(first, ids[start:stop], "all"), Feed(other, ids[:2])]
        rows.append(np.array(model.session.step(feeds))[: stop - start])
        start = stop
    return np.concatenate(rows)


@pytest.mark.parametrize("name", _first_quick(DENSE))
def test_dense_models(name: str, tmp_path: Path) -> None:
    shape = DENSE[name]
    reference = make_reference(shape)
    artifact = _compiled(save_checkpoint(reference, shape, tmp_path / "checkpoint"), tmp_path)
    ids = some_ids(shape.vocab, 40, shape.seed)
    expected = reference_logits(reference, ids)
    with llamac.load(artifact, threads=1, context=256, sequences=2) as model:
        assert model.target.name == "tvm:llvm"
        assert relative_error(model.logits(ids), expected) < TOLERANCE
        assert relative_error(_in_pieces(model, ids, [17, 36]), expected) < TOLERANCE


@pytest.mark.parametrize("name", _first_quick(LLAMA4))
def test_llama4_models(name: str, tmp_path: Path) -> None:
    """Over several chunks, with and without rotation, norms, temperature and experts."""
    reference = make_model(LLAMA4[name])
    artifact = _compiled(save_model(reference, LLAMA4[name], tmp_path / "checkpoint"), tmp_path)
    ids = some_ids(131, 100)
    expected = reference_logits4(reference, ids)
    with llamac.load(artifact, threads=1, context=256, sequences=2) as model:
        assert relative_error(model.logits(ids), expected) < TOLERANCE
        assert relative_error(_in_pieces(model, ids, [64, 97]), expected) < TOLERANCE


def test_threads_do_not_change_bits(artifact_of: Any) -> None:
    ids = some_ids(131, 30)
    found = []
    for threads in (1, 2):
        with llamac.load(artifact_of("tvm:llvm", quantize="f32"), threads=threads) as model:
            found.append(np.array(model.logits(ids)))
    assert found[0].tobytes() == found[1].tobytes()


def test_greedy_text_is_that_of_the_cpu_code(artifact_of: Any) -> None:
    """One file with both: the CPU code is taken unless TVM's is asked for, and both read the same weights."""
    artifact = artifact_of("x86-64-v3,tvm:llvm", quantize="f32")
    ids = some_ids(131, 12)
    with llamac.load(artifact) as ours, llamac.load(artifact, device="tvm") as tvm:
        assert (ours.target.name, tvm.target.name) == ("x86-64-v3", "tvm:llvm")
        greedy: dict[str, Any] = {"max_new_tokens": 30, "temperature": 0.0, "ignore_stop_ids": True}
        assert ours.generate(ids, **greedy).token_ids == tvm.generate(ids, **greedy).token_ids

"""`--kv int8`: near the cache of floats, near the interpreter, the same bits however rows are cut, exact plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreted import kernel_graph, kernel_logits
from numpy.typing import NDArray
from smollm2 import smollm2_file
from stepping import assert_same_bits, in_chunks
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids

import llamac
from llamac.artifact.read import Artifact
from llamac.models.sources import open_source

SHAPE = TinyShape(group=3, head_dim=64, scaled=False, layers=2, seed=5)
IDS = 300
"""Over the end of a page."""

ROUNDING = 0.03
"""Keys and values within 1/254 of their head's largest: more than that moves a logit by in two layers."""

SMOLLM2_KL = 0.02
TEXT = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The artifact of a tiny model in f32 with an int8 cache, and transformers' own model."""
    folder, reference = tmp_path_factory.mktemp("int8-cache"), make_reference(SHAPE)
    checkpoint = save_checkpoint(reference, SHAPE, folder / "checkpoint")
    llamac.compile(checkpoint, output=folder / "tiny.llamac", quantize="f32", kv="int8", tokenizer=False)
    return folder, reference


def test_logits_are_near_those_of_floats(tiny: tuple[Path, Any]) -> None:
    folder, reference = tiny
    ids = some_ids(SHAPE.vocab, IDS)
    with llamac.load(folder / "tiny.llamac") as model:
        found = model.logits(ids)
    expected = reference_logits(reference, ids)
    assert 1e-5 < relative_error(found, expected) < ROUNDING
    assert _divergence(expected, found).mean() < 0.01


def test_code_and_interpreter_agree(tiny: tuple[Path, Any]) -> None:
    """Up to keys and values that round the other way, since the sums before them differ in their last bits."""
    folder, _ = tiny
    ids = some_ids(SHAPE.vocab, 60)
    checkpoint = open_source(folder / "checkpoint")
    expected = kernel_logits(checkpoint, kernel_graph(checkpoint, "f32", "int8"), ids)
    with llamac.load(folder / "tiny.llamac") as model:
        assert relative_error(model.logits(ids), expected) < 2e-3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_cut_and_threads(tiny: tuple[Path, Any], threads: int) -> None:
    folder, _ = tiny
    ids = some_ids(SHAPE.vocab, IDS)
    with llamac.load(folder / "tiny.llamac", threads=1) as model:
        whole = in_chunks(model, ids, (IDS,))
    with llamac.load(folder / "tiny.llamac", threads=threads) as model:
        for sizes in ((1,), (255, 1, 1), (64,)):
            assert_same_bits(in_chunks(model, ids, sizes), whole, f"cut by {sizes}")


def test_the_manifest_plans_the_scales(tiny: tuple[Path, Any]) -> None:
    folder, _ = tiny
    memory = Artifact.open(folder / "tiny.llamac").manifest["memory"]
    assert memory["kv_dtype"] == "int8"
    assert memory["caches"][0]["page_bytes"] == 2 * SHAPE.layers * SHAPE.kv_heads * 256 * (SHAPE.head_dim + 2)


@pytest.mark.slow
def test_smollm2_stays_near_its_f16_cache(make_once: Callable[..., Path]) -> None:
    smollm2_file()
    found = {}
    for kv in ("f16", "int8"):

        def make(path: Path, kv: str = kv) -> None:
            llamac.compile("smollm2-135m", output=path, kv=kv)

        with llamac.load(make_once(f"smollm2-kv-{kv}.llamac", make), context=1024) as model:
            found[kv] = model.logits(model.encode(TEXT.read_text())[:512])
    divergence = _divergence(found["f16"], found["int8"]).mean()
    print(f"KL {divergence:.5f}")
    assert 0 < divergence < SMOLLM2_KL


def _divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(expected || found) of each row, in nats."""
    p, q = (_log_probabilities(x.astype(np.float64)) for x in (expected, found))
    kl: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return kl


def _log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)

"""SmolLM2-135M, a real model: the greedy text of transformers in fp32, and `keep` close to it on prose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from smollm2 import load_smollm2, smollm2_file
from tiny_llama import reference_logits

import llamac
from llamac.runtime.model import Model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at a lower temperature on a mountain because",
    "1, 1, 2, 3, 5, 8,",
    "Dear Professor Martin,\n\nThank you for your letter of",
    "Zwei plus zwei ist",
    "In 1969, the first people",
)
NEW_TOKENS = 64
TIE = 1e-4
"""Where the reference's two largest logits are nearer than this, either may come first."""

KL_BOUND = 0.01
WINDOW = 512
TEXT = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def reference() -> Iterator[LlamaForCausalLM]:
    import torch

    path = smollm2_file()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load_smollm2(path)
    torch.set_num_threads(before)


def _loaded(make_once: Callable[..., Path], scheme: str) -> Model:
    smollm2_file()

    def make(path: Path) -> None:
        llamac.compile("smollm2-135m", output=path, quantize=scheme)

    return llamac.load(make_once(f"smollm2-{scheme}.llamac", make), context=1024)


@pytest.fixture(scope="module")
def model_f32(make_once: Callable[..., Path]) -> Iterator[Model]:
    with _loaded(make_once, "f32") as model:
        yield model


@pytest.fixture(scope="module")
def model_keep(make_once: Callable[..., Path]) -> Iterator[Model]:
    with _loaded(make_once, "keep") as model:
        yield model


def test_greedy_ids_equal_transformers(model_f32: Model, reference: LlamaForCausalLM) -> None:
    """Each new id is the reference's choice after the same ids: by induction its own greedy text."""
    outcomes = model_f32.generate_batch(PROMPTS, max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_stop_ids=True)
    wrong, ties = [], []
    for prompt, outcome in zip(PROMPTS, outcomes, strict=True):
        assert len(outcome.token_ids) == NEW_TOKENS
        ids = outcome.prompt_ids + outcome.token_ids
        rows = reference_logits(reference, ids)[len(outcome.prompt_ids) - 1 : -1]
        for position, (row, token) in enumerate(zip(rows, outcome.token_ids, strict=True)):
            first, second = np.argsort(row)[:-3:-1]
            gap = float(row[first] - row[second])
            if token != first:
                place = f"{prompt!r} position {position}: {token} instead of {first}, top two {gap:.1e} apart"
                (ties if gap < TIE and token == second else wrong).append(place)
    print("ties:", *(ties or ["none"]), sep="\n  ")
    assert not wrong, "\n".join(wrong)


def test_logits_equal_transformers(model_f32: Model, reference: LlamaForCausalLM) -> None:
    ids = model_f32.encode(TEXT.read_text()[:2000])[:256]
    expected = reference_logits(reference, ids)
    error = float(np.abs(model_f32.logits(ids) - expected).max() / np.abs(expected).max())
    print(f"relative error {error:.1e} on {len(ids)} tokens")
    assert error <= 2e-5  # 30 layers of f32: transformers' own eager and sdpa attention are 6e-6 apart


@pytest.mark.parametrize("windows", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_keep_is_close_to_fp32(model_keep: Model, reference: LlamaForCausalLM, windows: int) -> None:
    """Mean KL divergence of the fp32 reference's distributions from those of the blocks as they are."""
    ids = model_keep.encode(TEXT.read_text() * 3)[: windows * WINDOW]
    divergences, same = [], []
    for start in range(0, len(ids), WINDOW):
        part = ids[start : start + WINDOW]
        expected, found = reference_logits(reference, part), model_keep.logits(part)
        divergences.append(_divergence(expected, found))
        same.append(expected.argmax(1) == found.argmax(1))
    mean, agreement = float(np.concatenate(divergences).mean()), float(np.concatenate(same).mean())
    print(f"KL {mean:.5f}, largest {np.concatenate(divergences).max():.3f}, top-1 {agreement:.1%}, {len(ids)} tokens")
    assert len(ids) == windows * WINDOW
    assert mean < KL_BOUND


def _divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(expected || found) of each row, in nats."""
    p, q = _log_probabilities(expected), _log_probabilities(found)
    return np.einsum("ij,ij->i", np.exp(p), p - q, dtype=np.float64)


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total: NDArray[np.float32] = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def test_keep_answers_sensibly(model_keep: Model) -> None:
    """A question it knows: asked for the capital of France this model hesitates between English and French."""
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    answer = model_keep.chat(question, temperature=0.0, max_new_tokens=60)
    assert "scatter" in answer.text

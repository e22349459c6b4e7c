"""The rotation of pairs, by strides and by complex numbers: captured, and the same graph as the config door's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pair_llama import CONFIG, SPELLINGS, PairLlama

import llamac
from llamac.errors import LlamacError
from llamac.models.llama.graph import build_llama
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

Floats = NDArray[np.float32]
IDS = [5, 66, 0, 12, 12, 30, 7, 41, 2]


def torch_logits(module: PairLlama) -> Floats:
    empty = torch.zeros(CONFIG.kv_heads, 0, CONFIG.head_dim)
    with torch.no_grad():
        logits, *_ = module(torch.tensor(IDS), torch.arange(len(IDS)), *[empty] * (2 * CONFIG.layers))
    return np.asarray(logits.numpy(), np.float32)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_doors_end_in_the_same_graph(spelling: str, interpreted: Callable[..., Floats]) -> None:
    module = PairLlama(spelling).eval().requires_grad_(False)
    model = llamac.capture(module, config=CONFIG)
    expected = torch_logits(module)
    for cuts in ((), (1, 4)):
        assert np.abs(interpreted(model, IDS, cuts) - expected).max() < 1e-5 * np.abs(expected).max()
    texts = []
    for graph in (model.fresh(), build_llama(model.config, model.checkpoint.tensors)):
        run_pipeline(graph, raise_and_fuse(plain_layers(CONFIG.layers)), PassContext(model.read_rows))
        texts.append(canonical_text(graph))
    assert texts[0] == texts[1]
    assert texts[0].count("= rope ") == 4 and 'style = "interleaved"' in texts[0]


class Odd(PairLlama):
    """Complex numbers, or strides, with no place in a rotation."""

    def __init__(self, what: str) -> None:
        super().__init__("complex")
        self.what = what

    def tables(self, positions: torch.Tensor) -> Any:
        angles = super().tables(positions)
        if self.what == "abs":
            return angles * torch.polar(torch.ones_like(angles), angles).abs()
        if self.what == "sum":
            z = torch.polar(torch.ones_like(angles), angles)
            return torch.view_as_real(z + z)[..., 0]
        if self.what == "scaled":
            return torch.view_as_real(torch.polar(torch.ones_like(angles), angles) * 2.0)[..., 0]
        return angles[:, ::3].repeat(1, 8)[:, : angles.shape[1]]


@pytest.mark.parametrize(
    ("what", "code"), [("abs", "LLC0314"), ("sum", "LLC0315"), ("scaled", "LLC0315"), ("strides", "LLC0315")]
)
def test_refused(what: str, code: str) -> None:
    with pytest.raises(LlamacError, match=code) as caught:
        llamac.capture(Odd(what), config=CONFIG)
    assert "llama.py:" in caught.value.reason

"""What cannot be captured says where, why, and what to do."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_llama import CONFIG, PlainLlama

import llamac
from llamac.errors import LlamacError
from llamac.models.capture.factory import open_torch

ONE_LAYER = replace(CONFIG, layers=1)


def refused(module: Any, code: str, **options: Any) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        llamac.capture(module, **({"config": ONE_LAYER} | options))
    assert caught.value.code == code, caught.value
    return caught.value


class Changed(PlainLlama):
    """One thing in the last layer done otherwise."""

    def __init__(self, change: Any) -> None:
        super().__init__(ONE_LAYER)
        block = self.blocks[0]
        original = block.feed
        block.feed = lambda x: change(block, x, original)  # type: ignore[union-attr, operator]


def test_an_unsupported_op_is_named_with_its_module_and_line() -> None:
    def change(block: Any, x: torch.Tensor, original: Any) -> torch.Tensor:
        return original(x.cumsum(0))

    error = refused(Changed(change), "LLC0314")
    assert error.where == "blocks.0"
    assert error.reason.startswith("aten.cumsum.default at ") and "outside the supported set" in error.reason
    assert "test_refusals.py:" in error.reason and "(return original(x.cumsum(0)))" in error.reason
    assert error.hint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block, x, original: original(x[: x.shape[0] // 1, ::2].repeat_interleave(2, dim=1)), "step"),
        (lambda block, x, original: original(x * x.shape[0]), "must be a plain number"),
        (lambda block, x, original: original(torch.nn.functional.dropout(x, 0.5, training=True)), "dropout is on"),
        (lambda block, x, original: original(x.double().float()), "float64"),
    ],
    ids=["stride", "size-as-number", "dropout", "f64"],
)
def test_a_form_with_no_place_in_a_llama(change: Any, reason: str) -> None:
    error = refused(Changed(change), "LLC0315")
    assert reason in error.message() and "blocks.0" in error.where


def test_a_bias() -> None:
    module = PlainLlama(ONE_LAYER)
    module.blocks[0].wq.bias = torch.nn.Parameter(torch.zeros(CONFIG.heads * CONFIG.head_dim))
    error = refused(module, "LLC0315")
    assert error.where == "blocks.0.wq" and "bias" in error.reason


def test_another_structure() -> None:
    def change(block: Any, x: torch.Tensor, original: Any) -> torch.Tensor:
        return original(x) + block.w2(torch.sigmoid(block.w1(x)))

    error = refused(Changed(change), "LLC0318")
    assert "groups" in error.reason or "gate" in error.reason or "both" in error.reason


def test_another_config_than_the_module_s() -> None:
    assert "expected shape" in refused(PlainLlama(ONE_LAYER), "LLC0208", config=replace(ONE_LAYER, vocab_size=68)).reason
    assert "groups" in refused(PlainLlama(), "LLC0313", config=replace(CONFIG, layers=3)).reason or True


def test_no_config() -> None:
    error = refused(PlainLlama(ONE_LAYER), "LLC0312", config=None)
    assert "config=LlamaConfig" in error.hint


@pytest.mark.parametrize(
    ("thing", "options"),
    [("a string", {}), (torch.nn.Identity(), {}), (PlainLlama(ONE_LAYER), {"dtype": "f23"}), (PlainLlama(), {"example_tokens": 1})],
    ids=["no-module", "no-parameters", "dtype", "example-tokens"],
)
def test_what_is_no_module_or_option(thing: Any, options: dict[str, Any]) -> None:
    refused(thing, "LLC0312", **options)


def test_a_module_that_torch_cannot_export() -> None:
    def change(block: Any, x: torch.Tensor, original: Any) -> torch.Tensor:
        return original(x) if x.sum() > 0 else x

    assert "torch.export failed" in refused(Changed(change), "LLC0313").reason


def program(*dims: Any) -> Any:
    past = [torch.zeros(CONFIG.kv_heads, 6, CONFIG.head_dim)] * 2
    new, old = dims
    shapes = ({0: new} if new else None, {0: new} if new else None, ({1: old} if old else None,) * 2)
    inputs = (torch.zeros(4, dtype=torch.int64), torch.arange(6, 10), *past)
    return torch.export.export(PlainLlama(ONE_LAYER), inputs, dynamic_shapes=shapes, strict=False)


def test_fixed_sizes() -> None:
    old = torch.export.Dim("old")
    error = refused(program(None, old), "LLC0316")
    assert "the number of tokens is fixed at 4" in error.reason


class Wrong(torch.nn.Module):
    """Takes the right things and returns others."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.inner = what, PlainLlama(ONE_LAYER)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        logits, k, v = self.inner(ids, positions, *past)
        return {"no-state": logits, "new-only": (logits, k[:, -1:], v[:, -1:]), "last": (logits[-1:], k, v)}[self.what]


@pytest.mark.parametrize("what", ["no-state", "last"])
def test_another_step(what: str) -> None:
    assert refused(Wrong(what), "LLC0316" if what == "no-state" else "LLC0315").hint


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nothing", "names no factory"),
        ("no_such_package_here:make", "No module named"),
        ("plain_llama:no_such", "no attribute"),
        ("plain_llama:CONFIG", "not a function"),
        ("plain_llama:PlainLlama.forward", "the factory failed"),
    ],
)
def test_factories(path: str, reason: str) -> None:
    with pytest.raises(LlamacError, match="LLC0319") as caught:
        open_torch(path)
    assert reason in caught.value.reason


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LlamacError, match="LLC0311") as caught:
        llamac.capture(object())
    assert 'pip install "llamac[torch]"' in caught.value.hint

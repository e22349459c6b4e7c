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


class ChangedMlp(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, change: Any) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner, x)


def changed(change: Any) -> PlainLlama:
    """A Llama of one layer whose MLP is `change(mlp, x)`."""
    module = PlainLlama(ONE_LAYER)
    module.blocks[0].mlp = ChangedMlp(module.blocks[0].mlp, change)  # type: ignore[union-attr]
    return module


class Cumulative(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.cumsum(0))


def test_an_unsupported_op_is_named_with_its_module_and_line() -> None:
    module = PlainLlama(ONE_LAYER)
    module.blocks[0].mlp = Cumulative(module.blocks[0].mlp)  # type: ignore[union-attr]
    error = refused(module, "LLC0314")
    assert error.where == "blocks.0.mlp"
    assert error.reason.startswith("aten.cumsum.default at ") and "outside the supported set" in error.reason
    assert "test_refusals.py:" in error.reason and "(return self.inner(x.cumsum(0)))" in error.reason
    assert error.hint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mlp, x: mlp(torch.cat([x[:, :40:2], x[:, 20:]], dim=1)), "in steps of 2"),
        (lambda mlp, x: mlp(x * x.shape[0]), "must be a plain number"),
        (lambda mlp, x: mlp(torch.nn.functional.dropout(x, 0.5, training=True)), "dropout is on"),
        (lambda mlp, x: mlp(x.double().float()), "float64"),
    ],
    ids=["stride", "size-as-number", "dropout", "f64"],
)
def test_a_form_with_no_place_in_a_llama(change: Any, reason: str) -> None:
    error = refused(changed(change), "LLC0315")
    assert error.where == "blocks.0.mlp" and reason in error.reason and "test_refusals.py:" in error.reason


def test_a_bias() -> None:
    module = PlainLlama(ONE_LAYER)
    module.blocks[0].wq.bias = torch.nn.Parameter(torch.zeros(CONFIG.heads * CONFIG.head_dim))
    error = refused(module, "LLC0315")
    assert error.where == "blocks.0.wq" and "bias" in error.reason


def test_another_structure() -> None:
    def change(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        return mlp(x) + mlp.w2(torch.sigmoid(mlp.w1(x)))

    error = refused(changed(change), "LLC0318")
    assert "groups" in error.reason or "gate" in error.reason or "both" in error.reason


def test_another_config_than_the_module_s() -> None:
    module = PlainLlama(ONE_LAYER)
    assert "expected shape" in refused(module, "LLC0208", config=replace(ONE_LAYER, vocab_size=68)).reason
    assert "returns 3 values" in refused(module, "LLC0316", config=replace(ONE_LAYER, layers=2)).reason


def test_no_config() -> None:
    error = refused(PlainLlama(ONE_LAYER), "LLC0312", config=None)
    assert "config=LlamaConfig" in error.hint


@pytest.mark.parametrize(
    ("thing", "options"),
    [
        ("a string", {}),
        (torch.nn.Identity(), {}),
        (PlainLlama(ONE_LAYER), {"dtype": "f23"}),
        (PlainLlama(ONE_LAYER), {"example_tokens": 1}),
    ],
    ids=["no-module", "no-parameters", "dtype", "example-tokens"],
)
def test_what_is_no_module_or_option(thing: Any, options: dict[str, Any]) -> None:
    refused(thing, "LLC0312", **options)


def test_a_module_that_torch_cannot_export() -> None:
    def change(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        return mlp(x) if x.sum() > 0 else x

    assert "torch.export failed" in refused(changed(change), "LLC0313").reason


class Echo(torch.nn.Module):
    """Hardly a model; what is wrong with its signature is found before that."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 4)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return self.table(ids) + positions[:, None], k + 1, v + 1


def echo(tokens: bool, past: bool, dtype: torch.dtype = torch.int64) -> Any:
    inputs = (torch.zeros(4, dtype=dtype), torch.arange(6, 10), torch.zeros(2, 6, 8), torch.zeros(2, 6, 8))
    new = {0: torch.export.Dim("new")} if tokens else None
    old = {1: torch.export.Dim("old")} if past else None
    return torch.export.export(Echo(), inputs, dynamic_shapes=(new, new, old, old), strict=False)


@pytest.mark.parametrize(
    ("tokens", "past", "reason"),
    [
        (False, True, "the length of the ids is fixed at 4"),
        (True, False, "the length of the past is fixed at 6"),
        (True, True, "returns tensor<2 x P x 8 x f32> for %past_k.0, expected tensor<2 x (P + T) x 8 x f32>"),
    ],
)
def test_sizes_of_a_step(tokens: bool, past: bool, reason: str) -> None:
    assert reason in refused(echo(tokens, past), "LLC0316").reason


class Wrong(torch.nn.Module):
    """Takes the right things and returns others."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.inner = what, PlainLlama(ONE_LAYER)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> Any:
        logits, k, v = self.inner(ids, positions, *past)
        if self.what == "no-state":
            return logits
        return (logits[-1:], k, v) if self.what == "last" else (logits, v.transpose(0, 1), k)


@pytest.mark.parametrize(("what", "code"), [("no-state", "LLC0316"), ("last", "LLC0315"), ("turned", "LLC0316")])
def test_another_step(what: str, code: str) -> None:
    assert refused(Wrong(what), code).hint


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

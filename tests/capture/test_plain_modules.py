"""A Llama written by hand, and exported programs: captured by structure, compiled, equal to torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain_llama import CONFIG, PlainLlama

import llamac
from llamac.models.capture.captured import CapturedModel
from llamac.models.capture.factory import open_torch
from llamac.models.llama.graph import build_llama
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

Floats = NDArray[np.float32]
IDS = [5, 66, 0, 12, 12, 30, 7, 41, 2]


@pytest.fixture(scope="module")
def plain() -> PlainLlama:
    return PlainLlama().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(plain: PlainLlama) -> CapturedModel:
    return llamac.capture(plain, config=CONFIG)


def torch_logits(module: PlainLlama, ids: list[int]) -> Floats:
    empty = torch.zeros(CONFIG.kv_heads, 0, CONFIG.head_dim)
    with torch.no_grad():
        logits, *_ = module(torch.tensor(ids), torch.arange(len(ids)), *[empty] * (2 * CONFIG.layers))
    return np.asarray(logits.numpy(), np.float32)


def relative(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_weights_are_named_by_structure(model: CapturedModel, plain: PlainLlama) -> None:
    names = {t.name: t.stored_name for t in model.checkpoint.tensors.values()}
    assert names["layers.1.attn.k"] == "blocks.1.wk.weight"
    assert names["layers.0.mlp.gate"] == "blocks.0.mlp.w1.weight"
    assert names["layers.0.mlp_norm"] == "blocks.0.norm2.scale"
    assert (names["embed"], names["norm"], names["head"]) == ("table.weight", "last.scale", "out.weight")


def test_gate_and_up_are_told_apart_whatever_their_order() -> None:
    model = llamac.capture(PlainLlama(gate_first=False), config=CONFIG)
    assert model.checkpoint.tensors["layers.0.mlp.gate"].stored_name == "blocks.0.mlp.w1.weight"


@pytest.mark.parametrize("cuts", [(), (1, 2)], ids=["whole", "three-steps"])
def test_interpreted(
    model: CapturedModel, plain: PlainLlama, interpreted: Callable[..., Floats], cuts: tuple[int, ...]
) -> None:
    assert relative(interpreted(model, IDS, cuts), torch_logits(plain, IDS)) < 1e-5


def test_it_is_the_canonical_graph(model: CapturedModel) -> None:
    """Rope from a product of frequencies and positions, masked_fill, a division: all one graph in the end."""
    texts = []
    for module in (model.fresh(), build_llama(model.config, model.checkpoint.tensors)):
        run_pipeline(module, raise_and_fuse(plain_layers(CONFIG.layers)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]


def test_compiled_code_gives_torch_s_logits(model: CapturedModel, plain: PlainLlama, tmp_path: Path) -> None:
    made = llamac.compile(model, output=tmp_path / "plain.llamac", quantize="f32", tokenizer=False)
    assert made.manifest["model"]["source_format"] == "torch"
    assert made.manifest["certificate"] is not None
    with llamac.load(made.path, threads=1) as loaded:
        sequence = loaded.session.open()
        from llamac.runtime.session import Feed

        parts = [loaded.session.step([Feed(sequence, part, "all")]) for part in (IDS[:4], IDS[4:5], IDS[5:])]
    assert relative(np.concatenate(parts), torch_logits(plain, IDS)) < 1e-5


class Batched(torch.nn.Module):
    """The same step with torch's batch axis on every tensor."""

    def __init__(self, step: PlainLlama) -> None:
        super().__init__()
        self.inner = step

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.inner(ids.squeeze(0), positions.squeeze(0), *(p.squeeze(0) for p in past))
        return tuple(x.unsqueeze(0) for x in found)


def export(module: torch.nn.Module, batched: bool = False) -> Any:
    lead = (1,) if batched else ()
    past = [torch.zeros(*lead, CONFIG.kv_heads, 6, CONFIG.head_dim) for _ in range(2 * CONFIG.layers)]
    ids, positions = torch.zeros(*lead, 4, dtype=torch.int64), torch.arange(6, 10).reshape(*lead, 4)
    new, old = torch.export.Dim("new"), torch.export.Dim("old")
    shapes = ({len(lead): new}, {len(lead): new}, ({len(lead) + 1: old},) * len(past))
    return torch.export.export(module, (ids, positions, *past), dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("batched", [False, True], ids=["plain", "batched"])
def test_an_exported_program(
    plain: PlainLlama, interpreted: Callable[..., Floats], batched: bool, model: CapturedModel
) -> None:
    program = export(Batched(plain) if batched else plain, batched)
    found = llamac.capture(program, config=CONFIG)
    assert relative(interpreted(found, IDS, (3,)), torch_logits(plain, IDS)) < 1e-5
    texts = []
    for each in (found, model):
        module = each.fresh()
        run_pipeline(module, raise_and_fuse(plain_layers(CONFIG.layers)), PassContext(each.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]


def test_a_decomposed_program(plain: PlainLlama, interpreted: Callable[..., Floats]) -> None:
    """Core ATen: mm, bmm, _softmax, _to_copy, permute, view."""
    found = llamac.capture(export(plain).run_decompositions(), config=CONFIG)
    assert relative(interpreted(found, IDS, (3,)), torch_logits(plain, IDS)) < 1e-5
    steps = raise_and_fuse(plain_layers(CONFIG.layers))
    run_pipeline(found.fresh(), steps, PassContext(found.read_rows))


def test_a_factory_by_name(monkeypatch: pytest.MonkeyPatch, model: CapturedModel) -> None:
    monkeypatch.chdir(os.path.dirname(__file__))
    found = open_torch("plain_llama:make")
    assert found.config == model.config
    assert found.read_rows("embed", 0, 9).tobytes() == model.read_rows("embed", 0, 9).tobytes()


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from llamac.cli.compile import command

    monkeypatch.chdir(os.path.dirname(__file__))
    out = tmp_path / "plain.llamac"
    arguments = ["--from", "torch", "plain_llama:make", "--no-tokenizer", "--quantize", "f32", "-o", str(out), "--json"]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0 and out.is_file() and '"model": "plain"' in ran.stdout


def test_opt_captures_a_module_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from llamac.cli.opt import command

    monkeypatch.chdir(os.path.dirname(__file__))
    arguments = ["--from-torch", "plain_llama:make", "--pipeline", "cpu", "--stop-after", "enter-model"]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert ran.stdout.count(" = attention ") == CONFIG.layers

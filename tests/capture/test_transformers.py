"""transformers' LlamaForCausalLM through the torch door: the graph of the config door, and torch's own logits."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llamac
from llamac.errors import LlamacError
from llamac.ir.graph import DataSource, Module
from llamac.ir.printer import print_module
from llamac.models.capture.captured import CapturedModel
from llamac.models.llama.graph import build_llama
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

Floats = NDArray[np.float32]
IDS = [3, 70, 0, 14, 14, 9, 55, 2, 31, 68, 1, 40]
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
"""Relative to the largest logit; in bf16 two orders of summation are that far apart (llama-family.md, section 8)."""

MODELS: dict[str, dict[str, Any]] = {
    "eager-f32": {},
    "sdpa-f32-llama3-tied": {"attention": "sdpa", "tied": True, "scaling": "llama3"},
    "eager-bf16-one-kv-head": {"dtype": "bfloat16", "kv_heads": 1, "group": 4, "scaling": "llama3"},
    "sdpa-bf16-tied-linear": {"attention": "sdpa", "dtype": "bfloat16", "tied": True, "scaling": "linear"},
    "sdpa-f32-no-sharing": {"attention": "sdpa", "group": 1, "kv_heads": 3},
}


def raised(module: Module, model: CapturedModel) -> str:
    run_pipeline(module, raise_and_fuse(plain_layers(model.config.layers)), PassContext(model.read_rows))
    return canonical_text(module)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_both_doors_end_in_the_same_graph(captured: Callable[..., CapturedModel], options: dict[str, Any]) -> None:
    model = captured(**options)
    torch_door = raised(model.fresh(), model)
    config_door = raised(build_llama(model.config, model.checkpoint.tensors), model)
    difference = "\n".join(difflib.unified_diff(config_door.splitlines(), torch_door.splitlines(), lineterm="", n=1))
    assert torch_door == config_door, difference[:3000]
    assert torch_door.count("= attention ") == 2 and torch_door.count("= rms_norm ") == 5


@pytest.mark.parametrize("cuts", [(), (1,), (4, 5)], ids=["whole", "one-then-rest", "three-steps"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_logits_are_those_of_torch(
    make_llama: Callable[..., Any],
    captured: Callable[..., CapturedModel],
    interpreted: Callable[..., Floats],
    options: dict[str, Any],
    cuts: tuple[int, ...],
) -> None:
    import torch

    with torch.no_grad():
        expected = make_llama(**options)(torch.tensor([IDS])).logits[0].float().numpy()
    found = interpreted(captured(**options), IDS, cuts)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[options.get("dtype", "float32")]


def test_the_capture_reads_what_torch_holds(
    make_llama: Callable[..., Any], captured: Callable[..., CapturedModel]
) -> None:
    model = captured(dtype="bfloat16", kv_heads=1, group=4, scaling="llama3")
    held = make_llama(dtype="bfloat16", kv_heads=1, group=4, scaling="llama3").model.layers[1].mlp.up_proj.weight
    rows = model.read_rows("layers.1.mlp.up", 3, 7)
    import torch

    assert rows.tobytes() == held[3:7].contiguous().view(torch.uint8).numpy().tobytes()
    stored = model.checkpoint.tensors["layers.1.mlp.up"]
    assert (stored.stored_name, stored.encoding) == ("model.layers.1.mlp.up_proj.weight", "bf16")
    assert "head" not in captured(attention="sdpa", tied=True, scaling="llama3").checkpoint.tensors


def test_rounded_frequencies_are_restored_and_noted(captured: Callable[..., CapturedModel]) -> None:
    model = captured(dtype="bfloat16", kv_heads=1, group=4, scaling="llama3")
    source = model.module.weights["rope.inverse_frequencies"].source
    assert isinstance(source, DataSource) and len(source.data) == 4 * 8
    assert any("inv_freq" in e["where"] and "rounded" in e["reason"] for e in model.checkpoint.ledger)


def test_other_frequencies_than_the_config_s_are_kept(make_llama: Callable[..., Any]) -> None:
    """What the module computes counts: a table that the config does not describe stays as it is."""
    import copy

    import torch

    changed = copy.deepcopy(make_llama())
    changed.model.rotary_emb.inv_freq = torch.linspace(1.0, 0.1, 8)
    source = llamac.capture(changed).module.weights["rope.inverse_frequencies"].source
    assert isinstance(source, DataSource)
    assert source.data == torch.linspace(1.0, 0.1, 8).numpy().tobytes()


def test_dtype_converts_a_copy(make_llama: Callable[..., Any]) -> None:
    import torch

    model = llamac.capture(make_llama(), dtype="bf16")
    assert model.config.dtype == "bf16" and model.checkpoint.tensors["embed"].encoding == "bf16"
    assert make_llama().lm_head.weight.dtype is torch.float32


def test_passes_may_change_a_copy_only(captured: Callable[..., CapturedModel]) -> None:
    model = captured()
    before = print_module(model.module)
    raised(model.fresh(), model)
    assert print_module(model.module) == before and model.module.level == "captured"


def test_the_module_stays_in_its_mode(make_llama: Callable[..., Any]) -> None:
    model = make_llama(scaling="linear")
    model.train()
    llamac.capture(model)
    assert model.training


def test_what_the_config_cannot_say_is_refused(make_llama: Callable[..., Any]) -> None:
    import copy

    biased = copy.deepcopy(make_llama())
    biased.config.attention_bias = True
    with pytest.raises(LlamacError, match="LLC0307"):
        llamac.capture(biased)

"""Every op by TVM against the interpreter, on the interpreter's own values: a difference is that op's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import some_ids
from tiny_llama4 import Tiny4, make_model, save_model

from llamac.backends.tvm.interpreting import TvmInterpreter
from llamac.backends.tvm.rules.table import RULES
from llamac.divergence import compare
from llamac.driver import CompiledGraph, compile_graph
from llamac.ir.interpreter import Interpreter
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.recording import Recording, interpret, is_quantized, module_text

BOUND = 2e-6
"""Of an op in f32, relative to its largest value; of int8 activations, beyond one step."""

QUICK = ["f32", "fp8", "int4"]
OTHERS = ["f16", "bf16", "keep", "fp8:f32-activations", "int8", "int8:g64:asym", "int4:g128:asym"]
SCHEMES = [*QUICK, *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in OTHERS)]

Recorded = Callable[[Checkpoint, str, str], Recording]


def _run(checkpoint: Checkpoint, compiled: CompiledGraph, kind: type[Interpreter], forced: Recording) -> Recording:
    ids = some_ids(131, 20)
    return interpret(
        kind.__name__, compiled.module, ids, lambda name: None, forced, read_rows=checkpoint.read_rows, kind=kind
    )


def _largest_difference(checkpoint: Checkpoint, scheme: str, kv: str) -> tuple[float, str, set[str]]:
    """The largest difference of any op, where it is, and the ops that were compared."""
    compiled = compile_graph(checkpoint, parse_quantization(scheme), kv, 64, None, [])
    nothing = Recording("", [], np.zeros(0, np.float32), {}, lambda name: None, "", False)
    reference = _run(checkpoint, compiled, Interpreter, nothing)
    forced = Recording(
        "the interpreter",
        reference.activations,
        reference.logits,
        reference.raw,
        reference.weight,
        module_text(compiled.module),
        is_quantized(compiled.module),
    )
    found = compare(forced, _run(checkpoint, compiled, TvmInterpreter, forced), some_ids(131, 20))
    assert found.forced and not found.unmatched
    worst = max(found.rows, key=lambda row: row.relative)
    ops = {op.opcode for _, op in compiled.module.ops()}
    return worst.relative, f"{worst.where} {worst.what}", ops


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dense_ops(scheme: str, tiny_source: Path) -> None:
    largest, where, _ = _largest_difference(open_source(tiny_source), scheme, "f16" if scheme == "keep" else "f32")
    assert largest < BOUND, where


@pytest.mark.parametrize("kv", [pytest.param("bf16", marks=pytest.mark.slow), "int8"])
def test_narrow_caches(kv: str, tiny_source: Path) -> None:
    largest, where, _ = _largest_difference(open_source(tiny_source), "f32", kv)
    assert largest < (BOUND if kv == "bf16" else 1e-2), where


@pytest.mark.parametrize("scheme", ["f32", pytest.param("int4", marks=pytest.mark.slow)])
def test_llama4_ops(scheme: str, tmp_path: Path) -> None:
    shape = Tiny4(chunk=8, experts=4, layers=4, seed=3)
    source = open_source(save_model(make_model(shape), shape, tmp_path / "checkpoint"))
    largest, where, ops = _largest_difference(source, scheme, "f32")
    assert largest < BOUND, where
    heads = {"f32": "qkv_dense", "int4": "qkv_grouped"}[scheme]  # with the norms of q and k and the temperature
    assert {"route", "gather_routed", "scatter_routed", heads} <= ops


def test_a_wrong_rule_shows(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: one op with another meaning is named."""

    def without_weight(k: Any) -> None:
        with k.code.each(k.rows()) as t, k.code.loop(k.width()) as i:
            k.store(0, [t, i], k.load(0, t, i) * k.load(1, i))

    monkeypatch.setitem(RULES, "rms_norm", without_weight)
    largest, where, _ = _largest_difference(open_source(tiny_source), "f32", "f32")
    assert largest > 1e-3 and "rms_norm" in where

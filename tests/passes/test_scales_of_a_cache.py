"""Scales that a checkpoint brings for its cache reach what writes and what reads it, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from ir_cases import read_cases

from llamac.errors import LlamacError
from llamac.ir.parser import parse_module
from llamac.passes.fuse_row_append import FuseRowAppend
from llamac.passes.quantize_kv import QuantizeKv
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass

CASE = next(read_cases(Path(__file__).with_name("fuse_row_append.ir")))


def _scaled(layer: int) -> PassContext:
    return PassContext(cache_scales={layer: (0.5, 2.0)})


def test_behind_a_fusion_they_are_refused() -> None:
    """A fused projection writes keys as they are: attention alone would multiply with the scales."""
    module = parse_module(CASE.input)
    run_pass(module, FuseRowAppend(), PassContext())
    with pytest.raises(LlamacError) as caught:
        run_pass(module, QuantizeKv("e4m3fn"), _scaled(0))
    assert caught.value.code == "LLC0505" and "qkv_rows16 cannot divide by the scales" in caught.value.reason


def test_in_front_of_it_all_have_them() -> None:
    module = parse_module(CASE.input)
    run_pass(module, QuantizeKv("e4m3fn"), _scaled(0))
    scaled = [op.opcode for op in module.step.ops if op.operands[-1].name == "layers.0.attn.kv_scales"]
    assert scaled == ["rope_append", "attend"]


def test_of_a_layer_without_a_cache_they_are_refused() -> None:
    with pytest.raises(LlamacError) as caught:
        run_pass(parse_module(CASE.input), QuantizeKv("e4m3fn"), _scaled(7))
    assert caught.value.code == "LLC0505" and caught.value.where == "layers.7"

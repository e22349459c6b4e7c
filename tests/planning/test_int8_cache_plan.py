"""`llamac plan --kv int8` against the compiler: pages with their scales, vision tokens as they are, GPUs without."""

from __future__ import annotations

from dataclasses import replace

import pytest
from subjects import request, shortened, small_llama4, small_pictures, subject

from llamac.driver import compile_graph
from llamac.ir.kv_groups import kv_groups as compiled_groups
from llamac.models.llama.config import LlamaConfig
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.planning.kv import kv_groups
from llamac.planning.machine import find_machine
from llamac.planning.plan import make_plan

CONFIGS = {
    "tiny-llama3": shortened("tiny-llama3", 2),
    "llama-4-scout": small_llama4("llama-4-scout"),
    "llama-3.2-11b-vision": small_pictures("llama-3.2-11b-vision"),
}
"""One kind of layer, whole contexts and chunks, and vision tokens beside text."""


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_pages_are_those_of_the_compiled_graph(config: LlamaConfig) -> None:
    images = 1 if config.cross_layers else 0
    planned = kv_groups(config, 1000, 64, "int8", images=images)
    compiled = compile_graph(random_checkpoint(config, 0), parse_quantization("keep"), "int8", 64, None, [])
    caches = [group.type for group in compiled_groups(compiled.module.step)]
    assert sorted(group.page_bytes for group in planned) == sorted(cache.page_bytes for cache in caches)
    assert [cache.scale is None for cache in caches] == [cache.cross for cache in caches]


def test_vision_tokens_that_stay_are_in_the_ledger() -> None:
    config, ledger = CONFIGS["llama-3.2-11b-vision"], []
    compile_graph(random_checkpoint(config, 0), parse_quantization("keep"), "int8", 64, None, ledger)
    (entry,) = [entry for entry in ledger if entry.where == "%cache.cross"]
    assert entry.kind == "unquantized" and "vision tokens" in entry.reason


def test_a_gpu_has_no_int8_cache() -> None:
    asked = replace(request(subject("llama-3.2-1b").config), kv_dtype="int8")
    for machine, is_estimated in (("x86-64-v3", False), ("h100", True)):
        plan = make_plan(subject("llama-3.2-1b"), asked, find_machine(machine), limits=False)
        assert ("is not compiled for it" in plan.memory.estimated.get("kv", "")) == is_estimated

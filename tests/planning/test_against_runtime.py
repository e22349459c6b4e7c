"""The runtime allocates what the plan prints: a tiny model is compiled and loaded, and its memory is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from subjects import request, small_pictures

import llamac
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.planning.kv import kv_groups
from llamac.planning.machine import find_machine
from llamac.planning.plan import Subject, make_plan
from llamac.runtime.kv import PagePool


@pytest.mark.parametrize(("context", "sequences", "scheme"), [(512, 1, "keep"), (300, 3, "int4")])
def test_a_loaded_model_has_the_planned_memory(tmp_path: Path, context: int, sequences: int, scheme: str) -> None:
    path = tmp_path / "tiny.llamac"
    llamac.compile("tiny", random_weights=1, quantize=scheme, output=path, validate=False, max_step_tokens=64)
    config = preset("tiny")
    asked = request(config, context=context, batch=sequences, quantization=parse_quantization(scheme))
    plan = make_plan(Subject("tiny", config, {}), replace(asked, max_step_tokens=64), find_machine("cpu"))
    with llamac.load(path, context=context, sequences=sequences, threads=1) as model:
        memory, device = model.manifest["memory"], model._device
        allocated = sum(buffer.nbytes for buffer in device._buffers)
    assert allocated == plan.memory.weights + plan.memory.kv + plan.memory.arena
    assert (memory["weight_bytes"], memory["arena_bytes"]) == (plan.memory.weights, plan.memory.arena)
    assert memory["logits_bytes"] * sequences == plan.memory.logits


@pytest.mark.parametrize(
    ("name", "loads"), [("llama-3.2-11b-vision", ((1, 1), (3, 2))), ("llama-guard-4-12b", ((0, 1),))]
)
def test_a_loaded_model_that_sees_pictures(tmp_path: Path, name: str, loads: tuple[tuple[int, int], ...]) -> None:
    path, config = tmp_path / "pictures.llamac", small_pictures(name)
    checkpoint = random_checkpoint(config, 1)
    llamac.compile(checkpoint, quantize="int8", output=path, validate=False, max_step_tokens=64)
    asked = request(config, context=1000, quantization=parse_quantization("int8"), max_step_tokens=64)
    subject, machine = Subject(name, config, {}), find_machine("cpu")
    for images, sequences in loads:
        plan = make_plan(subject, replace(asked, batch=sequences, images=images), machine)
        with llamac.load(path, context=1000, sequences=sequences, images=max(images, 1), threads=1) as model:
            allocated = sum(buffer.nbytes for buffer in model._device._buffers)
        assert allocated == plan.memory.weights + plan.memory.kv + plan.memory.arena


@pytest.mark.parametrize(("chunk", "steps"), [(8192, 512), (8192, 1), (8, 64), (300, 512), (256, 256), (257, 3)])
@pytest.mark.parametrize("context", [1, 100, 8192, 9000, 1 << 20])
def test_chunked_layers_keep_the_pages_of_the_runtime(chunk: int, steps: int, context: int) -> None:
    config = preset("llama-4-scout")
    assert config.attention is not None
    config = replace(config, attention=replace(config.attention, chunk=chunk))
    planned = {group.kind: group.pages for group in kv_groups(config, context, steps, "f16")}
    pools = {"full": PagePool(0, 256, 0, steps), "chunked": PagePool(0, 256, chunk, steps)}
    assert planned == {kind: pool.pages_for(context) for kind, pool in pools.items()}

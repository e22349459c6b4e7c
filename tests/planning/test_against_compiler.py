"""The plan against the compiler: what `llamac compile` decides is what was planned, to the byte."""

from __future__ import annotations

import pytest
from subjects import SCHEMES, request, shortened, small_llama4

from llamac.analysis.cost import StepShape, module_cost, total
from llamac.analysis.weight_plan import bytes_per_token, member_bytes, plan_weights
from llamac.driver import CompiledGraph, compile_graph
from llamac.errors import LlamacError
from llamac.gpu_side import arena_on
from llamac.ir.types import CacheType
from llamac.layer_kinds import is_uniform, layer_counts
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import embedded_model, open_source
from llamac.passes.pipelines import cpu_pipeline, parse_quantization
from llamac.passes.plan_memory import PlanMemory
from llamac.passes.roll_layers import RollLayers
from llamac.planning.formats import PANEL16, ROWS16
from llamac.planning.kv import kv_groups
from llamac.planning.machine import find_machine
from llamac.planning.plan import Subject, make_plan
from llamac.planning.weights import bytes_by_role, read_bytes, weight_parts
from llamac.planning.work import Load, decode_work, linear_operations, prefill_work
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pipeline

SHAPES = (("tiny", 2), ("tiny-untied", 2), ("tiny-llama3", 3), ("smollm2-135m", 2))


def compiled(checkpoint: Checkpoint, scheme: str, steps: int = 512) -> CompiledGraph:
    return compile_graph(checkpoint, parse_quantization(scheme), None, steps, None, [])


def subject_of(checkpoint: Checkpoint) -> Subject:
    encodings = {name: tensor.encoding for name, tensor in checkpoint.tensors.items()}
    return Subject(checkpoint.name, checkpoint.config, encodings)


def check(checkpoint: Checkpoint, scheme: str, steps: int = 512) -> None:
    """Weights, what a token reads of them, and the arena are those of the compiled graph."""
    graph, subject = compiled(checkpoint, scheme, steps), subject_of(checkpoint)
    quantization = parse_quantization(scheme)
    asked = request(checkpoint.config, quantization=quantization, max_step_tokens=steps)
    plan = make_plan(subject, asked, find_machine("x86-64-v3"), limits=False)
    read = read_bytes(plan.parts, subject.config, PANEL16, 1)
    found = (plan.memory.weights, plan.memory.arena, read)
    limits = graph.limits
    assert found == (limits.weight_bytes, limits.arena_bytes, bytes_per_token(graph.module, graph.placed))
    assert plan.memory.estimated.keys() == {"code"}
    cache = graph.module.step.argument("cache").cache
    assert [group.page_bytes for group in plan.groups] == [cache.page_bytes] or scheme == "f32"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("name", "layers"), [("tiny-untied", 2), ("tiny-llama3", 3)])
def test_sizes_on_a_gpu(name: str, layers: int, scheme: str) -> None:
    """Weights in rows, what a token reads of them, and the arena of the largest bucket."""
    checkpoint = random_checkpoint(shortened(name, layers), 0)
    quantization, subject = parse_quantization(scheme), subject_of(checkpoint)
    graph = compile_graph(checkpoint, quantization, None, 512, None, [], kind="gpu")
    asked = request(checkpoint.config, quantization=quantization, max_step_tokens=512)
    plan = make_plan(subject, asked, find_machine("h100"), limits=False)
    found = (plan.memory.weights, plan.memory.arena, read_bytes(plan.parts, subject.config, ROWS16, 1))
    read = bytes_per_token(graph.module, graph.placed)
    assert found == (graph.limits.weight_bytes, arena_on(graph, "h100"), read)
    assert plan.memory.estimated.keys() == {"code"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_sizes(name: str, layers: int, scheme: str) -> None:
    check(random_checkpoint(shortened(name, layers), 0), scheme)


@pytest.mark.parametrize("steps", [1, 7, 4096])
def test_sizes_of_other_steps(steps: int) -> None:
    check(random_checkpoint(shortened("tiny-llama3", 5), 0), "int4:asym", steps)


@pytest.mark.parametrize("scheme", ["keep", "fp8", "int4"])
def test_sizes_of_a_gguf_file(scheme: str) -> None:
    try:
        embedded_model()
    except LlamacError as error:
        pytest.skip(str(error))
    check(open_source("smollm2-135m"), scheme)


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick", "llama-guard-4-12b"])
@pytest.mark.parametrize("scheme", ["keep", "bf16", "fp8", "int8:g64", "int4:asym"])
def test_weights_and_caches_of_mixtures(name: str, scheme: str) -> None:
    config, quantization = small_llama4(name), parse_quantization(scheme)
    checkpoint = random_checkpoint(config, 0)
    module = build_graph(config, checkpoint.tensors)
    steps = cpu_pipeline(layer_counts(config), quantization, "f16", 64, is_uniform(config, checkpoint.tensors))
    packed = [step for step in steps if not isinstance(step.run, RollLayers | PlanMemory)]
    run_pipeline(module, packed, PassContext(checkpoint.read_rows, []))
    parts = weight_parts(config, {}, quantization)
    assert sum(bytes_by_role(parts, PANEL16).values()) == member_bytes(plan_weights(module))
    caches = [argument.cache for argument in module.step.arguments if isinstance(argument.type, CacheType)]
    found = {group.kind: (group.layers, group.page_bytes) for group in kv_groups(config, 4096, 64, "f16")}
    assert found == {"chunked" if c.chunk else "full": (c.layers, c.page_bytes) for c in caches}


@pytest.mark.parametrize("scheme", ["keep", "fp8", "int8", "int4:asym"])
def test_work_is_that_of_the_compiled_graph(scheme: str) -> None:
    checkpoint = random_checkpoint(shortened("tiny-untied", 2), 0)
    graph, config = compiled(checkpoint, scheme), checkpoint.config
    parts = weight_parts(config, {}, parse_quantization(scheme))
    plan = make_plan(subject_of(checkpoint), request(config), find_machine("aarch64"), limits=False)
    load = Load(config, parts, plan.groups, PANEL16, 512)
    counted = module_cost(graph.module, StepShape(1, 300))
    decode = decode_work(load, 1, 300)
    products = sum(counted[name].flops for name in counted if name.startswith(("linear", "gated_linear", "qkv")))
    assert sum(linear_operations(load, 1, 1).values()) == products
    assert decode.total_operations == products + counted["attend"].flops
    vectors = sum(part.count * part.one(PANEL16) for part in parts if part.use == "vector")
    counts = total(counted)  # it has the vectors among the activations
    assert (decode.weight_bytes - vectors, decode.cache_bytes) == (counts.weight_bytes, counts.cache_bytes)
    prefill, rows = prefill_work(load, 64), module_cost(graph.module, StepShape(64, 32))
    products = sum(rows[name].flops for name in rows if name.startswith(("linear", "gated_linear", "qkv")))
    # The compiler's count takes 32 keys a row, the plan the exact (64 + 1) / 2.
    assert prefill.total_operations == products + rows["attend"].flops * 65 // 64
    assert prefill.weight_bytes - vectors == total(rows).weight_bytes

"""Launch plans of real models, kernels described but not compiled: launches a layer, bytes a step, memory in bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from planned_models import Planned, planned
from traffic import Step, moved

from llamac.analysis.weight_plan import bytes_per_token
from llamac.artifact.launch_plan import Bucket, Pointer, evaluate
from llamac.ir.kv_groups import kv_groups
from llamac.models.sources import open_source
from llamac.target import GPUS

UNITS = GPUS["h100"].units


LAYERS = 4
"""Of each model: the real widths, and as many layers as it takes to have every kind of them."""


@cache
def model(name: str, quantize: str, machine: str = "sm_90", max_tokens: int = 8) -> Planned:
    config = replace(open_source(name, random_weights=0).config, layers=LAYERS, vision=None)
    if config.moe is not None:
        config = replace(config, moe=replace(config.moe, layers=tuple(range(LAYERS))))
    if config.attention is not None:
        config = replace(config, attention=replace(config.attention, unrotated=(LAYERS - 1,)))
    return planned(config, machine, quantize, max_tokens=max_tokens, units=UNITS)


def by_layer(bucket: Bucket) -> Counter[str]:
    """Launches of each layer."""
    return Counter(".".join(launch.where.split(".")[:2]) for launch in bucket.launches if "layers." in launch.where)


@pytest.mark.parametrize(("name", "quantize"), [("llama-3.2-1b", "keep"), ("llama-3.1-8b", "int4:g128")])
def test_a_dense_layer_decodes_in_five_launches(name: str, quantize: str) -> None:
    """Whatever the batch; once a step come the embedding, the angles and the head."""
    for bucket in model(name, quantize, max_tokens=512).plan.buckets:
        if bucket.kind == "decode":
            assert set(by_layer(bucket).values()) == {5}, bucket.name
            assert len(bucket.launches) == 5 * len(by_layer(bucket)) + 2
            assert len(bucket.tails["logits"]) == 1 and len(bucket.tails["greedy"]) == 2
            assert len(bucket.tails["sample"]) == 3


def test_a_layer_with_experts_decodes_in_nine_launches() -> None:
    plan = model("llama-4-scout", "int4").plan
    for bucket in plan.buckets:
        if bucket.kind == "decode":
            assert set(by_layer(bucket).values()) == {9}, bucket.name


@pytest.mark.parametrize("context", [1024, 32768])
@pytest.mark.parametrize(
    ("name", "quantize"),
    [("llama-3.2-1b", "keep"), ("llama-3.1-8b", "fp8"), ("llama-3.1-8b", "int4:g128"), ("llama-4-scout", "int4")],
)
def test_bytes_of_a_decode_step(name: str, quantize: str, context: int) -> None:
    """Within 3% of the weights that a token needs and the keys and values that it sees."""
    found = model(name, quantize)
    bucket = next(b for b in found.plan.buckets if b.name == "decode-1")
    graph, placed = found.compiled.module, found.compiled.placed
    seen = [min(context, g.type.chunk or context) * g.type.page_bytes // g.type.page for g in kv_groups(graph.step)]
    floor = bytes_per_token(graph, placed) + sum(seen)
    for result in ("greedy", "sample"):
        actual = moved(found.plan, bucket.steps(result), Step(1, context))
        assert floor <= actual <= 1.03 * floor, f"{result}: {actual / floor:.4f} of the floor"


def test_every_address_lies_in_its_buffer() -> None:
    """Weights and scratch are aligned for 16-byte loads; what a prefill step is launched over is never empty."""
    for machine in ("sm_90", "gfx942"):
        plan = model("llama-3.2-1b", "fp8", machine, 512).plan
        sizes = {b.name: b.bytes for b in plan.buffers}
        for bucket, launch in plan.all_launches():
            for argument in launch.arguments:
                if isinstance(argument, Pointer) and isinstance(size := sizes[argument.buffer], int):
                    assert argument.offset < size and argument.offset % 256 == 0
            for tokens in (1, bucket.tokens):
                bound = {"tokens": tokens, "rows": 1, "sequences": 2, "table_width": 4}
                assert all(evaluate(size, bound) >= 1 for size in launch.grid)


def test_no_launch_depends_on_the_host() -> None:
    """Within a decode bucket every grid and every scalar but the width of the tables is a number."""
    for bucket, launch in model("llama-3.1-8b", "fp8").plan.all_launches():
        if bucket.is_replayed:
            assert all(isinstance(size, int) for size in launch.grid)
            scalars = [a for a in launch.arguments if not isinstance(a, Pointer | int)]
            assert set(scalars) <= {"table_width"}

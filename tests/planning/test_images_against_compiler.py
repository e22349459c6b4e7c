"""Models that see pictures, against the compiler: the encoder's weights, the cache of images and the shared arena."""

from __future__ import annotations

from dataclasses import replace

import pytest
from subjects import request, small_pictures

from llamac.driver import compile_graph
from llamac.gpu_side import arena_on
from llamac.ir.kv_groups import kv_groups as compiled_groups
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import small_tensors
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.planning.few_layers import few_layers
from llamac.planning.formats import PANEL16
from llamac.planning.machine import find_machine
from llamac.planning.plan import Plan, Subject, make_plan
from llamac.planning.weights import bytes_by_role, counted_image_parts, read_bytes

MLLAMA, SCOUT, GUARD = "llama-3.2-11b-vision", "llama-4-scout", "llama-guard-4-12b"
CASES = [
    *((MLLAMA, scheme) for scheme in ("keep", "f32", "int8:g64", "int4:asym")),
    *((SCOUT, scheme) for scheme in ("f16", "int4:asym")),
    (GUARD, "fp8"),
]


def check(checkpoint: Checkpoint, scheme: str, steps: int = 64) -> Plan:
    """The plan of a checkpoint's headers, which is to be what the compiler decides."""
    config, quantization = checkpoint.config, parse_quantization(scheme)
    graph = compile_graph(checkpoint, quantization, None, steps, None, [])
    encodings = {name: tensor.encoding for name, tensor in checkpoint.tensors.items()}
    images = int(bool(config.cross_layers))
    kv_dtype = "f32" if scheme == "f32" else "f16"
    asked = request(config, quantization=quantization, max_step_tokens=steps, images=images, kv_dtype=kv_dtype)
    plan = make_plan(Subject(checkpoint.name, config, encodings), asked, find_machine("x86-64-v3"), limits=False)
    assert (plan.memory.weights, plan.memory.arena) == (graph.limits.weight_bytes, graph.limits.arena_bytes)
    only_read = sum(item.nbytes for item in graph.placed if item.weight in set(graph.module.weights.values()))
    parts = [part for part in plan.parts if part.use not in ("image", "lookup")]
    embedding = sum(part.one(PANEL16) for part in plan.parts if part.use == "lookup")
    assert sum(part.count * part.one(PANEL16) for part in parts) + embedding == only_read
    caches = [group.type for group in compiled_groups(graph.module.step)]
    found = {group.kind: (group.layers, group.page_tokens, group.page_bytes) for group in plan.groups}
    kinds = ["cross" if cache.cross else "chunked" if cache.chunk else "full" for cache in caches]
    assert found == {k: (c.layers, c.page, c.page_bytes) for k, c in zip(kinds, caches, strict=True)}
    assert plan.memory.estimated.keys() == {"code"}
    return plan


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_sizes(name: str, scheme: str) -> None:
    plan = check(random_checkpoint(small_pictures(name), 0), scheme)
    roles = bytes_by_role(plan.parts, PANEL16)
    assert roles["vision"] > 0 and ("cross-attention" in roles) == bool(plan.subject.config.cross_layers)


def test_a_bare_config_has_an_encoder() -> None:
    plan = check(random_checkpoint(small_pictures(GUARD), 0), "keep")
    bare = make_plan(Subject(GUARD, plan.subject.config, {}), plan.request, plan.machine, limits=False)
    assert bare.memory == plan.memory


@pytest.mark.parametrize(("name", "steps"), [(MLLAMA, 1 << 15), (GUARD, 1)])
def test_the_larger_arena_counts(name: str, steps: int) -> None:
    """Of the step where it is long, of the encoder where it is short."""
    config = small_pictures(name)
    plan = check(random_checkpoint(config, 0), "bf16", steps)
    text = Subject(name, config, dict.fromkeys(("embed",), "bf16"))
    alone = make_plan(text, plan.request, plan.machine, limits=False)
    assert not any(part.role == "vision" for part in alone.parts)
    assert (alone.memory.arena == plan.memory.arena) == (steps > 1)


def stored_as(config: LlamaConfig, encodings: dict[str, str]) -> Checkpoint:
    """A checkpoint of `config` whose weights are stored so; they are not read."""
    return replace(random_checkpoint(config, 0), tensors=small_tensors(config, encodings))


@pytest.mark.parametrize(("name", "scheme"), [(MLLAMA, "keep"), (MLLAMA, "f16"), (SCOUT, "int4")])
def test_blocks_that_are_stored_unlike(name: str, scheme: str) -> None:
    config = small_pictures(name)
    encodings = {name: tensor.encoding for name, tensor in random_checkpoint(config, 0).tensors.items()}
    unlike = ("vision.layers.2.", "vision.layers.3.", "vision.global_layers.1.", "layers.3.", "vision.projector")
    encodings |= {name: "f32" for name in encodings if name.startswith(unlike)}
    check(stored_as(config, encodings), scheme)


def test_grids_of_places() -> None:
    config = small_pictures(MLLAMA)
    encodings = {name: tensor.encoding for name, tensor in random_checkpoint(config, 0).tensors.items()}
    for name in ("vision.pre_tile", "vision.tile_position", "vision.post_tile"):
        encodings[f"{name}.grid"] = encodings.pop(name)
    check(stored_as(config, encodings), "int8")


@pytest.mark.parametrize("name", [MLLAMA, GUARD])
def test_a_checkpoint_of_the_text_alone(name: str) -> None:
    config = small_pictures(name)
    encodings = {name: tensor.encoding for name, tensor in random_checkpoint(config, 0).tensors.items()}
    text = {name: encoding for name, encoding in encodings.items() if not name.startswith("vision.")}
    plan = check(stored_as(config, text), "int8")
    assert not any(part.use == "image" for part in plan.parts)


def test_few_layers_have_the_arena_of_the_whole_encoder() -> None:
    """The blocks of Llama 3.2 Vision at their true width: 7 of 32, and 2 of 8 global ones."""
    config = preset(MLLAMA)
    config = replace(config, layers=4, cross_layers=(1, 3))
    few = few_layers(config, {})
    assert (few.config.vision.layers, few.config.vision.global_layers) == (7, 2)  # type: ignore[union-attr]
    assert (few.count("vision.layers.0.attn.o.packed"), few.count("vision.layers.6.attn.o.packed")) == (32 - 6, 1)
    check(random_checkpoint(config, 0), "int4", 512)


@pytest.mark.parametrize(("name", "scheme"), [(MLLAMA, "int4"), (GUARD, "f32")])
def test_counted_weights_are_about_the_placed_ones(name: str, scheme: str) -> None:
    """GPUs get what is counted from shapes; without padding, and without tables that passes compute."""
    config, quantization = preset(name), parse_quantization(scheme)
    asked = request(config, quantization=quantization)
    plan = make_plan(Subject(name, config, {}), asked, find_machine("x86-64-v4"), limits=False)
    placed = bytes_by_role(tuple(part for part in plan.parts if part.use == "image"), PANEL16)
    counted = bytes_by_role(counted_image_parts(config, {}, quantization), "gpu-rows16")
    assert counted == {role: pytest.approx(size, rel=2e-3) for role, size in placed.items()}
    assert read_bytes(plan.parts, config, PANEL16, 1) < plan.memory.weights - sum(placed.values())


@pytest.mark.parametrize("name", [MLLAMA, GUARD])
def test_on_a_gpu(name: str) -> None:
    """Weights in rows and the arena that steps and the encoder share, as the compiler plans them."""
    checkpoint, quantization = random_checkpoint(small_pictures(name), 0), parse_quantization("int4")
    graph = compile_graph(checkpoint, quantization, None, 64, None, [], kind="gpu")
    config, encodings = checkpoint.config, {name: tensor.encoding for name, tensor in checkpoint.tensors.items()}
    asked = request(config, quantization=quantization, max_step_tokens=64, images=int(bool(config.cross_layers)))
    plan = make_plan(Subject(name, config, encodings), asked, find_machine("h100"), limits=False)
    assert (plan.memory.weights, plan.memory.arena) == (graph.limits.weight_bytes, arena_on(graph, "h100"))
    assert bytes_by_role(plan.parts, "gpu-rows16")["vision"] > 0 and "arena" not in plan.memory.estimated

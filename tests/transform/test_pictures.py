"""Validation of pipelines whose models take pictures: what holds, and wrong passes that only a picture shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llamac.certificate import PAGE, validate
from llamac.errors import LlamacError
from llamac.ir.graph import Module, Op
from llamac.ir.kv_groups import empty_caches, kv_groups
from llamac.ir.levels import LEVELS
from llamac.models.checkpoint import StoredTensor
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import shrink_config, shrink_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.models.presets import preset
from llamac.passes.pipelines import parse_quantization
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pictures import Pictures
from llamac.transform.pipeline import Step

NAMES = ["llama-4-scout", "llama-3.2-11b-vision"]


def small(name: str, encoding: str = "bf16") -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    config = preset(name)
    shapes = expected_shapes(config)
    tensors = {n: StoredTensor(n, n, shape, encoding, Path(), 0, 0) for n, shape in shapes.items()}
    found = shrink_config(config, tensors)
    return found, shrink_tensors(config, found, tensors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["keep", "int4"])
def test_the_pipeline_holds(name: str, scheme: str) -> None:
    verdicts, _ = validate(*small(name), parse_quantization(scheme), "f16", 3)
    assert all(v.passed for v in verdicts) and len(verdicts) > 30


def test_every_kind_of_layer_is_there_twice() -> None:
    config, tensors = small(NAMES[1])
    assert (config.layers, config.cross_layers) == (4, (1, 3))
    assert set(tensors) == set(expected_shapes(config))


def test_storage_follows_the_layers_role() -> None:
    """A small model's layer stands for one of its kind, though their numbers differ."""
    config = preset(NAMES[1])
    shapes = expected_shapes(config)
    odd = {"layers.1.attn.q": "f32", "layers.8.cross.q": "f16"}
    tensors = {n: StoredTensor(n, n, s, odd.get(n, "bf16"), Path(), 0, 0) for n, s in shapes.items()}
    found = shrink_tensors(config, shrink_config(config, tensors), tensors)
    assert found["layers.2.attn.q"].encoding == "f32" and found["layers.3.cross.q"].encoding == "f16"
    assert {t.encoding for n, t in found.items() if n not in ("layers.2.attn.q", "layers.3.cross.q")} == {"bf16"}


# Wrong passes.


@dataclass(frozen=True)
class Wrong(Pass):
    """Changes every op of one kind, and reports it."""

    opcode: str = ""
    change: Callable[[Op], None] = lambda op: None

    name = "wrong"
    requires = LEVELS

    def run(self, module: Module, context: PassContext) -> PassResult:
        ops = [op for _, op in module.ops() if op.opcode == self.opcode]
        for op in ops:
            self.change(op)
        return PassResult({"op": len(ops)})


def _swap(first: int, second: int) -> Callable[[Op], None]:
    def change(op: Op) -> None:
        a, b = op.operands[first], op.operands[second]
        op.set_operand(first, b)
        op.set_operand(second, a)

    return change


def _next_layer(op: Op) -> None:
    layer = op.attributes["layer"]
    assert isinstance(layer, int)
    op.attributes["layer"] = 1 - layer


MUTATIONS: dict[str, tuple[str, str, str, Callable[[Op], None]]] = {
    "ranges the wrong way round": (NAMES[1], "fuse-gated-add", "cross_attention", _swap(3, 4)),
    "keys for values": (NAMES[1], "fuse-cross-attention", "cross_attention", _swap(1, 2)),
    "rows that see nothing get their term": (NAMES[1], "fuse-gated-add", "gated_add", _swap(3, 4)),
    "term and residual exchanged": (NAMES[1], "fuse-gated-add", "gated_add", _swap(0, 1)),
    "the other layer's place": (NAMES[1], "lower-kv-cache", "attend_range", _next_layer),
    "stop before start": (NAMES[1], "lower-kv-cache", "attend_range", _swap(2, 3)),
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_wrong_pass_is_found(kind: str) -> None:
    name, after, opcode, change = MUTATIONS[kind]

    def edit(steps: list[Step]) -> list[Step]:
        place = next(n for n, step in enumerate(steps) if step.run.name == after)
        return [*steps[: place + 1], Step(Wrong(opcode, change)), *steps[place + 1 :]]

    with pytest.raises(LlamacError, match="LLC0507 wrong"):
        validate(*small(name), parse_quantization("keep"), "f32", 3, edit)


def test_pictures_that_are_left_out_are_missed() -> None:
    def drop(op: Op) -> None:
        for user in list(op.result.users):
            for place, operand in enumerate(user.operands):
                if operand is op.result:
                    user.set_operand(place, op.operands[0])

    def edit(steps: list[Step]) -> list[Step]:
        place = next(n for n, step in enumerate(steps) if step.run.name == "raise-merge-rows")
        return [*steps[: place + 1], Step(Wrong("merge_rows", drop)), *steps[place + 1 :]]

    with pytest.raises(LlamacError, match="LLC0507 wrong"):
        validate(*small(NAMES[0]), parse_quantization("keep"), "f32", 3, edit)


# The scenario itself.


def test_a_scenario_shows_the_same_at_every_level() -> None:
    """Vision tokens as arguments and in pages are the same numbers; ranges do not depend on how rows are asked for."""
    config, tensors = small(NAMES[1], "f32")
    graph = build_graph(config, tensors).step
    pictures = Pictures((4, 9, 5), PAGE, 1)
    whole, part = pictures.of_sequence(graph, 1, 0, 9), pictures.of_sequence(graph, 1, 4, 9)
    assert (whole["vision_start"][4:] == part["vision_start"]).all()
    rows = pictures.of_rows(graph, [(1, 8), (0, 2), (1, 0)])
    assert rows["vision_stop"][0] == whole["vision_stop"][8] and rows["vision_stop"][2] == whole["vision_stop"][0]
    ranges = whole["vision_stop"] - whole["vision_start"]
    assert pictures.tokens(1) == 1 and pictures.tokens(2) == 0 and (ranges <= 1).all()


def test_vision_tokens_lie_in_their_pages() -> None:
    from llamac.layer_kinds import layer_counts
    from llamac.passes.pipelines import cpu_pipeline
    from llamac.transform.pipeline import run_pipeline

    config, tensors = small(NAMES[1], "f32")
    module = build_graph(config, tensors)
    pictures = Pictures((3,), PAGE, 1)
    given = pictures.of_sequence(module.step, 0, 0, 3)
    steps = cpu_pipeline(layer_counts(config), parse_quantization("keep"), "f32", 8, page=PAGE)
    run_pipeline(module, steps, PassContext())
    group = next(g for g in kv_groups(module.step) if g.type.cross)
    state = empty_caches(module.step, [2, 2], True)[group.cache.name]
    pictures.fill(group, state, np.array([[1, 0]]))
    assert pictures.tokens(0) == PAGE + 1 and group.type.page == PAGE
    assert (state.keys[1, 1, :, 2] == given["cross_k.3"][:, 2]).all()
    assert (state.values[0, 0, :, 0] == given["cross_v.1"][:, PAGE]).all()

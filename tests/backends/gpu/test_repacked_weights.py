"""Weights of one layout from those of the other: byte for byte what packing the checkpoint's own gives."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from planned_models import Tiny

from llamac.driver import CompiledGraph, compile_graph
from llamac.errors import LlamacError
from llamac.ir.evaluator import RowReader, WeightEvaluator
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.materialize import write_weights
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.shrink import SyntheticWeights, shrink_config, small_tensors
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.repack import StoredWeights

SCHEMES = ["f32", "f16", "bf16", "keep", "fp8", "int8", "int8:g128:asym", "int4", "int4:g64", "int4:asym"]
BLOCKS = ["q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q5_k", "q6_k"]


def member(graph: CompiledGraph, evaluator: WeightEvaluator, memory: int = 1 << 26) -> np.ndarray:
    """The weights of a graph as they lie in the file."""
    sink = io.BytesIO()
    write_weights(graph.placed, evaluator, sink, memory, lambda nbytes: None)
    return np.frombuffer(sink.getvalue(), np.uint8)


def both(checkpoint: Checkpoint, scheme: str) -> dict[str, CompiledGraph]:
    """The model on each side."""
    q = parse_quantization(scheme)
    return {kind: compile_graph(checkpoint, q, None, 8, None, [], kind=kind) for kind in ("cpu", "gpu")}


def repacked(sides: dict[str, CompiledGraph], read: RowReader, source: str, wanted: str) -> np.ndarray:
    """The weights of `wanted` from those of `source`, in blocks of few rows."""
    held = StoredWeights(sides[source].placed, member(sides[source], WeightEvaluator(read)))
    for item in sides[wanted].placed:
        held.check(item.weight)
    return member(sides[wanted], held, 1 << 16)


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_both_ways(scheme: str, experts: int) -> None:
    """Odd sizes, groups that end early, panels that are half empty, stacks of experts."""
    config = Tiny("bf16", hidden=48 if experts else 40, experts=experts, tied=experts == 0).config()
    if config.moe is not None:  # panels hold 16 rows of one expert
        config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, intermediate_size=32))
    checkpoint = random_checkpoint(config, 1)
    sides = both(checkpoint, scheme)
    for source, wanted in (("cpu", "gpu"), ("gpu", "cpu")):
        found = repacked(sides, checkpoint.read_rows, source, wanted)
        expected = member(sides[wanted], WeightEvaluator(checkpoint.read_rows))
        np.testing.assert_array_equal(found, expected, f"{source} to {wanted}")


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_gguf(block: str) -> None:
    """Integers that the checkpoint holds are carried over as they are."""
    config = Tiny("f32", hidden=256, inner=256, heads=4).config()
    plain = {name: t.encoding for name, t in random_checkpoint(config, 1).tensors.items()}
    encodings = {name: block if not name.endswith("norm") else "f32" for name in plain}
    small = shrink_config(config, small_tensors(dataclasses.replace(config, layers=1), encodings))
    tensors = small_tensors(small, encodings)
    weights = SyntheticWeights(tensors, 3)
    checkpoint = dataclasses.replace(random_checkpoint(small, 1), tensors=tensors)
    sides = both(checkpoint, "keep")
    expected = member(sides["gpu"], WeightEvaluator(weights.read_rows))
    np.testing.assert_array_equal(repacked(sides, weights.read_rows, "cpu", "gpu"), expected)


def test_the_sign_of_zero_is_all_that_is_lost() -> None:
    """e4m3fn in rows has no negative zero, so panels made from rows have none: no value differs."""
    checkpoint = random_checkpoint(dataclasses.replace(Tiny("bf16").config(), vocab_size=64), 1)
    sides = both(checkpoint, "fp8")

    def read(name: str, lo: int, hi: int) -> np.ndarray:
        rows = checkpoint.read_rows(name, lo, hi).copy()
        if rows.shape[1] > 8:
            rows[:, 2:4] = (0, 0x80)  # -0.0
        return rows

    found, expected = repacked(sides, read, "gpu", "cpu"), member(sides["cpu"], WeightEvaluator(read))
    differs = found != expected
    assert differs.any() and (found[differs] == 0).all() and (expected[differs] == 0x80).all()


def test_another_quantization_is_refused() -> None:
    """Weights that only look alike are not taken for one another."""
    checkpoint = random_checkpoint(Tiny("bf16").config(), 1)
    there, wanted = both(checkpoint, "int4")["cpu"], both(checkpoint, "int4:g64")["gpu"]
    held = StoredWeights(there.placed, member(there, WeightEvaluator(checkpoint.read_rows)))
    with pytest.raises(LlamacError) as found:
        for item in wanted.placed:
            held.check(item.weight)
    assert found.value.code == "LLC0615" and "compile the checkpoint again" in str(found.value)


def test_a_module_read_back_places_the_same_weights() -> None:
    """The definitions survive the text, so what is equal can be told from the file alone."""
    checkpoint = random_checkpoint(Tiny("bf16").config(), 1)
    sides = both(checkpoint, "int4:asym")
    text = print_module(sides["cpu"].module)
    assert print_module(parse_module(text)) == text

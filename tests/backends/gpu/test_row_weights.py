"""Weights in rows as they are written: section by section, block by block, within little memory; and their places."""

from __future__ import annotations

import io

import numpy as np
import pytest
from planned_models import Tiny

from llamac.analysis.weight_plan import PlacedWeight, member_bytes, row_layout
from llamac.backends.gpu.arena import place_slots
from llamac.backends.gpu.calls import Call, Slot
from llamac.backends.gpu.request import KernelRequest
from llamac.driver import CompiledGraph, compile_graph
from llamac.ir.definition import Evaluation
from llamac.ir.dtypes import F32
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Weight
from llamac.ir.layouts import format_of
from llamac.ir.registry import find_op
from llamac.ir.row_layouts import unpack_rows
from llamac.ir.types import TensorType
from llamac.materialize import write_weights
from llamac.models.checkpoint import Checkpoint
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization


def compiled(quantize: str, experts: int = 0) -> tuple[Checkpoint, CompiledGraph]:
    checkpoint = random_checkpoint(Tiny("bf16", experts=experts).config(), 1)
    return checkpoint, compile_graph(checkpoint, parse_quantization(quantize), None, 8, None, [], kind="gpu")


def written(checkpoint: Checkpoint, graph: CompiledGraph, memory: int) -> np.ndarray:
    sink = io.BytesIO()
    write_weights(graph.placed, WeightEvaluator(checkpoint.read_rows), sink, memory, lambda nbytes: None)
    return np.frombuffer(sink.getvalue(), np.uint8)


def source_values(checkpoint: Checkpoint, item: PlacedWeight) -> np.ndarray:
    """What the packed bytes must stand for: the IR's meaning of the quants, scales and minima that were packed."""
    assert item.weight.producer is not None
    evaluator = WeightEvaluator(checkpoint.read_rows)
    parts = [evaluator.whole(part) for part in item.weight.producer.operands if isinstance(part, Weight)]
    if len(parts) == 1:
        return parts[0].astype(np.float32)
    group = format_of(item.format).group or item.shape[1]
    meaning = Evaluation(parts, {"group": group}, [TensorType(item.shape, F32)], {}, False)
    return np.asarray(find_op("dequantize").evaluate(meaning)[0])


@pytest.mark.parametrize(("quantize", "experts"), [("keep", 4), ("fp8", 0), ("int4:asym", 4), ("int8:g64", 0)])
def test_sections(quantize: str, experts: int) -> None:
    """In blocks of few rows as in one; interleaved rotation is undone head by head on the way."""
    checkpoint, graph = compiled(quantize, experts)
    member = written(checkpoint, graph, 1 << 26)
    assert len(member) <= member_bytes(graph.placed)
    np.testing.assert_array_equal(member, written(checkpoint, graph, 1 << 16))
    matrices = 0
    for item in graph.placed:
        assert item.offset % 256 == 0
        layout = row_layout(item.weight)
        if layout is not None:
            matrices += 1
            packed = member[item.offset : item.offset + item.nbytes]
            np.testing.assert_array_equal(unpack_rows(layout, packed), source_values(checkpoint, item))
    assert matrices >= 10


def call(*slots: Slot) -> Call:
    """A launch that uses some slots."""
    return Call(KernelRequest("f", "k", {}, {}), (1,), {str(i): slot for i, slot in enumerate(slots)}, "")


def test_slots_share_memory_when_they_are_not_alive_together() -> None:
    a, b, c, d = (Slot(size, name) for size, name in ((1000, "a"), (500, "b"), (1024, "c"), (200, "d")))
    calls = [call(a), call(a, b), call(b, c), call(c, d)]
    places, end = place_slots(calls)
    assert places[c] == places[a] == 0 and places[b] == 1024 and end == 1536
    assert places[d] == 1024, "in the place of b, which no later launch reads"


def test_slots_of_one_launch_never_overlap() -> None:
    rng = np.random.default_rng(0)
    slots = [Slot(int(size), str(i)) for i, size in enumerate(rng.integers(1, 5000, 40))]
    calls = [call(*(slots[i] for i in rng.choice(40, 3, replace=False))) for _ in range(60)]
    places, end = place_slots(calls)
    uses = {s: [i for i, c in enumerate(calls) if s in c.arguments.values()] for s in places}
    for one in places:
        for other in places:
            together = uses[one][0] <= uses[other][-1] and uses[other][0] <= uses[one][-1]
            apart = places[one] + one.bytes <= places[other] or places[other] + other.bytes <= places[one]
            assert one is other or apart or not together
    assert end == max(places[s] + -(-s.bytes // 256) * 256 for s in places)

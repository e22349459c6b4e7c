"""The parts of validation by themselves: the arena, what rounding may do, what is compared, the certificate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import pytest
from small_models import BASE, SmallModel, encodings_of

from llamac.certificate import ONNX, PAGE, certify, replay
from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import BF16, F16, F32, I4, I8, U4, round_to
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import DataSource, Module, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.types import tensor
from llamac.models.sources import open_source
from llamac.passes.cast_weights import CastWeights
from llamac.passes.pipelines import parse_quantization
from llamac.passes.quantize_fp8 import QuantizeFp8
from llamac.passes.quantize_int4 import QuantizeInt4
from llamac.transform.arena import ArenaInterpreter, is_planned
from llamac.transform.base import Pass
from llamac.transform.integers import _quantized
from llamac.transform.rounding import rounding_ratio
from llamac.transform.scenario import make_scenario
from llamac.transform.validation import relative_difference

# The arena.

PLANNED = """
module @m at kernel {{
  weight @w : tensor<2 x f32> = data {{hex = "0000803f0000803f"}}
  graph @step(%x: tensor<T x 2 x f32>, %y: tensor<T x 2 x f32>) -> (tensor<T x 2 x f32>) {{
    %0 = rms_norm %x, @w {{buffers = [{a}], eps = 0.5}} : tensor<T x 2 x f32>
    %1 = rms_norm %y, @w {{buffers = [{b}], eps = 0.5}} : tensor<T x 2 x f32>
    %2 = rms_norm %0, @w {{buffers = [{c}], eps = 0.25}} : tensor<T x 2 x f32>
    %3 = add %2, %1 {{buffers = [-1000]}} : tensor<T x 2 x f32>
    return %3
  }}
}}
"""


@pytest.mark.parametrize(
    ("places", "right"),
    [
        ((0, 64, 128), True),
        ((0, 64, 0), False),  # %2 over %0, which it reads
        ((64, 0, 128), True),
        ((0, 0, 128), False),  # %1 over %0, which %2 still needs
        ((0, 64, 64), False),  # %2 over %1
        ((0, 8, 64), False),  # %1 starts inside %0
        ((0, 26, 64), True),  # 24 bytes each: three rows of two floats
        ((0, 22, 64), False),  # two bytes too early
    ],
)
def test_arena_tells_overlapping_buffers(places: tuple[int, int, int], right: bool) -> None:
    a, b, c = places
    module = parse_module(PLANNED.format(a=a, b=b, c=c))
    assert is_planned(module)
    generator = np.random.default_rng(0)
    inputs = {"x": generator.random((3, 2)), "y": generator.random((3, 2))}
    (expected,) = Interpreter(module, exact=True).run(inputs)
    (found,) = ArenaInterpreter(module).run(inputs)
    assert np.array_equal(found, expected) == right


def test_arena_needs_a_plan() -> None:
    module = parse_module(PLANNED.format(a=0, b=64, c=128).replace("buffers = [64], ", ""))
    assert not is_planned(module)
    with pytest.raises(LlamacError) as raised:
        ArenaInterpreter(module).run({"x": np.zeros((1, 2)), "y": np.zeros((1, 2))})
    assert raised.value.code == "LLC0505"


# What rounding may do.


def weight_of(values: np.ndarray) -> tuple[Module, Weight]:
    module = Module("m", "model")
    type = tensor(*values.shape, F32)
    return module, module.add_weight(Weight("w", type, DataSource(values.astype("<f4").tobytes())))


def some_values(rows: int = 5, columns: int = 80) -> np.ndarray:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(rows, columns)).astype(np.float32)
    values[1] *= 1e-4
    values[2, :32] *= 50
    values[3] = 0
    return values


@pytest.mark.parametrize("dtype", [I4, I8], ids=str)
@pytest.mark.parametrize("group", [32, 64])
def test_integers_are_within_their_bound_and_not_far_below(dtype: object, group: int) -> None:
    module, weight = weight_of(some_values())
    made = _quantized(module, weight, dtype, group, False)  # type: ignore[arg-type]
    found = WeightEvaluator().whole(made)
    ratio = rounding_ratio(made, some_values(), found, QuantizeInt4(group=group))
    assert 0.5 < ratio <= 1
    step = np.abs(some_values()[2, :32]).max() / (8 if dtype is I4 else 127)
    moved = found.copy()
    moved[2, 5] += 1.2 * step
    assert rounding_ratio(made, some_values(), moved, QuantizeInt4(group=group)) > 1


def test_unsigned_integers_need_their_minimum() -> None:
    module, weight = weight_of(some_values())
    made = _quantized(module, weight, U4, 32, True)
    found = WeightEvaluator().whole(made)
    assert 0.5 < rounding_ratio(made, some_values(), found, QuantizeInt4(group=32)) <= 1
    positive = np.maximum(found, 0)
    assert rounding_ratio(made, some_values(), positive, QuantizeInt4(group=32)) > 3


def test_casts_give_the_nearest_value_or_are_wrong() -> None:
    module, weight = weight_of(some_values())
    made = define_weight(module, "w.f16", "cast", weight, dtype=F16)
    right = round_to(some_values(), F16)
    assert rounding_ratio(made, some_values(), right, CastWeights("f16")) == 0
    assert rounding_ratio(made, some_values(), round_to(right, BF16), CastWeights("f16")) == float("inf")
    assert rounding_ratio(made, some_values(), right + np.inf, CastWeights("f16")) == float("inf")


def test_group_that_the_pass_was_asked_for_counts() -> None:
    @dataclass(frozen=True)
    class Other(Pass):
        name = "other"
        requires = ("model",)

    module, weight = weight_of(some_values())
    made = _quantized(module, weight, I4, 64, False)
    found = WeightEvaluator().whole(made)
    assert rounding_ratio(made, some_values(), found, Other()) <= 1
    assert rounding_ratio(made, some_values(), found, QuantizeInt4(group=32)) > 1


# What is compared.


def test_difference_of_what_is_not_finite_or_of_another_shape_is_infinite() -> None:
    x = np.ones((2, 3))
    assert relative_difference(x, x) == 0
    assert relative_difference(x * np.nan, x) == relative_difference(x * np.nan, x * np.nan) == float("inf")
    assert relative_difference(x[:1], x) == float("inf")


def test_scenario_crosses_pages_and_repeats_tokens() -> None:
    scenario = make_scenario(61, PAGE, 3)
    lengths = {len(s) for s in scenario.sequences}
    assert {1, PAGE - 1, PAGE, PAGE + 1} <= lengths
    assert any(len(set(s)) < len(s) for s in scenario.sequences)
    seen: dict[int, list[int]] = {}
    for rows in scenario.partitions(PAGE):
        for index, position in rows:
            seen.setdefault(index, []).append(position)
    assert all(seen[i] == list(range(len(s))) for i, s in enumerate(scenario.sequences))


def test_verdicts_name_every_pass_and_the_arena() -> None:
    verdicts = SmallModel(quantize="int4").run()
    against = {v.after: [w.against for w in verdicts if w.after == v.after] for v in verdicts}
    assert against["quantize-int4"] == ["the weights before", "its own weights"]
    assert against["plan-memory"] == ["the graph before", "memory without reuse"]
    assert all(v.passed for v in verdicts)


def test_fp8_verdict_is_tight() -> None:
    (weights,) = [v for v in SmallModel(quantize="fp8").run() if v.against == "the weights before"]
    assert QuantizeFp8.name == weights.after
    assert 0.5 < weights.difference <= 1


def test_certificate_is_replayed_and_older_ones_still_are() -> None:
    checkpoint = open_source("tiny-untied", random_weights=3)
    certificate = certify(checkpoint, parse_quantization("int8"), "f16")
    assert certificate["passes_from"] == []
    assert all(v.passed for v in replay(certificate))
    del certificate["passes_from"]
    assert [v.after for v in replay(certificate)] == [v["after"] for v in certificate["verdicts"]]


def test_a_certificate_covers_the_pipeline_of_onnx_runtime() -> None:
    """Its graph goes through passes that code for CPUs does not; what is certified for CPUs says nothing of them."""
    checkpoint = open_source("tiny-untied", random_weights=3)
    certificate = certify(checkpoint, parse_quantization("int4"), "f32", kinds=["cpu", ONNX])
    assert certificate["kinds"] == ["cpu", ONNX]
    (found,) = [v for v in certificate["verdicts"] if v["after"] == "fuse-add-rms-norm"]
    assert found["passed"] and len(replay(certificate)) == len(certificate["verdicts"])


def test_encodings_name_every_weight() -> None:
    config = replace(BASE, layers=1)
    found = encodings_of(config, "q8_0", v="q6_k")
    assert found["layers.0.attn.v"] == "q6_k"
    assert found["norm"] == "f32"
    assert dataclasses.asdict(config)["layers"] == 1

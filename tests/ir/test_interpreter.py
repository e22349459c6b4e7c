"""The interpreter: binding inputs and symbols, the two modes, calls, caches and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from modules import CACHE, FULL

from llamac.errors import LlamacError
from llamac.ir.interpreter import Interpreter
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.parser import parse_module, parse_type
from llamac.ir.types import CacheType

BINDING = """module @m at captured {
  graph @step(%all: tensor<(P + T) x 2 x f32>, %new: tensor<T x 2 x f32>, %old: tensor<P x 2 x f32>, %n: tensor<T x
  i32>) -> (tensor<(P + T) x 2 x f32>, tensor<(P + T) x i32>, tensor<2*T x 2 x f32>) {
    %0 = concat %old, %new {axis = 0} : tensor<(P + T) x 2 x f32>
    %1 = add %all, %0 : tensor<(P + T) x 2 x f32>
    %2 = iota {dtype = i32, length = P + T} : tensor<(P + T) x i32>
    %3 = concat %new, %new {axis = 0} : tensor<2*T x 2 x f32>
    return %1, %2, %3
  }
}
"""


def _inputs(past: int = 3, tokens: int = 2) -> dict[str, Any]:
    return {
        "all": np.ones((past + tokens, 2)),
        "new": np.full((tokens, 2), 5.0),
        "old": np.zeros((past, 2)),
        "n": np.zeros(tokens, int),
    }


def test_symbols_are_bound_from_whole_dimensions_whatever_the_order() -> None:
    total, ramp, twice = Interpreter(parse_module(BINDING)).run(_inputs())
    assert total[:, 0].tolist() == [1, 1, 1, 6, 6] and ramp.tolist() == [0, 1, 2, 3, 4] and twice.shape == (4, 2)
    total, ramp, _ = Interpreter(parse_module(BINDING)).run(_inputs(past=0, tokens=1))
    assert total.shape == (1, 2) and ramp.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"all": np.ones((4, 2))}, r"%all: .* was given shape \(4, 2\) with P = 3, T = 2"),
        ({"n": np.zeros(3)}, r"%n: tensor<T x i32> was given shape \(3,\) with P = 3, T = 2"),
        ({"new": np.ones((2, 3))}, r"%new: .* was given shape \(2, 3\)"),
        ({"new": np.ones(2)}, r"%new: .* was given shape \(2,\)"),
        ({"nwe": np.ones(2)}, r"there is no input 'nwe' \(did you mean 'new'\?\)"),
        ({"new": None, "n": None}, "inputs are missing: new, n"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit(change: dict[str, Any], reason: str) -> None:
    inputs = {k: v for k, v in (_inputs() | change).items() if v is not None}
    with pytest.raises(LlamacError, match=reason) as caught:
        Interpreter(parse_module(BINDING)).run(inputs)
    assert caught.value.code == "LLC0406"


def test_a_symbol_that_nothing_binds() -> None:
    text = "module @m at captured {\n  graph @step(%x: tensor<2*T x f32>) -> () {\n    return\n  }\n}\n"
    with pytest.raises(LlamacError, match="no argument gives T a value"):
        Interpreter(parse_module(text)).run({"x": np.ones(4)})


def test_an_unknown_graph() -> None:
    with pytest.raises(LlamacError, match=r"no such graph \(did you mean 'step'\?\)"):
        Interpreter(parse_module(BINDING)).run({}, "stop")


def test_caches_must_be_of_the_argument_s_type() -> None:
    module = parse_module(
        f"module @m at kernel {{\n  graph @step(%c: {CACHE}, %x: tensor<f32>) -> ({CACHE}) {{\n"
        "    return %c\n  }\n}\n"
    )
    cache = parse_type(CACHE)
    assert isinstance(cache, CacheType)
    other = CacheState.empty(CacheType(2, 1, 2, 4, cache.dtype), 1, False)
    state = CacheState.empty(cache, 1, False)
    assert Interpreter(module).run({"c": state, "x": 1.0}) == [state]
    for wrong in ({"c": other, "x": 1.0}, {"c": np.zeros(3), "x": 1.0}, {"c": state, "x": state}):
        with pytest.raises(LlamacError, match="was given"):
            Interpreter(module).run(wrong)


ROUNDING = """module @m at captured {
  graph @step(%x: tensor<T x bf16>) -> (tensor<T x bf16>, tensor<bf16>, tensor<T x i32>, tensor<f32>) {
    %0 = constant {dtype = bf16, value = 0.1} : tensor<bf16>
    %1 = mul %x, %0 : tensor<T x bf16>
    %2 = cast %x {dtype = i32} : tensor<T x i32>
    %3 = constant {dtype = f32, value = 0.1} : tensor<f32>
    return %1, %0, %2, %3
  }
}
"""


def test_dtype_mode_rounds_every_result_and_exact_mode_none() -> None:
    module, x = parse_module(ROUNDING), np.array([1.0, 3.0, -2.7])  # -2.7 becomes -2.703125
    product, tenth, whole, single = Interpreter(module).run({"x": x})
    assert product.dtype == np.float32 and float(tenth) == 0.10009765625
    assert product.tolist() == [0.10009765625, 0.30078125, -0.271484375]
    assert float(single) == float(np.float32(0.1))
    exact_product, exact_tenth, exact_whole, exact_single = Interpreter(module, exact=True).run({"x": x})
    assert exact_product.dtype == np.float64 and np.abs(exact_product - x * 0.1).max() < 1e-17
    assert float(exact_tenth) == float(exact_single) == 0.1
    assert whole.tolist() == exact_whole.tolist() == [1, 3, -2] and whole.dtype == np.int32


def test_weights_are_read_once_and_widened() -> None:
    module = parse_module(
        """module @m at captured {
  weight @w : tensor<2 x 3 x bf16> = file {tensor = "stored", encoding = "bf16"}
  weight @v : tensor<3 x f16> = file {tensor = "vector", encoding = "f16"}
  graph @step(%x: tensor<T x 3 x f32>) -> (tensor<T x 3 x f32>, tensor<2 x 3 x bf16>) {
    %0 = cast @v {dtype = f32} : tensor<3 x f32>
    %1 = mul %x, %0 : tensor<T x 3 x f32>
    %2 = mul %1, %0 : tensor<T x 3 x f32>
    return %2, @w
  }
}
"""
    )
    reads: list[tuple[str, int, int]] = []
    stored = np.array([[0x3F80, 0x4000, 0x4040], [0xBF80, 0, 0x0001]], np.uint16).view(np.uint8)
    vector = np.array([[1, 2, 3]], np.float16).view(np.uint8)

    def read(name: str, lo: int, hi: int) -> np.ndarray:
        reads.append((name, lo, hi))
        return (stored if name == "stored" else vector)[lo:hi]

    for exact in (False, True):
        interpreter = Interpreter(module, read, exact)
        for _ in range(2):
            y, w = interpreter.run({"x": np.ones((1, 3))})
        assert y.tolist() == [[1, 4, 9]] and w.dtype == (np.float64 if exact else np.float32)
        assert w.tolist() == [[1, 2, 3], [-1, 0, 2.0**-133]]
    assert reads == [("vector", 0, 1), ("stored", 0, 2)] * 2


def test_without_a_checkpoint_file_weights_are_an_error() -> None:
    module = parse_module(FULL)
    with pytest.raises(LlamacError, match="no checkpoint") as caught:
        Interpreter(module)._value(module.weights["w"], {})
    assert caught.value.code == "LLC0405"


def test_calls_run_the_callee_with_its_layer() -> None:
    text = FULL.replace("    %1 = add %0, %x.y", "    %1 = add %x.y, %x.y")
    module = parse_module(text)
    cache = parse_type(CACHE)
    assert isinstance(cache, CacheType)
    raw = np.zeros((4, 18), np.uint8)
    inputs = {
        "ids": np.array([0, 3]),
        "x": np.arange(8.0).reshape(2, 4),
        "seq": np.zeros(2, int),
        "pages": np.zeros((1, 1), int),
        "cache": CacheState.empty(cache, 1, False),
    }
    gated, state = Interpreter(module, lambda name, lo, hi: raw[lo:hi]).run(inputs)
    doubled = inputs["x"] * 2
    gate, up = doubled[:, :2], doubled[:, 2:]
    assert np.allclose(gated, gate / (1 + np.exp(-gate)) * up, rtol=1e-6) and state is inputs["cache"]

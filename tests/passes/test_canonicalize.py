"""canonicalize: each rule on a few lines of IR, what it must leave alone, and that a second run changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_graph
from llamac.ir.verifier import verify
from llamac.passes.canonicalize import Canonicalize
from llamac.transform.base import PassContext

HEAD = (
    "module @m at captured {\n"
    '  weight @w : tensor<4 x f32> = file {tensor = "w", encoding = "f32"}\n'
    "  graph @step(%x: tensor<2 x T x 4 x f32>, %y: tensor<T x 4 x f32>, %n: tensor<T x i32>) -> (TYPE) {\n"
)


def module(body: str, type: str) -> Module:
    """`body` with its last value returned."""
    lines = [line.strip() for line in body.strip().splitlines()]
    last = lines[-1].split(" = ")[0]
    text = HEAD.replace("TYPE", type) + "".join(f"    {line}\n" for line in lines) + f"    return {last}\n  }}\n}}\n"
    return parse_module(text)


def outputs(m: Module) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    inputs = {
        "x": generator.standard_normal((2, 3, 4)),
        "y": generator.standard_normal((3, 4)),
        "n": np.array([0, 5, 2]),
    }
    rows = generator.standard_normal(4).astype(np.float32).view(np.uint8).reshape(1, -1)
    return Interpreter(m, lambda name, lo, hi: rows, exact=True).run(inputs)


CASES: dict[str, tuple[str, str, str]] = {
    "no-ops": (
        """%0 = reshape %y {shape = [T, 4]} : tensor<T x 4 x f32>
        %1 = transpose %0 {permutation = [0, 1]} : tensor<T x 4 x f32>
        %2 = cast %1 {dtype = f32} : tensor<T x 4 x f32>
        %3 = slice %2 {axis = 1, start = 0, stop = 4} : tensor<T x 4 x f32>
        %4 = constant {dtype = f32, value = 1.0} : tensor<f32>
        %5 = mul %4, %3 : tensor<T x 4 x f32>
        %6 = neg %5 : tensor<T x 4 x f32>""",
        "tensor<T x 4 x f32>",
        "%0 = neg %y : tensor<T x 4 x f32>",
    ),
    "a-transpose-of-equal-lengths-stays": (
        """%0 = slice %x {axis = 2, start = 0, stop = 2} : tensor<2 x T x 2 x f32>
        %1 = transpose %0 {permutation = [2, 1, 0]} : tensor<2 x T x 2 x f32>""",
        "tensor<2 x T x 2 x f32>",
        """%0 = slice %x {axis = 2, start = 0, stop = 2} : tensor<2 x T x 2 x f32>
        %1 = transpose %0 {permutation = [2, 1, 0]} : tensor<2 x T x 2 x f32>""",
    ),
    "merged": (
        """%0 = transpose %x {permutation = [1, 0, 2]} : tensor<T x 2 x 4 x f32>
        %1 = transpose %0 {permutation = [2, 0, 1]} : tensor<4 x T x 2 x f32>
        %2 = reshape %1 {shape = [4, 2*T]} : tensor<4 x 2*T x f32>
        %3 = reshape %2 {shape = [8*T]} : tensor<8*T x f32>""",
        "tensor<8*T x f32>",
        """%0 = transpose %x {permutation = [2, 1, 0]} : tensor<4 x T x 2 x f32>
        %1 = reshape %0 {shape = [8*T]} : tensor<8*T x f32>""",
    ),
    "batch": (
        """%0 = reshape %x {shape = [1, 2, T, 4]} : tensor<1 x 2 x T x 4 x f32>
        %1 = transpose %0 {permutation = [0, 1, 3, 2]} : tensor<1 x 2 x 4 x T x f32>
        %2 = matmul %0, %1 : tensor<1 x 2 x T x T x f32>
        %3 = softmax %2 {axis = -1} : tensor<1 x 2 x T x T x f32>
        %4 = reshape %3 {shape = [2, T, T]} : tensor<2 x T x T x f32>""",
        "tensor<2 x T x T x f32>",
        """%0 = transpose %x {permutation = [0, 2, 1]} : tensor<2 x 4 x T x f32>
        %1 = matmul %x, %0 : tensor<2 x T x T x f32>
        %2 = softmax %1 {axis = 2} : tensor<2 x T x T x f32>""",
    ),
    "an-axis-of-the-model-s-own-stays": (
        """%0 = slice %x {axis = 0, start = 0, stop = 1} : tensor<1 x T x 4 x f32>
        %1 = reshape %y {shape = [1, T, 4]} : tensor<1 x T x 4 x f32>
        %2 = mul %0, %1 : tensor<1 x T x 4 x f32>""",
        "tensor<1 x T x 4 x f32>",
        """%0 = slice %x {axis = 0, start = 0, stop = 1} : tensor<1 x T x 4 x f32>
        %1 = reshape %y {shape = [1, T, 4]} : tensor<1 x T x 4 x f32>
        %2 = mul %0, %1 : tensor<1 x T x 4 x f32>""",
    ),
    "ranks-and-order": (
        """%0 = mul @w, %y : tensor<T x 4 x f32>
        %1 = add %0, %x : tensor<2 x T x 4 x f32>""",
        "tensor<2 x T x 4 x f32>",
        """%0 = mul %y, @w : tensor<T x 4 x f32>
        %1 = reshape %0 {shape = [1, T, 4]} : tensor<1 x T x 4 x f32>
        %2 = add %x, %1 : tensor<2 x T x 4 x f32>""",
    ),
    "outer-product": (
        """%0 = iota {dtype = f32, length = 4} : tensor<4 x f32>
        %1 = reshape %0 {shape = [4, 1]} : tensor<4 x 1 x f32>
        %2 = cast %n {dtype = f32} : tensor<T x f32>
        %3 = reshape %2 {shape = [1, T]} : tensor<1 x T x f32>
        %4 = matmul %1, %3 : tensor<4 x T x f32>
        %5 = transpose %4 {permutation = [1, 0]} : tensor<T x 4 x f32>""",
        "tensor<T x 4 x f32>",
        """%0 = iota {dtype = f32, length = 4} : tensor<4 x f32>
        %1 = cast %n {dtype = f32} : tensor<T x f32>
        %2 = reshape %1 {shape = [T, 1]} : tensor<T x 1 x f32>
        %3 = reshape %0 {shape = [1, 4]} : tensor<1 x 4 x f32>
        %4 = mul %2, %3 : tensor<T x 4 x f32>""",
    ),
    "masks": (
        """%0 = iota {dtype = i32, length = 4} : tensor<4 x i32>
        %1 = reshape %0 {shape = [1, 4]} : tensor<1 x 4 x i32>
        %2 = reshape %n {shape = [T, 1]} : tensor<T x 1 x i32>
        %3 = less %2, %1 : tensor<T x 4 x i1>
        %4 = constant {dtype = f32, value = -inf} : tensor<f32>
        %5 = select %3, %4, %y : tensor<T x 4 x f32>""",
        "tensor<T x 4 x f32>",
        """%0 = iota {dtype = i32, length = 4} : tensor<4 x i32>
        %1 = reshape %0 {shape = [1, 4]} : tensor<1 x 4 x i32>
        %2 = reshape %n {shape = [T, 1]} : tensor<T x 1 x i32>
        %3 = constant {dtype = f32, value = -inf} : tensor<f32>
        %4 = less_equal %1, %2 : tensor<T x 4 x i1>
        %5 = constant {dtype = f32, value = 0.0} : tensor<f32>
        %6 = select %4, %5, %3 : tensor<T x 4 x f32>
        %7 = add %y, %6 : tensor<T x 4 x f32>""",
    ),
}


@pytest.mark.parametrize(("body", "type", "expected"), CASES.values(), ids=CASES)
def test_rules(body: str, type: str, expected: str) -> None:
    m = module(body, type)
    before = outputs(m)
    Canonicalize().run(m, PassContext())
    m.step.remove_dead_ops()
    verify(m)
    assert print_graph(m.step) == print_graph(module(expected, type).step)
    for old, new in zip(before, outputs(m), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-12)
    assert not Canonicalize().run(m, PassContext()).changed

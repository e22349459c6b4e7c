"""What a pattern must not take for what it names."""

from __future__ import annotations

from llamac.ir.parser import parse_module
from llamac.transform.pattern import Any, Node, Trace, match

ANGLES = """module @m at model {
  weight @f : tensor<2 x f32> = file {tensor = "f", encoding = "f32"}
  graph @step(%x: tensor<2 x T x 4 x f32>, %p: tensor<T x i32>) -> (tensor<2 x T x 4 x f32>, tensor<2 x T x 4 x f32>) {
    %0, %1 = rope_angles %p, @f : tensor<T x 2 x f32>, tensor<T x 2 x f32>
    %2 = rope %x, %0, %1 {style = "half_split"} : tensor<2 x T x 4 x f32>
    %3 = rope %x, %1, %0 {style = "half_split"} : tensor<2 x T x 4 x f32>
    return %2, %3
  }
}
"""
COS_FIRST = Node("rope", Any("x"), Node("rope_angles", Any("p"), Any("f")), Any("sin"))


def test_a_node_is_the_first_result_of_its_op() -> None:
    """The sine is made by the same op as the cosine, and is another value."""
    _, right, wrong = parse_module(ANGLES).step.ops
    found = match(COS_FIRST, right)
    assert found is not None and found["p"].name == "p"
    trace = Trace()
    assert match(COS_FIRST, wrong, trace) is None
    assert trace.reason == "expected the first result of rope_angles, found another one"

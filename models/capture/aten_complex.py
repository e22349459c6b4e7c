"""Complex numbers as captured ops: a value for the real parts and one for the imaginary.

Meta's reference turns pairs by products of complex numbers; that is the interleaved rotation, written differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llamac.ir.builder import Builder
from llamac.ir.graph import Value

from .aten_arithmetic import in_columns
from .aten_shapes import SHAPES
from .call import Call


@dataclass(frozen=True)
class Complex:
    """Numbers `real + i imaginary`, element by element."""

    real: Value
    imaginary: Value


Importer = Callable[[Call], Any]


def is_complex(call: Call) -> bool:
    """Whether the call takes or makes complex numbers."""
    return call.node.target._opname in _MAKERS or any(isinstance(v, Complex) for v in _inputs(call))


def import_complex(call: Call) -> Any:
    """What such a call gives; LLC0315 for one that has no place in a rotation."""
    name = call.node.target._opname
    if name in _OPS:
        return _OPS[name](call)
    if name in _MOVES:
        parts = [SHAPES[name](Call(call.node, _OnePart(call, part))) for part in ("real", "imaginary")]
        return Complex(*parts)  # type: ignore[arg-type]
    raise call.unsupported("complex numbers are only made, moved, multiplied and taken apart")


def _inputs(call: Call) -> list[Any]:
    return [call.found(node) for node in call.node.all_input_nodes]


class _OnePart:
    """The surroundings of a call with the real or the imaginary parts in place of complex numbers."""

    def __init__(self, call: Call, part: str) -> None:
        self.builder: Builder = call.b
        self.values = {node: _part(call.found(node), part) for node in call.node.all_input_nodes}
        self.symbols: Mapping[str, str] = call.surroundings.symbols


def _part(value: Any, part: str) -> Any:
    return getattr(value, part) if isinstance(value, Complex) else value


def _from_pairs(call: Call) -> Complex:
    x = call.tensor("self")
    last = x.tensor.rank - 1
    real, imaginary = (call.op("slice", x, axis=last, start=i, stop=i + 1) for i in (0, 1))
    return Complex(call.reshape(real, call.shape()), call.reshape(imaginary, call.shape()))


def _to_pairs(call: Call) -> Value:
    z = _number(call, "self")
    parts = [call.reshape(v, (*v.tensor.shape, 1)) for v in (z.real, z.imaginary)]
    return call.op("concat", *parts, axis=parts[0].tensor.rank - 1)


def _polar(call: Call) -> Complex:
    length, angle = call.tensor("abs"), call.tensor("angle")
    cos, sin = call.op("cos", angle), call.op("sin", angle)
    return Complex(*(x if call.is_one(length) else call.op("mul", length, x) for x in (cos, sin)))


def _product(call: Call) -> Complex:
    """(a + bi)(c + di); the order of terms is that of the textbook's rotation of a pair."""
    one, other = _number(call, "self"), _number(call, "other")

    def product(x: Value, y: Value) -> Value:
        return in_columns(call, "mul", x, y)

    real = in_columns(call, "sub", product(one.real, other.real), product(one.imaginary, other.imaginary))
    imaginary = in_columns(call, "add", product(one.imaginary, other.real), product(one.real, other.imaginary))
    return Complex(real, imaginary)


def _number(call: Call, name: str) -> Complex:
    found = call.found(call.raw[name])
    if not isinstance(found, Complex):
        raise call.unsupported(f"'{name}' must be complex")
    return found


_OPS: Mapping[str, Importer] = {
    "view_as_complex": _from_pairs,
    "view_as_real": _to_pairs,
    "polar": _polar,
    "complex": lambda call: Complex(call.tensor("real"), call.tensor("imag")),
    "mul": _product,
    "real": lambda call: _number(call, "self").real,
    "imag": lambda call: _number(call, "self").imaginary,
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy"), lambda call: _number(call, "self")
    ),
}
_MAKERS = frozenset({"view_as_complex", "polar", "complex"})
_MOVES = SHAPES.keys() - {"cat", "concat", "stack", "outer"}
COMPLEX_OPS = _OPS.keys() | _MOVES
"""Names of what can be done with complex numbers."""

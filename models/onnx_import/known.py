"""What an import knows before anything runs: sizes, constants, and integer ramps over symbolic shapes.

ONNX graphs compute shapes, position numbers and masks with ordinary ops. Once the batch is one and the attention mask
is all ones, all of these follow from T new and P past tokens, and are evaluated here: numbers as polynomials of T and
P, tensors of symbolic shape as `start + step_0 * i_0 + step_1 * i_1 ...`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dims import Dim, DimLike, divide, evaluate
from llamac.ir.dtypes import DType

Number = int | float | bool | Dim
MOST_KNOWN = 1 << 12
"""Elements of a tensor whose elements are known one by one."""
MOST_LISTED = 1 << 14
"""And of what such tensors are joined or combined to, over and over in a graph that is made to grow."""


class NotKnown(Exception):
    """Raised for what is not evaluated; the text says why."""


@dataclass(frozen=True, eq=False)
class Literal:
    """Known numbers, each an int, float, bool or `Dim`, in an array of objects."""

    values: NDArray[Any]
    dtype: DType

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return tuple(self.values.shape)

    def list(self) -> list[Any]:
        """The numbers in order."""
        return list(self.values.reshape(-1))


@dataclass(frozen=True, eq=False)
class Ramp:
    """Element i is `start + sum(steps[a] * i[a])`; all steps 0: one number everywhere."""

    shape: tuple[DimLike, ...]
    start: Number
    steps: tuple[int, ...]
    dtype: DType

    @property
    def is_uniform(self) -> bool:
        return not any(self.steps)


@dataclass(frozen=True, eq=False)
class Indices(Ramp):
    """Index tensors side by side, [..., 1] each; their numbers are those of `parts`."""

    parts: tuple[Ramp, ...] = ()


Known = Literal | Ramp


def literal(values: Any, dtype: DType) -> Literal:
    """Numbers, or a numpy array of them, as a literal."""
    plain = np.asarray(values)
    found = np.empty(plain.shape, object)
    found[...] = plain.tolist() if plain.dtype != object else plain
    return Literal(found, dtype)


def uniform(shape: Sequence[DimLike], value: Number, dtype: DType) -> Ramp:
    """One number everywhere."""
    return Ramp(tuple(shape), value, (0,) * len(shape), dtype)


def the_number(known: Known) -> Number | None:
    """The number that a known tensor has everywhere, None when it has several."""
    if isinstance(known, Ramp):
        return known.start if known.is_uniform else None
    found = known.list()
    is_one = bool(found) and all(type(v) is type(found[0]) and v == found[0] for v in found)
    return found[0] if is_one else None


def as_literal(known: Known) -> Literal:
    """Its numbers one by one; NotKnown when its shape is symbolic or large."""
    if isinstance(known, Literal):
        return known
    sizes = listed_sizes(known.shape, MOST_KNOWN)
    found = np.empty(tuple(sizes), object)
    for index in np.ndindex(*sizes):
        found[index] = plus(known.start, sum(s * i for s, i in zip(known.steps, index, strict=True)))
    return Literal(found, known.dtype)


def as_ramp(known: Known) -> Ramp:
    """A ramp; NotKnown for a literal that is none."""
    if isinstance(known, Ramp):
        return known
    number = the_number(known)
    if number is not None:
        return uniform(known.shape, number, known.dtype)
    axes = [axis for axis, size in enumerate(known.values.shape) if size > 1]
    numbers = known.list()
    if len(axes) == 1 and all(isinstance(n, int) for n in numbers):
        step = numbers[1] - numbers[0]
        if numbers == [numbers[0] + step * i for i in range(len(numbers))]:
            steps = tuple(step if axis == axes[0] else 0 for axis in range(len(known.shape)))
            return Ramp(known.shape, numbers[0], steps, known.dtype)
    raise NotKnown(f"the numbers {numbers[:6]} are no ramp")


def plus(a: Number, b: Number) -> Number:
    """a + b; NotKnown for a size and a fraction."""
    if isinstance(b, int) and b == 0:
        return a
    if {type(a), type(b)} >= {float, Dim}:
        raise NotKnown(f"{a} + {b}")
    total: Any = a
    return total + b  # type: ignore[no-any-return]


def broadcast_shape(*shapes: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """numpy's rule for shapes with symbolic sizes; NotKnown when they do not fit."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    found: list[DimLike] = []
    for sizes in zip(*padded, strict=True):
        larger = {size for size in sizes if size != 1}
        if len(larger) > 1:
            raise NotKnown(f"the shapes {', '.join(str(list(s)) for s in shapes)} do not fit one another")
        found.append(larger.pop() if larger else 1)
    return tuple(found)


def expanded(known: Known, shape: Sequence[DimLike]) -> Known:
    """Repeated to `shape`, which must be what its own broadcasts to."""
    if isinstance(known, Literal) and tuple(shape) == known.shape:
        return known
    ramp = as_ramp(known)
    steps = (0,) * (len(shape) - len(ramp.shape)) + ramp.steps
    return Ramp(tuple(shape), ramp.start, steps, ramp.dtype)


def sign(dim: DimLike) -> int:
    """-1, 0 or 1 for a polynomial that has one sign for all lengths; NotKnown for others."""
    signs = {np.sign(evaluate(dim, {"T": t, "P": p})) for t in (1, 2, 5, 17) for p in (0, 1, 3, 23)} - {0}
    if len(signs) > 1:
        raise NotKnown(f"the sign of {dim} depends on the lengths")
    return int(signs.pop()) if signs else 0


def quotient(a: Number, b: Number) -> Number:
    """a / b of ONNX: integers are cut off; a size must be divided exactly."""
    if isinstance(a, float) or isinstance(b, float):
        if isinstance(a, Dim) or isinstance(b, Dim) or not b:
            raise NotKnown(f"{a} / {b}")
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        if not b:
            raise NotKnown("a division by zero")
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    found = divide(a, b)
    if found is None:
        raise NotKnown(f"{a} / {b} is no whole size")
    return found


def equal(a: Number, b: Number) -> bool:
    """Whether two numbers are equal for all lengths; NotKnown when that depends on the lengths."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        if isinstance(a, float) or isinstance(b, float):
            raise NotKnown(f"{a} == {b}")
        difference = a - b
        if difference == 0:
            return True
        if isinstance(difference, Dim) and any(
            evaluate(difference, {"T": t, "P": p}) == 0 for t in range(1, 66) for p in range(66)
        ):
            raise NotKnown(f"whether {a} is {b} depends on the lengths")
        return False
    return bool(a == b)


def less(a: Number, b: Number) -> bool:
    """a < b for all lengths."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        return sign(a - b) < 0 and not equal(a, b)  # type: ignore[operator,arg-type]
    return bool(a < b)


def _largest(a: Number, b: Number) -> Number:
    return b if less(a, b) else a


def _smallest(a: Number, b: Number) -> Number:
    return a if less(a, b) else b


NUMBERS: dict[str, Callable[[Any, Any], Number]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": quotient,
    "Max": _largest,
    "Min": _smallest,
    "Equal": equal,
    "Less": less,
    "Greater": lambda a, b: less(b, a),
    "LessOrEqual": lambda a, b: not less(b, a),
    "GreaterOrEqual": lambda a, b: not less(a, b),
    "And": lambda a, b: bool(a) and bool(b),
    "Or": lambda a, b: bool(a) or bool(b),
}
"""Ops on two numbers."""


def combine(op: str, a: Known, b: Known, dtype: DType) -> Known:
    """An op of `NUMBERS` on two known tensors; NotKnown for what is neither numbers nor a ramp."""
    shape = broadcast_shape(a.shape, b.shape)
    first, second = the_number(a), the_number(b)
    if any(number != number for number in (first, second)):
        raise NotKnown("numbers of which only the shape is known")
    if first is not None and second is not None:
        return uniform(shape, NUMBERS[op](first, second), dtype)
    if op in ("Add", "Sub") or (op == "Mul" and (first is not None or second is not None)):
        try:
            return _ramps(op, a, b, shape, dtype)
        except NotKnown:
            pass
    sizes = listed_sizes(shape)
    left, right = (np.broadcast_to(as_literal(x).values, tuple(sizes)) for x in (a, b))
    found = np.empty(left.shape, object)
    for index in np.ndindex(*left.shape):
        found[index] = NUMBERS[op](left[index], right[index])
    return Literal(found, dtype)


def listed_sizes(shape: Sequence[DimLike], most: int = MOST_LISTED) -> list[int]:
    """The sizes of a tensor whose elements are listed; NotKnown for one of symbolic, negative or too large ones."""
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape) or min(sizes, default=0) < 0 or math.prod(sizes) > most:
        raise NotKnown(f"a tensor of shape {list(shape)[:8]} is not known one by one")
    return sizes


def _ramps(op: str, a: Known, b: Known, shape: tuple[DimLike, ...], dtype: DType) -> Ramp:
    left, right = (as_ramp(expanded(as_ramp(x), shape)) for x in (a, b))
    if op == "Mul":
        ramp, factor = (right, left.start) if left.is_uniform else (left, right.start)
        if not isinstance(factor, int):
            raise NotKnown("a ramp times a size")
        return Ramp(shape, ramp.start * factor, tuple(step * factor for step in ramp.steps), dtype)
    turn = 1 if op == "Add" else -1
    steps = tuple(x + turn * y for x, y in zip(left.steps, right.steps, strict=True))
    return Ramp(shape, plus(left.start, right.start * turn), steps, dtype)

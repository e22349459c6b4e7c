"""Structural patterns over the graph, and why a value did not match one.

A pattern is written as the expression it matches: `Node("mul", Any("x"), Node("rsqrt", ...))`. Binding one name twice
demands one value. Commutative ops match in either order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llamac.ir.graph import Op, Value, Weight
from llamac.ir.registry import find_op

Bindings = dict[str, Value]


@dataclass(frozen=True)
class Any:
    """Any value, bound to `name`."""

    name: str


@dataclass(frozen=True)
class AnyWeight:
    """A weight, bound to `name`."""

    name: str


@dataclass(frozen=True)
class Scalar:
    """The result of a `constant`, bound to `name`; with `value`, only that constant."""

    name: str
    value: float | None = None


@dataclass(frozen=True, init=False)
class Node:
    """The result (of several the first) of an op with these operands, bound to `name` when given."""

    opcode: str
    operands: tuple[Pattern, ...]
    name: str

    def __init__(self, opcode: str, *operands: Pattern, name: str = "") -> None:
        object.__setattr__(self, "opcode", opcode)
        object.__setattr__(self, "operands", operands)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True)
class Optional:
    """`inner`, or a one-operand op `opcode` of it."""

    opcode: str
    inner: Pattern


Pattern = Any | AnyWeight | Scalar | Node | Optional


@dataclass
class Trace:
    """The deepest point a match reached before it failed: how close it was, where, and why."""

    depth: int = -1
    where: str = ""
    reason: str = ""

    def note(self, depth: int, value: Value, reason: str) -> None:
        if depth > self.depth:
            self.depth, self.reason = depth, reason
            self.where = value.producer.location if value.producer else value.reference


@dataclass
class Match:
    """A successful match: values by name."""

    root: Op
    values: Bindings = field(default_factory=dict)

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def op(self, name: str) -> Op:
        """The op that made the value bound to `name`."""
        producer = self.values[name].producer
        assert producer is not None
        return producer

    def number(self, name: str) -> float:
        """The value of the constant bound to `name`."""
        value = self.op(name).attributes["value"]
        assert isinstance(value, float)
        return value


def match(pattern: Pattern, root: Op, trace: Trace | None = None) -> Match | None:
    """Match `pattern` against the result of `root`; on failure `trace` says how far it came."""
    trace = trace if trace is not None else Trace()
    for bindings in _match(pattern, root.results[0], {}, 0, trace):
        return Match(root, bindings)
    return None


def _match(pattern: Pattern, value: Value, bound: Bindings, depth: int, trace: Trace) -> Iterator[Bindings]:
    match pattern:
        case Any(name):
            yield from _bind(name, value, bound, depth, trace)
        case AnyWeight(name):
            if isinstance(value, Weight):
                yield from _bind(name, value, bound, depth, trace)
            else:
                trace.note(depth, value, f"expected a weight, found {_describe(value)}")
        case Scalar(name, number):
            yield from _match_scalar(name, number, value, bound, depth, trace)
        case Optional(opcode, inner):
            if value.producer is not None and value.producer.opcode == opcode and not isinstance(value, Weight):
                yield from _match(inner, value.producer.operands[0], bound, depth, trace)
            yield from _match(inner, value, bound, depth, trace)
        case Node():
            yield from _match_node(pattern, value, bound, depth, trace)


def _match_scalar(
    name: str, number: float | None, value: Value, bound: Bindings, depth: int, trace: Trace
) -> Iterator[Bindings]:
    if value.producer is None or value.producer.opcode != "constant":
        trace.note(depth, value, f"expected a constant, found {_describe(value)}")
    elif number is not None and value.producer.attributes["value"] != number:
        trace.note(depth, value, f"expected the constant {number}, found {value.producer.attributes['value']}")
    else:
        yield from _bind(name, value, bound, depth, trace)


def _match_node(pattern: Node, value: Value, bound: Bindings, depth: int, trace: Trace) -> Iterator[Bindings]:
    op = value.producer
    if op is None or op.opcode != pattern.opcode:
        trace.note(depth, value, f"expected {pattern.opcode}, found {_describe(value)}")
        return
    if value is not op.results[0]:
        trace.note(depth, value, f"expected the first result of {op.opcode}, found another one")
        return
    if len(op.operands) != len(pattern.operands):
        trace.note(depth, value, f"{op.opcode} has {len(op.operands)} operands, expected {len(pattern.operands)}")
        return
    orders = [pattern.operands]
    if find_op(op.opcode).commutative and len(pattern.operands) == 2:
        orders.append(pattern.operands[::-1])
    for operands in orders:
        pairs = list(zip(operands, op.operands, strict=True))
        fits = False
        for found in _match_all(pairs, bound, depth + 1, trace):
            fits = True
            if pattern.name:
                yield from _bind(pattern.name, value, found, depth, trace)
            else:
                yield found
        if fits:
            # One order fits, so how far the other one comes says nothing about what is wrong.
            trace = Trace()


def _match_all(pairs: list[tuple[Pattern, Value]], bound: Bindings, depth: int, trace: Trace) -> Iterator[Bindings]:
    if not pairs:
        yield bound
        return
    (pattern, value), *rest = pairs
    for found in _match(pattern, value, bound, depth, trace):
        yield from _match_all(rest, found, depth, trace)


def _bind(name: str, value: Value, bound: Bindings, depth: int, trace: Trace) -> Iterator[Bindings]:
    if name in bound and bound[name] is not value:
        trace.note(depth, value, f"'{name}' should be one value, found {_describe(bound[name])} and {_describe(value)}")
        return
    yield {**bound, name: value}


def _describe(value: Value) -> str:
    if isinstance(value, Weight):
        return f"weight {value.reference}"
    return value.producer.opcode if value.producer else f"argument {value.reference}"

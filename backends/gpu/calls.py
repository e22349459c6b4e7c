"""A step as calls of kernels, before memory has places and kernels have code.

A `Call` says which kernel (a request), over how many blocks, with which argument for each parameter by name. Memory
within a step is a `Slot`: only its size is known yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamac.artifact.launch_plan import ROWS, TOKENS, Expression, Pointer
from llamac.ir.graph import Value, Weight
from llamac.ir.row_layouts import RowLayout

from .architectures import Architecture
from .request import KernelRequest

COUNTERS = "counters"


@dataclass(frozen=True, eq=False)
class Slot:
    """`bytes` of scratch memory, written and read within a step; what it is for."""

    bytes: int
    name: str


Passed = Slot | Pointer | Expression


@dataclass(frozen=True)
class Call:
    """One launch: its kernel, grid and arguments by parameter name; `where` is the model-level name."""

    request: KernelRequest
    grid: tuple[Expression, ...]
    arguments: Mapping[str, Passed]
    where: str


@dataclass(frozen=True)
class MeetingCall:
    """Where ranks meet, in front of call number `at`: see `launch_plan.Meeting`."""

    at: int
    kind: str
    source: Passed
    to: Passed
    rows: Expression
    columns: int
    where: str


@dataclass(frozen=True)
class StepShape:
    """What a bucket is made for: up to `tokens` rows, up to `rows` logit rows, replayed at exactly those or not.

    is_short: its products wait for weights, whatever its number of rows, and take them in narrow tiles.
    """

    name: str
    kind: str
    tokens: int
    rows: int
    is_short: bool = False

    @property
    def is_replayed(self) -> bool:
        """Whether sizes are constants of the launches."""
        return self.kind == "decode"

    def token_count(self) -> Expression:
        """The tokens of the step, as launches say them."""
        return self.tokens if self.is_replayed else TOKENS

    def row_count(self) -> Expression:
        """The logit rows of the step."""
        return self.rows if self.is_replayed else ROWS


def tiles(count: Expression, size: int) -> Expression:
    """How many tiles of `size` hold `count` things."""
    return -(-count // size) if isinstance(count, int) else ("ceil_div", count, size)


def times(count: Expression, factor: int) -> Expression:
    """count * factor."""
    if isinstance(count, int):
        return count * factor
    return count if factor == 1 else ("mul", count, factor)


@dataclass
class StepCalls:
    """The calls of one bucket while its module is walked.

    units: multiprocessors of the target. weights: where each weight lies. memory: what each value of the graph is.
    normed: rows that were normed or rounded in a launch of their own, by the rows, the norm and the type they are in.
    """

    machine: Architecture
    units: int
    shape: StepShape
    weights: Mapping[Weight, int]
    calls: list[Call] = field(default_factory=list)
    memory: dict[Value, Passed] = field(default_factory=dict)
    normed: dict[tuple[Value, Value | None, str], Slot] = field(default_factory=dict)
    meetings: list[MeetingCall] = field(default_factory=list)
    counters: int = 0
    tile_tokens: int = 0

    def call(self, request: KernelRequest, grid: tuple[Expression, ...], where: str, **arguments: Passed) -> None:
        """Append a call."""
        self.calls.append(Call(request, grid, arguments, where))

    def meet(self, kind: str, source: Passed, to: Passed, rows: Expression, columns: int, where: str) -> None:
        """Bring the ranks together behind the calls so far."""
        self.meetings.append(MeetingCall(len(self.calls), kind, source, to, rows, columns, where))

    def at(self, value: Value) -> Passed:
        """Where a value lies: in the weights, in an input, in a cache or in a slot."""
        return Pointer("weights", self.weights[value]) if isinstance(value, Weight) else self.memory[value]

    def slot(self, value: Value, name: str) -> Slot:
        """Memory for a result, by its type and the sizes of the bucket."""
        size = value.tensor.dtype.bits // 8
        bound = {"T": self.shape.tokens, "R": self.shape.rows, "M": self.shape.tokens}
        for dim in value.tensor.concrete_shape(bound):
            size *= dim
        found = Slot(size, name)
        self.memory[value] = found
        return found

    def scratch(self, nbytes: int, name: str) -> Slot:
        """Memory that no value of the graph stands for."""
        return Slot(nbytes, name)

    def counter(self, count: int) -> Pointer:
        """Counters, zero before a launch and after it, so that every launch can use the same."""
        self.counters = max(self.counters, 4 * count)
        return Pointer(COUNTERS, 0)

    def matrix(self, value: Value, layout: RowLayout) -> dict[str, Passed]:
        """The pointers to the parts of a packed matrix."""
        assert isinstance(value, Weight)
        start = self.weights[value]
        found: dict[str, Passed] = {"w_ptr": Pointer("weights", start)}
        if layout.scale is not None:
            found["scale_ptr"] = Pointer("weights", start + layout.scales_at)
        if layout.format.minimum is not None:
            found["min_ptr"] = Pointer("weights", start + layout.minima_at)
        return found


def constant(request: KernelRequest, name: str) -> int:
    """An integer that a kernel was specialised to."""
    found = request.constants[name]
    assert isinstance(found, int)
    return found

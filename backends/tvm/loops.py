"""Writes the body of a TIR function, statement by statement: loops, stores, conditions, local arrays.

A function is a sequence of regions. `each(n)` runs its body for 0 .. n - 1 in any order: side by side on the threads of
a CPU, one thread an element on a GPU. `once()` runs its body one time. Everything else stands inside a region.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Range

Expression = Any
"""An expression of TIR, or a number."""
Buffer = Any
"""A buffer of TIR: `buffer[i, j]` is a load."""

_BLOCK = 64
"""Threads of a block, on GPUs."""


def index(value: Expression) -> Expression:
    """`value` as a loop bound or an index."""
    return tirx.const(value, "int64") if isinstance(value, int) else value


class Loops:
    """The statements of one function, for a CPU or a GPU."""

    def __init__(self, on_gpu: bool = False) -> None:
        self.on_gpu = on_gpu
        self._bodies: list[list[Any]] = [[]]
        self._count = 0

    @contextmanager
    def each(self, extent: Expression) -> Iterator[Expression]:
        """A region: its body for every i in 0 .. extent - 1, in any order."""
        if not self.on_gpu:
            with self._loop(extent, tirx.ForKind.PARALLEL) as i:
                yield i
            return
        blocks = tirx.floordiv(index(extent) + (_BLOCK - 1), index(_BLOCK))
        with self._bound(blocks, "blockIdx.x") as block, self._bound(index(_BLOCK), "threadIdx.x") as thread:
            i = block * _BLOCK + thread
            with self.when(i < index(extent)):
                yield i

    @contextmanager
    def once(self) -> Iterator[None]:
        """A region: its body, one time."""
        if not self.on_gpu:
            yield
            return
        with self._bound(index(1), "blockIdx.x"), self._bound(index(1), "threadIdx.x"):
            yield

    @contextmanager
    def loop(self, extent: Expression) -> Iterator[Expression]:
        """The body for i = 0 .. extent - 1, in order."""
        with self._loop(extent, tirx.ForKind.SERIAL) as i:
            yield i

    @contextmanager
    def lanes(self, count: int) -> Iterator[Expression]:
        """The body for i = 0 .. count - 1, as one vector where the machine has vectors."""
        kind = tirx.ForKind.SERIAL if self.on_gpu or count == 1 else tirx.ForKind.VECTORIZED
        with self._loop(count, kind) as i:
            yield i

    @contextmanager
    def when(self, condition: Expression) -> Iterator[None]:
        """The body where the condition holds."""
        self._bodies.append([])
        yield
        self._emit(tirx.IfThenElse(condition, _joined(self._bodies.pop()), None))

    def store(self, buffer: Buffer, indices: Sequence[Expression], value: Expression) -> None:
        """buffer[indices] = value."""
        self._emit(tirx.BufferStore(buffer, value, [index(i) for i in indices]))

    def add_to(self, buffer: Buffer, at: Expression, value: Expression) -> None:
        """buffer[at] += value."""
        self.store(buffer, [at], buffer[index(at)] + value)

    def local(self, size: int, dtype: str = "float32") -> Buffer:
        """An array of this thread, unset."""
        buffer = tirx.decl_buffer((index(size),), dtype, f"local{self._number()}", scope="local", layout=None)
        self._emit(tirx.AllocBuffer(buffer))
        return buffer

    def filled(self, size: int, value: float, dtype: str = "float32") -> Buffer:
        """An array of this thread, every element set."""
        buffer = self.local(size, dtype)
        with self.lanes(size) as i:
            self.store(buffer, [i], tirx.const(value, dtype))
        return buffer

    def kept(self, value: Expression, dtype: str = "float32") -> Expression:
        """`value`, computed once here and used in what follows; inside `lanes` a vector of values."""
        variable = tirx.Var(f"kept{self._number()}", dtype)
        self._emit(tirx.Bind(variable, value))
        return variable

    def kept_index(self, value: Expression) -> Expression:
        """An index, computed once here; in 32 bits on GPUs, not all of which know more."""
        if not self.on_gpu:
            return self.kept(value, "int64")
        return tirx.Cast("int64", self.kept(tirx.Cast("int32", value), "int32"))

    def function(self, parameters: Sequence[Buffer], name: str) -> Any:
        """The function of what was written, over `parameters`."""
        body = tirx.PrimFunc(list(parameters), _joined(self._bodies[0]))
        return body.with_attr("global_symbol", name).with_attr("tirx.noalias", True).with_attr("s_tir", True)

    def _emit(self, statement: Any) -> None:
        self._bodies[-1].append(statement)

    def _number(self) -> int:
        self._count += 1
        return self._count

    @contextmanager
    def _loop(self, extent: Expression, kind: Any) -> Iterator[Expression]:
        variable = tirx.Var(f"i{self._number()}", "int64")
        self._bodies.append([])
        yield variable
        self._emit(tirx.For(variable, index(0), index(extent), kind, _joined(self._bodies.pop())))

    @contextmanager
    def _bound(self, extent: Expression, tag: str) -> Iterator[Expression]:
        variable = tirx.Var(f"i{self._number()}", "int64")
        self._bodies.append([])
        yield variable
        place = tirx.IterVar(Range(index(0), extent), variable, tirx.IterVar.ThreadIndex, tag)
        body = _joined(self._bodies.pop())
        self._emit(tirx.For(variable, index(0), extent, tirx.ForKind.THREAD_BINDING, body, place))


def _joined(statements: list[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)

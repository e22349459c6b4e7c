"""One call of an ATen op, as the functions that import them see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.dims import DimLike, symbol
from llamac.ir.dtypes import I32, DType
from llamac.ir.graph import Value

from ..captured_ops import CapturedOps
from .symbols import dimension, is_symbolic
from .torch_library import ir_dtype

TOKENS = symbol("T")
PAST = symbol("P")


class Surroundings(Protocol):
    """What a call needs from the import it is part of."""

    builder: Builder
    values: dict[Any, Any]

    @property
    def symbols(self) -> Mapping[str, str]: ...


class Call(CapturedOps):
    """One node of the exported graph: its arguments by the schema's names, its result's type, and the ops to make."""

    def __init__(self, node: Any, surroundings: Surroundings) -> None:
        self.node = node
        self.b = surroundings.builder
        self._around = surroundings
        schema = node.target._schema.arguments
        self.raw: dict[str, Any] = {a.name: a.default_value for a in schema if a.has_default_value()}
        self.raw.update(zip((a.name for a in schema), node.args, strict=False))
        self.raw.update(node.kwargs)

    @property
    def name(self) -> str:
        return str(self.node.target)

    @property
    def surroundings(self) -> Surroundings:
        """What the call is part of."""
        return self._around

    def found(self, raw: Any) -> Any:
        """What has been imported for an argument; None for a plain one."""
        return self._around.values.get(_hashable(raw))

    @property
    def where(self) -> str:
        """The path of the module that made the call."""
        return module_path(self.node)

    def unsupported(self, reason: str) -> LlamacError:
        """LLC0315 for a known op in a form that has no place in a Llama."""
        return LlamacError("LLC0315", self.where, f"{self.name} {source_line(self.node)}: {reason}", HINT)

    # Arguments.

    def value(self, raw: Any) -> Value:
        found = self._around.values.get(raw)
        if not isinstance(found, Value):
            raise self.unsupported(f"expected a tensor, got {raw}")
        return found

    def tensor(self, name: str) -> Value:
        return self.value(self.raw[name])

    def optional(self, name: str) -> Value | None:
        return None if self.raw.get(name) is None else self.tensor(name)

    def tensors(self, name: str) -> list[Value]:
        return [self.value(raw) for raw in self.raw[name]]

    def is_tensor(self, name: str) -> bool:
        return isinstance(self._around.values.get(_hashable(self.raw[name])), Value)

    def dim(self, raw: Any) -> DimLike:
        """A size: an int, or a node that computes a symbolic one."""
        size = raw.meta["val"] if hasattr(raw, "meta") else raw
        return dimension(size, self._around.symbols, self.where)

    def is_size(self, name: str) -> bool:
        raw = self.raw[name]
        return hasattr(raw, "meta") and is_symbolic(raw.meta.get("val"))

    def integer(self, name: str) -> int:
        found = self.dim(self.raw[name])
        if not isinstance(found, int):
            raise self.unsupported(f"'{name}' is the size {found}, and must be fixed")
        return found

    def number(self, name: str) -> float:
        raw = self.raw[name]
        if isinstance(raw, bool | int | float):
            return float(raw)
        raise self.unsupported(f"'{name}' must be a plain number, not {raw}")

    def axis(self, name: str, rank: int) -> int:
        """An axis counted from the front; a list must hold just one."""
        raw = self.raw[name]
        if isinstance(raw, list | tuple):
            if len(raw) != 1:
                raise self.unsupported(f"'{name}' = {list(raw)} names several axes")
            (raw,) = raw
        return int(raw) % rank if rank else 0

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse an argument that changes the meaning in a way that is not imported."""
        if self.raw.get(name) not in allowed:
            raise self.unsupported(f"{name} = {self.raw[name]}")

    # Results.

    def result(self, index: int | None = None) -> Any:
        found = self.node.meta["val"]
        return found if index is None else found[index]

    def shape(self, index: int | None = None) -> tuple[DimLike, ...]:
        return tuple(dimension(d, self._around.symbols, self.where) for d in self.result(index).shape)

    @property
    def dtype(self) -> DType:
        return ir_dtype(self.result().dtype, self.where, f"{self.name} {source_line(self.node)}: ")

    # Ops.

    def operand(self, name: str, dtype: DType) -> Value:
        """A tensor argument, or a plain number as a constant, in `dtype`."""
        if self.is_tensor(name):
            return self.cast(self.tensor(name), dtype)
        return self.b.constant(self.number(name), dtype)

    def is_one(self, value: Value) -> bool:
        """Whether every element is the constant 1 (or true)."""
        return _is_one(value)

    def positions(self, iota: Value, start: DimLike) -> Value:
        """`iota + start` where that is the position of each new token: 0..T-1 after P past ones.

        A captured step takes one sequence with explicit past, so that `positions[t]` is `P + t` by its contract. No
        other use of a size as a number has a meaning in the IR.
        """
        op = iota.producer
        is_rows = op is not None and op.opcode == "iota" and op.attributes == {"length": TOKENS, "dtype": I32}
        if not is_rows or start != PAST or self.b.graph is None:
            raise self.unsupported(f"the size {start} is used as a number other than to form positions")
        return self.b.graph.argument("positions")


HINT = "write the model with the operations of transformers' LlamaForCausalLM"
Importer = Callable[[Call], Value | Sequence[Value]]


def _hashable(raw: Any) -> Any:
    return raw if hasattr(raw, "meta") else None


def _is_one(value: Value) -> bool:
    op = value.producer
    while op is not None and op.opcode in ("broadcast", "reshape"):
        op = op.operands[0].producer
    return op is not None and op.opcode == "constant" and op.attributes["value"] == 1.0


def module_path(node: Any) -> str:
    """The path of the module whose forward made the node: `model.layers.0.mlp`."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = str(stack[-1]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("step.").removeprefix("step") or "the module"


def source_line(node: Any) -> str:
    """`at file.py:12 (hidden = hidden.cumsum(0))`: the innermost line of the user's code."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not places:
        return "at an unknown line"
    place = lines[places[-1]]
    file, line = place.split('"')[1], place.split("line ")[1].split(",")[0]
    code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
    return f"at {file}:{line} ({code})" if code else f"at {file}:{line}"

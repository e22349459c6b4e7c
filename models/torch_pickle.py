"""The pickle inside a torch file, decoded as data: no object of the outside world is looked up, nothing is called.

A pickle is a program. This reads its opcodes (the standard library's `pickletools` splits them without running them)
and follows those few that torch.save writes for a dict of tensors. What would be imported stays a name, what would be
called becomes the record of a tensor, and any name that is not on the list is an error.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from llamac.errors import LlamacError

REPAIR = "download the file again"
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Typed storage class of torch -> dtype of its elements."""
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
OPERATIONS_LIMIT = 1 << 22
"""Most opcodes of a pickle: a checkpoint of ten thousand tensors has a tenth of it."""


@dataclass(frozen=True)
class StorageRecord:
    """A storage as the pickle names it: the file `data/KEY` of the archive, `count` elements (bytes when untyped)."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the pickle describes it: offset and strides count elements of its storage."""

    storage: StorageRecord
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """Something that torch.save may write beside tensors (extra state, metadata): present, and never looked into."""


@dataclass(frozen=True)
class _Name:
    """What a pickle would import."""

    module: str
    name: str


class _Mark:
    """The start of a group on the stack."""


def read_pickle(data: bytes, where: str) -> object:
    """What the pickle stands for: dicts, lists, tuples, numbers, strings, `TensorRecord` and `Opaque`.

    Raises LLC0221 when it asks for anything but tensors, LLC0220 when it is malformed.
    """
    machine = _Machine(where)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                return machine.pop()
            if count == OPERATIONS_LIMIT:
                _malformed(where, f"more than {OPERATIONS_LIMIT} operations")
            machine.run(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        _malformed(where, f"{type(error).__name__}: {str(error)[:80]}")
    _malformed(where, "no end")


def _malformed(where: str, reason: str) -> NoReturn:
    raise LlamacError("LLC0220", where, f"the description of the tensors is damaged: {reason}", REPAIR)


class _Machine:
    """The stack and memo of a pickle; `TABLE` and `run` hold every opcode that is known."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self, opcode: str, argument: object) -> None:
        if opcode in _PUSHED:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            _malformed(self.where, f"the operation {opcode}, which torch.save does not write")

    def pop(self) -> object:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a group is not closed")
        return value

    def group(self) -> list[object]:
        """The values above the last mark, which goes too."""
        start = len(self.stack) - 1
        while not isinstance(self.stack[start], _Mark):  # from the top: what is passed over goes
            start -= 1
            if start < 0:
                raise ValueError("a group without a beginning")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        values = tuple(self.pop() for _ in range(count))
        self.stack.append(values[::-1])

    def put(self, argument: object) -> None:
        self.memo[len(self.memo) if argument is None else _integer(argument)] = self.stack[-1]

    def get(self, argument: object) -> None:
        self.stack.append(self.memo[_integer(argument)])

    def name(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(self.known(module, name))

    def stack_name(self, argument: object) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):  # what is nested in itself prints without end
            raise ValueError("a name that is no text")
        self.stack.append(self.known(module, name))

    def known(self, module: str, name: str) -> _Name:
        found = _Name(module, name)
        if found not in _KNOWN and not (module == "torch" and (name in STORAGES or name in ITEM_BYTES)):
            reason = f"it asks for {f'{module}.{name}'[:120]!r}, which no file of tensors needs; nothing was run"
            raise LlamacError("LLC0221", self.where, reason, "do not load this file with torch either: get a clean one")
        return found

    def storage(self, argument: object) -> None:
        kind, made, key, _, count = _fields(self.pop(), 5)
        if kind != "storage" or not isinstance(made, _Name) or not isinstance(key, str):
            raise ValueError("a reference that is no storage")
        self.stack.append(StorageRecord(key, STORAGES.get(made.name), _integer(count)))

    def call(self, argument: object) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple) or function not in _KNOWN:
            raise ValueError("a call of what is no function")
        self.stack.append(_KNOWN[function](arguments))

    def build(self, argument: object) -> None:
        """The state of an object: only dicts and opaque objects have one, and it is not needed."""
        self.pop()
        if not isinstance(self.stack[-1], dict | Opaque):
            raise ValueError("a state for what has none")

    def set_items(self, argument: object) -> None:
        values = self.group()
        self.fill(values)

    def set_item(self, argument: object) -> None:
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    def fill(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items for what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                _integer(key)
            if key in target:
                raise ValueError(f"the key {str(key)[:80]!r} appears twice")
            target[key] = value

    def append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("elements for what is no list")
        target.extend(values)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 62) < value < 1 << 62:
        raise ValueError("a number is missing")
    return value


def _fields(value: object, count: int) -> tuple[object, ...]:
    if not isinstance(value, tuple) or len(value) < count:
        raise ValueError("a tuple is too short")
    return value[:count]


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 8:
        raise ValueError("a shape is missing")
    sizes = tuple(_integer(size) for size in value)
    if any(size < 0 for size in sizes) or math.prod(sizes) >= 1 << 62:
        raise ValueError("a size is out of range")
    return sizes


def _tensor(arguments: tuple[object, ...]) -> TensorRecord:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...); v3 adds the dtype as its seventh."""
    storage, offset, shape, strides = _fields(arguments, 4)
    dtype = storage.dtype if isinstance(storage, StorageRecord) else None
    if len(arguments) > 6 and isinstance(arguments[6], _Name):
        dtype = arguments[6].name
    if not isinstance(storage, StorageRecord) or dtype is None:
        raise ValueError("a tensor without a storage or a dtype")
    found = TensorRecord(storage, dtype, _integer(offset), _sizes(shape), _sizes(strides))
    if len(found.shape) != len(found.strides) or found.offset < 0:
        raise ValueError("a tensor whose strides do not fit its shape")
    return found


def _parameter(arguments: tuple[object, ...]) -> object:
    (tensor,) = _fields(arguments, 1)
    return tensor


_KNOWN: dict[_Name, Callable[[tuple[object, ...]], object]] = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v3"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("collections", "OrderedDict"): lambda arguments: {},
    _Name("_codecs", "encode"): lambda arguments: Opaque(),
    _Name("_io", "BytesIO"): lambda arguments: Opaque(),
    _Name("torch.storage", "UntypedStorage"): lambda arguments: Opaque(),
    _Name("torch", "Size"): lambda arguments: arguments[0],
}
"""What may be named, with what a call of it means here."""

_PUSHED = frozenset(
    """BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINFLOAT FLOAT
    BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING""".split()
)
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_ACTIONS: dict[str, Callable[[_Machine, object], None]] = {
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.group()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.group())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
}

"""A folder of compiled kernels: made where Triton is, used where the GPU is.

One file for each distinct code object, and `kernels.json`: what was asked for -> the code and how it is launched.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TRITON_TYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8e4nv",
    "float8_e4m3fnuz": "fp8e4b8", "int32": "i32", "uint32": "u32", "int64": "i64", "uint8": "u8", "int8": "i8",
    "int16": "i16",
}  # fmt: skip
"""numpy's name of a type -> Triton's."""

AT_LAUNCH = ("tokens", "layer", "table_width")
"""Integers that kernels take at launch; every other one is compiled in."""

WARPS = 4
"""Of every kernel made here: the tests have small tiles."""


@dataclass(frozen=True)
class LaunchCode:
    """A function `name` in the file `code`; parameters: [name, Triton type] in order, two null pointers follow."""

    code: str
    name: str
    parameters: list[list[str]]
    warps: int
    shared_bytes: int


class NotCompiled(LookupError):
    """The folder has no code for a kernel with these arguments."""


class KernelFolder:
    """The kernels for one architecture in `folder`; `compile_missing` lets it make those that it lacks."""

    def __init__(self, folder: Path, architecture: str, compile_missing: bool = False) -> None:
        self.folder = folder / architecture
        self.architecture = architecture
        self.compile_missing = compile_missing
        self._index = self.folder / "kernels.json"
        self._rows: dict[str, dict[str, Any]] = json.loads(self._index.read_text()) if self._index.exists() else {}

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, kernel: str, arguments: dict[str, Any]) -> LaunchCode:
        """The code of `family.name` for these arguments: arrays by their type, anything else by its value."""
        key = _key(kernel, arguments)
        if key not in self._rows:
            if not self.compile_missing:
                raise NotCompiled(f"{kernel} was not compiled for these arguments: make gpu-code where Triton is")
            self._rows[key] = asdict(self._compile(kernel, arguments))
            self._index.write_text(json.dumps(self._rows, indent=0, sort_keys=True))
        return LaunchCode(**self._rows[key])

    def bytes_of(self, code: LaunchCode) -> bytes:
        return (self.folder / code.code).read_bytes()

    def _compile(self, kernel: str, arguments: dict[str, Any]) -> LaunchCode:
        from llamac.backends.gpu.compile import compile_kernel
        from llamac.backends.gpu.request import CompileOptions
        from llamac.backends.gpu.toolchain import load_kernel

        function = load_kernel(*kernel.split("."))
        is_constant = {p.name: p.is_constexpr for p in function.params}
        signature = {
            name: f"*{TRITON_TYPES[value.dtype.name]}" if isinstance(value, np.ndarray) else "i32"
            for name, value in arguments.items()
            if value is not None and not is_constant[name]
        }
        assert {n for n, t in signature.items() if t == "i32"} <= set(AT_LAUNCH), signature
        constants = {name: value for name, value in arguments.items() if name not in signature}
        options = CompileOptions(warps=WARPS, stages=2)
        made = compile_kernel(function, signature, constants, self.architecture, options)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = hashlib.sha256(made.code).hexdigest()[:20]
        (self.folder / file).write_bytes(made.code)
        parameters = [[p.name, p.type] for p in made.parameters]
        return LaunchCode(file, made.name, parameters, made.warps, made.shared_bytes)


def _key(kernel: str, arguments: dict[str, Any]) -> str:
    rows = [
        [name, f"array {value.dtype.name}" if isinstance(value, np.ndarray) else repr(_plain(value))]
        for name, value in sorted(arguments.items())
        if name not in AT_LAUNCH
    ]
    return hashlib.sha256(json.dumps([kernel, rows]).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

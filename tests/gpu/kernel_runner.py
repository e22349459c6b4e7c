"""Launches single kernels on a GPU with numpy arrays, in the place of Triton's interpreter."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from kernel_code import KernelFolder, LaunchCode

from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import LaunchShape
from llamac.runtime.gpu.found import find_gpu
from llamac.runtime.gpu.upload import host_bytes, upload

Array = np.ndarray[Any, Any]
GUARD = 4096
"""Bytes behind each array that no kernel may write."""
POISON = 0xA5


class KernelRunner:
    """The same `launch` as `Interpreter`, on GPU `index` of a kind; each array has guarded memory of its own."""

    def __init__(self, kind: str, folder: KernelFolder, index: int = 0) -> None:
        self.driver, self.gpu = find_gpu("cuda" if kind == "cuda" else "hip", index)
        self.driver.open(index)
        self.folder = folder
        self.launches = 0
        self._stream = self.driver.new_stream()
        self._functions: dict[str, tuple[int, int]] = {}
        self._warp = 32 if kind == "cuda" or self.gpu.architecture.startswith("gfx1") else 64

    def __enter__(self) -> KernelRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, _ in self._functions.values():
            self.driver.unload_module(module)
        self.driver.end_stream(self._stream)
        self.driver.close()

    def launch(self, kernel: str, grid: tuple[int, ...], /, **arguments: Any) -> None:
        """Run `family.name` over the grid; arrays among the arguments are changed in place, as memory would be."""
        code = self.folder.find(kernel, arguments)
        arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
        addresses: dict[str, int] = {}
        with ExitStack() as owned:
            try:
                for name, value in arrays.items():
                    addresses[name] = self._send(value, owned)
                values = [addresses[n] if t.startswith("*") else arguments[n] & 0xFFFF_FFFF for n, t in code.parameters]
                self._run(code, grid, values)
                for name, value in arrays.items():
                    value[...] = self._receive(addresses[name], value, f"{kernel} wrote behind {name}")
            except LlamacError:
                owned.pop_all()  # after a wild access nothing can be freed: that error is the one to tell
                raise
        self.launches += 1

    def _run(self, code: LaunchCode, grid: tuple[int, ...], values: list[int]) -> None:
        numbers = np.array([*values, 0, 0], np.uint64)
        pointers = numbers.ctypes.data + 8 * np.arange(numbers.size, dtype=np.uint64)
        x, y, z = (*grid, 1, 1)[:3]
        shape = LaunchShape((x, y, z), code.warps * self._warp, code.shared_bytes)
        self.driver.launch(self._function(code), shape, pointers.ctypes.data, self._stream)
        self.driver.wait_for_stream(self._stream)

    def _function(self, code: LaunchCode) -> int:
        if code.code not in self._functions:
            module = self.driver.load_module(self.folder.bytes_of(code))
            function = self.driver.function(module, code.name)
            self.driver.allow_shared(function, code.shared_bytes)
            self._functions[code.code] = (module, function)
        return self._functions[code.code][1]

    def _send(self, value: Array, owned: ExitStack) -> int:
        data = np.concatenate(
            [np.ascontiguousarray(value).reshape(-1).view(np.uint8), np.full(GUARD, POISON, np.uint8)]
        )
        address = self.driver.allocate(data.nbytes)
        owned.callback(self.driver.free, address)
        upload(self.driver, data, address, self._stream)
        return address

    def _receive(self, address: int, like: Array, complaint: str) -> Array:
        size = like.nbytes + GUARD
        pinned = self.driver.allocate_pinned(size)
        self.driver.copy_out(pinned, address, size, self._stream)
        self.driver.wait_for_stream(self._stream)
        found = host_bytes(pinned, size).copy()
        self.driver.free_pinned(pinned)
        assert (found[like.nbytes :] == POISON).all(), complaint
        return found[: like.nbytes].view(like.dtype).reshape(like.shape)


def open_runner(kind: str, folder: Path) -> KernelRunner:
    """A GPU of this machine and the code for its architecture."""
    _, gpu = find_gpu("cuda" if kind == "cuda" else "hip")
    return KernelRunner(kind, KernelFolder(folder, gpu.architecture))

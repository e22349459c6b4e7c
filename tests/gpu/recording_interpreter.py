"""Triton's interpreter, which also compiles what it runs: the tests make the code that a GPU will be tested with."""

from __future__ import annotations

from typing import Any

from kernel_code import KernelFolder
from triton_interpreted import Interpreter


class RecordingInterpreter(Interpreter):
    """Compiles every kernel that is launched, for each folder's architecture, then interprets it."""

    def __init__(self, folders: list[KernelFolder]) -> None:
        super().__init__()
        self.folders = folders

    def launch(self, kernel: str, grid: tuple[int, ...], /, **arguments: Any) -> None:
        for folder in self.folders:
            folder.find(kernel, arguments)
        super().launch(kernel, grid, **arguments)

"""A driver that does one launch after another and waits for each: the launch that fails is known by name.

No launch starts before the one before it has ended, and no graph is recorded. A model that is right this way alone has
a fault in what its kernels assume of one another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import Driver, LaunchShape

Recorded = tuple[int, LaunchShape, int]


class CarefulDriver:
    """Everything but launches and graphs is the driver's own."""

    def __init__(self, driver: Driver) -> None:
        self._driver: Any = driver
        self._kernels: dict[int, str] = {}
        self._recording: list[Recorded] | None = None
        self._recorded: list[list[Recorded]] = []
        self.launches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def function(self, module: int, name: str) -> int:
        found: int = self._driver.function(module, name)
        self._kernels[found] = f"kernel {len(self._kernels)} of the plan, {name}"
        return found

    def launch(self, function: int, shape: LaunchShape, parameters: int, stream: int) -> None:
        if self._recording is not None:
            self._recording.append((function, shape, parameters))
            return
        try:
            self._driver.launch(function, replace(shape, dependent=False), parameters, stream)
            self._driver.wait_for_stream(stream)
        except LlamacError as error:
            error.add_note(f"in launch {self.launches}: {self._kernels.get(function)}, {shape}")
            raise
        self.launches += 1

    def begin_capture(self, stream: int) -> None:
        self._recording = []

    def end_capture(self, stream: int) -> int:
        assert self._recording is not None
        self._recorded.append(self._recording)
        self._recording = None
        return len(self._recorded) - 1

    def launch_graph(self, graph: int, stream: int) -> None:
        for function, shape, parameters in self._recorded[graph]:
            self.launch(function, shape, parameters, stream)

    def end_graph(self, graph: int) -> None:
        self._recorded[graph] = []

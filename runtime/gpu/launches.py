"""The launches of a bucket as a driver takes them: functions, grids, and every parameter's value in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from llamac.artifact.launch_plan import Argument, Launch, LaunchPlan, Meeting, Pointer, evaluate

from .driver import Driver, LaunchShape
from .nccl import GpuCollectives

_SCRATCH_POINTERS = 2
"""After its parameters a kernel takes the addresses of global and of profile scratch; no kernel has any: null."""


class LaunchList:
    """Launches with room for their parameters; `bind` says where buffers are and how large the step is, `run` launches.

    functions: the driver's handle of each kernel of the plan.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        launches: Sequence[Launch],
        functions: Sequence[int],
        meetings: Sequence[Meeting] = (),
        collectives: GpuCollectives | None = None,
    ) -> None:
        self.plan = plan
        self._meetings = meetings
        self._collectives = collectives
        self._met: dict[int, list[Callable[[int], None]]] = {}
        self.launches = launches
        self._functions = [functions[launch.kernel] for launch in launches]
        self._arguments: list[Argument] = [value for one in launches for value in (*one.arguments, 0, 0)]
        counts = [len(launch.arguments) + _SCRATCH_POINTERS for launch in launches]
        self._values = np.zeros(max(len(self._arguments), 1), np.uint64)
        self._pointers = self._values.ctypes.data + 8 * np.arange(self._values.size, dtype=np.uint64)
        starts = np.cumsum([0, *counts])[:-1]
        self._parameters = [self._pointers.ctypes.data + 8 * int(start) for start in starts]
        self._shapes: list[LaunchShape] = []

    def bind(self, base: Mapping[str, int], variables: Mapping[str, int]) -> None:
        """Set every parameter and grid. base: buffer -> its address. variables: the sizes of the step."""
        values = [_value(argument, base, variables) for argument in self._arguments]
        self._values[: len(values)] = np.array(values, np.uint64)
        self._shapes = [self._shape(launch, variables) for launch in self.launches]
        self._met = {}
        for meeting in self._meetings:
            self._met.setdefault(meeting.at, []).append(self._meet(meeting, base, variables))

    def _meet(self, meeting: Meeting, base: Mapping[str, int], variables: Mapping[str, int]) -> Callable[[int], None]:
        """What puts a meeting of the ranks on a stream."""
        assert self._collectives is not None
        source, to = (base[p.buffer] + p.offset for p in (meeting.source, meeting.to))
        rows = evaluate(meeting.rows, variables)
        if meeting.kind == "all_reduce":
            return partial(self._collectives.all_reduce, to, rows * meeting.columns)
        return partial(self._collectives.all_gather, source, to, rows, meeting.columns)

    def _shape(self, launch: Launch, variables: Mapping[str, int]) -> LaunchShape:
        kernel = self.plan.kernels[launch.kernel]
        x, y, z = (evaluate(size, variables) for size in launch.grid)
        threads = kernel.warps * self.plan.warp
        grid = (x * kernel.blocks_per_cluster, y, z)
        return LaunchShape(grid, threads, kernel.shared_bytes, kernel.dependent_launch)

    def run(self, driver: Driver, stream: int) -> None:
        """Put all launches on the stream, in order, and what ranks meet for; nothing is decided or awaited between."""
        given = zip(self._functions, self._shapes, self._parameters, strict=True)
        for number, (function, shape, parameters) in enumerate(given):
            for meet in self._met.get(number, ()):
                meet(stream)
            driver.launch(function, shape, parameters, stream)
        for meet in self._met.get(len(self.launches), ()):
            meet(stream)


def _value(argument: Argument, base: Mapping[str, int], variables: Mapping[str, int]) -> int:
    """What stands in a parameter's 8 bytes: an address, or an i32 in the lower four."""
    if isinstance(argument, Pointer):
        return base[argument.buffer] + argument.offset
    return evaluate(argument, variables) & 0xFFFF_FFFF

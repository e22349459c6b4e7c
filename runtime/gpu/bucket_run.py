"""One bucket of a launch plan, ready to run: its launches bound to memory, recorded once where they never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from llamac.artifact.launch_plan import Bucket, LaunchPlan, evaluate
from llamac.errors import LlamacError

from .driver import Driver
from .launches import LaunchList
from .memory import PlannedMemory
from .nccl import GpuCollectives
from .step_inputs import StepInputs, aligned

Result = Literal["logits", "greedy", "sample", "none"]
OUTPUT_OF: dict[str, str] = {"logits": "logits", "greedy": "best", "sample": "sampled"}
"""Result -> the output buffer that holds it."""

TOKENS_OF: dict[str, str] = {"greedy": "best", "sample": "chosen"}
"""Result -> the output buffer with the ids that the next step can be fed."""


class BucketRun:
    """Runs the steps of one bucket.

    A replayed bucket is bound once, to its full size, and recorded as a graph for each result when that is first
    wanted. The others are bound anew for every step.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        bucket: Bucket,
        functions: Sequence[int],
        inputs: StepInputs,
        memory: PlannedMemory,
        collectives: GpuCollectives | None = None,
    ) -> None:
        self.bucket = bucket
        self._plan = plan
        self._inputs = inputs
        self._memory = memory
        met = bucket.meetings
        self._body = LaunchList(plan, bucket.launches, functions, met.get("launches", ()), collectives)
        self._tails = {
            result: LaunchList(plan, launches, functions, met.get(result, ()), collectives)
            for result, launches in bucket.tails.items()
        }
        self._graphs: dict[Result, int] = {}
        self.input_offsets: dict[str, int] = {}
        self.output_at: dict[str, int] = {}
        if bucket.is_replayed:
            self._bind(inputs.largest(bucket))

    def prepare(self, variables: Mapping[str, int]) -> None:
        """Fit the launches to one step."""
        if not self.bucket.is_replayed:
            self._bind(variables)

    def _bind(self, variables: Mapping[str, int]) -> None:
        self.input_offsets, _ = self._inputs.offsets(variables)
        end = self._memory.outputs
        for buffer in self._plan.buffers:
            if buffer.role == "output":
                self.output_at[buffer.name] = end
                end += aligned(evaluate(buffer.bytes, variables))
        base = dict(self._memory.base) | self.output_at
        base |= {name: self._memory.inputs + offset for name, offset in self.input_offsets.items()}
        for launches in (self._body, *self._tails.values()):
            launches.bind(base, variables)

    def run(self, driver: Driver, stream: int, result: Result) -> None:
        """Put the step on the stream; its inputs must be there before it."""
        if not self.bucket.is_replayed:
            self._launch(driver, stream, result)
            return
        if result not in self._graphs:
            self._graphs[result] = self._record(driver, stream, result)
        driver.launch_graph(self._graphs[result], stream)

    def _launch(self, driver: Driver, stream: int, result: Result) -> None:
        self._body.run(driver, stream)
        if result != "none":
            self.run_tail(driver, stream, result)

    def run_tail(self, driver: Driver, stream: int, result: Result) -> None:
        """Once more what follows the layers, for other rows of the same step."""
        self._tails[result].run(driver, stream)

    def _record(self, driver: Driver, stream: int, result: Result) -> int:
        driver.begin_capture(stream)
        try:
            self._launch(driver, stream, result)
        except BaseException:
            with suppress(LlamacError):  # what was refused has ended the recording: that error is the one to tell
                driver.end_graph(driver.end_capture(stream))
            raise
        return driver.end_capture(stream)

    def close(self, driver: Driver) -> None:
        """Forget the recordings."""
        while self._graphs:
            driver.end_graph(self._graphs.popitem()[1])

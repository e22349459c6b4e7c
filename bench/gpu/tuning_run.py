"""Candidates of kernels on a GPU: launched over made inputs, compared with the first, timed by the GPU's clock."""

from __future__ import annotations

import statistics
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from llamac.artifact.launch_plan import attention_tiles
from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import LaunchShape
from llamac.runtime.gpu.found import find_gpu
from llamac.runtime.gpu.upload import host_bytes, upload

Array = np.ndarray[Any, Any]

OUTPUTS = ("y_ptr", "out_ptr", "q_ptr", "best_ptr")
TYPES: dict[str, Any] = {
    "fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16, "i32": np.int32, "u32": np.uint32,
    "u8": np.uint8, "fp8e4nv": np.uint8, "fp8e4b8": np.uint8,
}  # fmt: skip
PATTERN = 1 << 20
"""Bytes after which made inputs repeat."""

COLD = 256 << 20
"""Bytes of weights or cache that launches go through in turn, so that none finds its own in the GPU's cache."""

COMPARED = 4 << 20
"""Bytes of a result that are looked at."""

TOLERANCE = 2e-2
"""Of the largest value: candidates add in another order, and results are 16-bit floats."""

LAUNCHES, TIMES = 20, 5


class TuningRun:
    """The GPU, and the code of the candidates; `rehearse`: whatever comes out counts as right, and means nothing."""

    def __init__(self, architecture: str, members: dict[str, bytes], rehearse: bool) -> None:
        self.driver, self.gpu = find_gpu("hip" if architecture.startswith("gfx") else "cuda")
        if self.gpu.architecture != architecture:
            reason = f"the candidates are code for {architecture}, and the GPU is {self.gpu.label}"
            raise LlamacError("LLC0863", str(self.gpu.index), reason, "compile them with its --target")
        self.driver.open(self.gpu.index)
        self.members, self.rehearse = members, rehearse
        self._stream = self.driver.new_stream()
        self._marks = [self.driver.new_event() for _ in range(2)]
        self._warp = 64 if architecture.startswith("gfx9") else 32

    def __enter__(self) -> TuningRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mark in self._marks:
            self.driver.end_event(mark)
        self.driver.end_stream(self._stream)
        self.driver.close()

    def fastest(self, case: dict[str, Any]) -> dict[str, Any] | None:
        """The choices of the fastest candidate that is right; None where not even the first wrote its result.

        LLC0864 when a candidate has done what the driver cannot go on after.
        """
        memory = _Memory(self, case)
        found = self._fastest(case, memory)
        memory.free()
        return found

    def _fastest(self, case: dict[str, Any], memory: _Memory) -> dict[str, Any] | None:
        reference: Array | None = None
        times: list[tuple[float, int]] = []
        for number, candidate in enumerate(case["candidates"]):
            module = self.driver.load_module(self.members[candidate["code"]])
            found = self._result(module, candidate, memory)
            if number == 0:
                reference = found
            if reference is None or not (self.rehearse or np.isfinite(reference).any()):
                self.driver.unload_module(module)
                return None
            if found is not None and (self.rehearse or agree(found, reference)):
                times.append((self._seconds(module, candidate, memory), number))
            self.driver.unload_module(module)
        seconds, number = min(times)
        best = case["candidates"][number]
        kept = {name: best[name] for name in ("choices", "warps", "stages")}
        own = next(time for time, place in times if place == 0)
        return {**kept, "microseconds": seconds * 1e6, "cost_model_microseconds": own * 1e6, "tried": len(times)}

    def _result(self, module: int, candidate: dict[str, Any], memory: _Memory) -> Array | None:
        """What one launch gives; None where the GPU has no room for the candidate's blocks."""
        memory.poison()
        try:
            self._launch(self._function(module, candidate), candidate, memory, 1)
        except LlamacError:
            self.driver.wait_for_stream(self._stream)  # raises where the GPU cannot be used any more
            return None
        return memory.result()

    def _function(self, module: int, candidate: dict[str, Any]) -> int:
        function = self.driver.function(module, candidate["name"])
        self.driver.allow_shared(function, candidate["shared_bytes"])
        return function

    def _seconds(self, module: int, candidate: dict[str, Any], memory: _Memory) -> float:
        """GPU seconds of a launch among many, replayed: one by one the host would take longer than small kernels do."""
        function, found = self._function(module, candidate), []
        self.driver.begin_capture(self._stream)
        self._launch(function, candidate, memory, LAUNCHES)
        graph = self.driver.end_capture(self._stream)
        self.driver.launch_graph(graph, self._stream)
        for _ in range(TIMES):
            self.driver.mark(self._marks[0], self._stream)
            self.driver.launch_graph(graph, self._stream)
            self.driver.mark(self._marks[1], self._stream)
            self.driver.wait_for_event(self._marks[1])
            found.append(self.driver.seconds_between(*self._marks) / LAUNCHES)
        self.driver.end_graph(graph)
        return statistics.median(found)

    def _launch(self, function: int, candidate: dict[str, Any], memory: _Memory, times: int) -> None:
        x, y, z = candidate["grid"]
        dependent = candidate["dependent"] and times > 1
        shape = LaunchShape((x, y, z), candidate["threads"] * self._warp, candidate["shared_bytes"], dependent)
        for turn in range(times):
            values = np.array([*memory.arguments(candidate["parameters"], turn), 0, 0], np.uint64)
            pointers = values.ctypes.data + 8 * np.arange(values.size, dtype=np.uint64)
            self.driver.launch(function, shape, pointers.ctypes.data, self._stream)


def agree(found: Array, reference: Array) -> bool:
    """Whether a result is another's, as nearly as 16-bit floats are; places that neither wrote do not count."""
    written = np.isfinite(reference)
    if not written.any() or not np.array_equal(written, np.isfinite(found)):
        return False
    largest = max(float(np.abs(reference[written]).max()), 1e-6)
    return float(np.abs(found[written] - reference[written]).max()) <= TOLERANCE * largest


class _Memory:
    """What is behind the pointers of a case; weights or cache several times."""

    def __init__(self, run: TuningRun, case: dict[str, Any]) -> None:
        self.run, self.case = run, case
        self.types = dict(case["candidates"][0]["parameters"])
        self.at: dict[str, list[int]] = {}
        try:
            for name, size in case["sizes"].items():
                if name in self.types:
                    turns = max(1, min(8, COLD // size)) if name in ("w_ptr", "cache_ptr") and not run.rehearse else 1
                    data = made_input(name, self.types[name], size, case)
                    self.at[name] = []
                    for _ in range(turns):
                        self.at[name].append(run.driver.allocate(max(size, 16)))
                        self._fill(self.at[name][-1], size, data)
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give all of it back."""
        for address in [one for each in self.at.values() for one in each]:
            self.run.driver.free(address)
        self.at = {}

    def arguments(self, parameters: list[list[str]], turn: int) -> list[int]:
        """Addresses and scalars in order."""
        return [
            self.at[name][turn % len(self.at[name])] if kind.startswith("*") else self.case["scalars"][name]
            for name, kind in parameters
        ]

    def poison(self) -> None:
        """Nothing written yet: NaN."""
        for name in OUTPUTS:
            if name in self.at and not self._is_input(name):
                self.run.driver.fill(self.at[name][0], 0xFF, self.case["sizes"][name], self.run._stream)

    def result(self) -> Array:
        """What was written, as f32."""
        name = next(name for name in OUTPUTS if name in self.at and not self._is_input(name))
        size = min(self.case["sizes"][name], COMPARED)
        pinned = self.run.driver.allocate_pinned(size)
        try:
            self.run.driver.copy_out(pinned, self.at[name][0], size, self.run._stream)
            self.run.driver.wait_for_stream(self.run._stream)
            kind = TYPES[self.types[name].removeprefix("*")]
            return np.asarray(host_bytes(pinned, size).copy().view(kind), np.float32)
        finally:
            self.run.driver.free_pinned(pinned)

    def _is_input(self, name: str) -> bool:
        return name == "q_ptr" and "out_ptr" in self.at

    def _fill(self, address: int, size: int, data: Array) -> None:
        flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)[:size]
        upload(self.run.driver, flat, address, self.run._stream)
        self.run.driver.wait_for_stream(self.run._stream)
        done = flat.size
        while done < size:
            more = min(done, size - done)
            self.run.driver.copy_within(address + done, address, more, self.run._stream)
            done += more
        self.run.driver.wait_for_stream(self.run._stream)


def made_input(name: str, kind: str, size: int, case: dict[str, Any]) -> Array:
    """What lies behind a pointer, or the beginning of what repeats there."""
    dtype = TYPES[kind.removeprefix("*")]
    count = max(1, size // np.dtype(dtype).itemsize)
    if dtype is np.int32:
        return indices(name, count, case)
    count = min(count, PATTERN // np.dtype(dtype).itemsize)
    random = np.random.default_rng(len(name))
    if dtype in (np.uint8, np.uint32):
        # Of 8-bit floats small ones, and never a NaN.
        return random.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8) & np.uint8(0xB7)
    values = random.standard_normal(count).astype(np.float32)
    if "scale" in name or name == "min_ptr":
        values = np.full(count, 0.01, np.float32)
    return (values * (0.02 if name == "w_ptr" else 1.0)).astype(dtype)


def indices(name: str, count: int, case: dict[str, Any]) -> Array:
    """Valid integers: places in the text, pages, tiles, routed rows."""
    constants, tokens = case["constants"], case["tokens"]
    order = np.arange(count, dtype=np.int32)
    if name == "counter_ptr":
        return order * 0
    if name == "positions_ptr":
        return order % tokens if case["is_prompt"] else np.full(count, case["context"] - 1, np.int32)
    if name == "sequences_ptr":
        return order * 0 if case["is_prompt"] else order % tokens
    if name == "tiles_ptr":
        each = constants["ROWS"] // (constants["HEADS"] // constants["KV_HEADS"])
        tiles = np.array(attention_tiles([0] * tokens, each), np.int32).reshape(-1)
        return np.concatenate([tiles, np.zeros(max(0, count - tiles.size), np.int32)])[:count]
    if name == "offset_ptr":
        experts = constants["EXPERTS"]
        ends = tokens * constants.get("TOP", 1) * np.arange(experts + 1) // experts
        return np.concatenate([ends, np.zeros(max(0, count - ends.size))])[:count].astype(np.int32)
    return order

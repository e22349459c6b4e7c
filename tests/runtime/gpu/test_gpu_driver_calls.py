"""The stub drivers catch every wild call, and after a call that failed the runtime leaves nothing behind."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from toy_gpu import ToyGpuArtifacts, code_members, compiled

from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import Driver, LaunchShape
from llamac.runtime.gpu.found import load_driver
from llamac.runtime.gpu.upload import upload
from llamac.runtime.loader import load

GOOD = LaunchShape((2, 1, 1), 0, 0)


class Bench:
    """An open driver with one stream, one kernel of two pointers and one integer, and its memory."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.driver: Driver = load_driver(stub.vendor)
        self.driver.open(0)
        self.stream = self.driver.new_stream()
        code = "cubin" if stub.vendor == "cuda" else "hsaco"
        image = code_members(stub.architecture, code)[f"gpu/{stub.architecture}/see_tiles.{code}"]
        self.module = self.driver.load_module(image)
        self.function = self.driver.function(self.module, "see_tiles")
        self.memory = self.driver.allocate(256)
        warps = compiled("see_tiles", stub.architecture).warps
        self.shape = dataclasses.replace(GOOD, threads=warps * (32 if stub.vendor == "cuda" else 64))
        self._values = np.array([self.memory, self.memory, 1, 0, 0], np.uint64)
        self._pointers = self._values.ctypes.data + 8 * np.arange(5, dtype=np.uint64)

    def launch(self, shape: LaunchShape | None = None, first: int | None = None) -> None:
        self._values[0] = self.memory if first is None else first
        self.driver.launch(self.function, shape or self.shape, self._pointers.ctypes.data, self.stream)

    def close(self) -> None:
        self.driver.wait_for_stream(self.stream)
        self.driver.free(self.memory)
        self.driver.unload_module(self.module)
        self.driver.end_stream(self.stream)
        self.driver.close()


@pytest.fixture(params=["sm_90", "gfx942"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    stub = Stub("cuda" if request.param.startswith("sm_") else "hip")
    stub.be(request.param)
    made = Bench(stub)
    yield made
    made.close()
    left = (stub.blocks, stub.handles)
    stub.reset()
    assert left == (0, 0)


def test_a_launch_as_it_should_be(bench: Bench) -> None:
    bench.launch()
    (row,) = bench.stub.log("launch")
    assert row["kernel"] == "see_tiles" and row["grid"] == [2, 1, 1] and row["block"] == [bench.shape.threads, 1, 1]
    assert row["parameters"] == [bench.memory, bench.memory, 1, 0, 0]
    assert not bench.stub.violations()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"grid": (0, 1, 1)}, "a grid of 0 x 1 x 1"),
        ({"grid": (1, 65536, 1)}, "a grid of 1 x 65536 x 1"),
        ({"threads": 2048}, "blocks of 2048 threads"),
        ({"threads": 96}, "blocks of 96 threads, made for"),
        ({"shared_bytes": 300 << 10}, "bytes of shared memory that were not allowed"),
    ],
)
def test_the_stub_refuses_launches_out_of_bounds(bench: Bench, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(LlamacError, match="LLC0864"):
        bench.launch(dataclasses.replace(bench.shape, **changes))
    assert text in bench.stub.violations()[0]


def test_shared_memory_above_48_kib_must_be_asked_for(cuda: Stub) -> None:
    cuda.be("sm_90")
    bench = Bench(cuda)
    large = dataclasses.replace(bench.shape, shared_bytes=64 << 10)
    with pytest.raises(LlamacError, match="LLC0864 cuda: cuLaunchKernelEx failed"):
        bench.launch(large)
    cuda.clear()
    bench.driver.allow_shared(bench.function, 64 << 10)
    bench.launch(large)
    bench.close()


def test_the_attributes_of_a_launch(cuda: Stub) -> None:
    cuda.be("sm_90")
    bench = Bench(cuda)
    bench.launch(dataclasses.replace(bench.shape, dependent=True, cooperative=True))
    bench.launch(dataclasses.replace(bench.shape, dependent=True))
    assert [(row["dependent"], row["cooperative"]) for row in cuda.log("launch")] == [(1, 1), (1, 0)]
    bench.close()


def test_a_cooperative_launch_on_hip(hip: Stub) -> None:
    hip.be("gfx942")
    bench = Bench(hip)
    bench.launch(dataclasses.replace(bench.shape, cooperative=True))
    assert [row["cooperative"] for row in hip.log("launch")] == [1]
    bench.close()


@pytest.mark.parametrize("where", ["freed", "past the end", "nowhere"])
def test_the_stub_refuses_pointers_outside_of_memory(bench: Bench, where: str) -> None:
    gone = bench.driver.allocate(256)
    bench.driver.free(gone)
    address = {"freed": gone, "past the end": bench.memory + 256, "nowhere": 12345}[where]
    with pytest.raises(LlamacError, match="LLC0864"):
        bench.launch(first=address)
    assert "parameter 0 of see_tiles points outside of device memory" in bench.stub.violations()[0]


def test_the_stub_refuses_copies_out_of_bounds_and_memory_that_is_not_pinned(bench: Bench) -> None:
    driver, plain = bench.driver, np.zeros(256, np.uint8)
    pinned = driver.allocate_pinned(256)
    driver.copy_in(bench.memory, pinned, 256, bench.stream)
    calls: list[Callable[[], None]] = [
        lambda: driver.copy_in(bench.memory, pinned, 257, bench.stream),
        lambda: driver.copy_in(bench.memory, plain.ctypes.data, 256, bench.stream),
        lambda: driver.copy_out(plain.ctypes.data, bench.memory, 256, bench.stream),
        lambda: driver.copy_out(pinned, bench.memory + 1, 256, bench.stream),
        lambda: driver.fill(bench.memory, 0, 257, bench.stream),
        lambda: driver.copy_within(bench.memory, pinned, 16, bench.stream),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(LlamacError, match="LLC0864"):
            call()
        assert len(bench.stub.violations()) == number + 1
    driver.free_pinned(pinned)
    driver.wait_for_stream(bench.stream)
    assert "freed before its turn" in bench.stub.violations()[-1]


def test_work_waits_until_somebody_waits_for_it(bench: Bench) -> None:
    driver = bench.driver
    pinned = driver.allocate_pinned(8)
    host = (ctypes.c_uint8 * 8).from_address(pinned)
    driver.fill(bench.memory, 5, 8, bench.stream)
    driver.copy_out(pinned, bench.memory, 8, bench.stream)
    assert bytes(host) == b"\xff" * 8
    start, stop = driver.new_event(), driver.new_event()
    driver.mark(start, bench.stream)
    driver.copy_within(bench.memory + 8, bench.memory, 8, bench.stream)
    driver.mark(stop, bench.stream)
    driver.wait_for_event(stop)
    assert bytes(host) == b"\x05" * 8 and driver.seconds_between(start, stop) > 0
    for event in (start, stop):
        driver.end_event(event)
    driver.free_pinned(pinned)


def test_a_graph_does_again_what_was_recorded(bench: Bench) -> None:
    driver, seen = bench.driver, []
    bench.stub.on_launch(lambda *row: seen.append(row[0]))
    driver.begin_capture(bench.stream)
    bench.launch()
    bench.launch()
    with pytest.raises(LlamacError, match="LLC0864"):
        driver.wait_for_stream(bench.stream)
    with pytest.raises(LlamacError, match="LLC0864"):
        driver.allocate(16)
    graph = driver.end_capture(bench.stream)
    driver.wait_for_stream(bench.stream)
    assert seen == []
    for _ in range(3):
        driver.launch_graph(graph, bench.stream)
    driver.wait_for_stream(bench.stream)
    assert seen == [b"see_tiles"] * 6
    driver.end_graph(graph)


def test_a_graph_whose_memory_is_gone_is_caught(bench: Bench) -> None:
    driver = bench.driver
    extra = driver.allocate(256)
    driver.begin_capture(bench.stream)
    bench.launch(first=extra)
    graph = driver.end_capture(bench.stream)
    driver.free(extra)
    driver.launch_graph(graph, bench.stream)
    driver.wait_for_stream(bench.stream)
    assert "points outside of device memory" in bench.stub.violations()[0]
    driver.end_graph(graph)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_100", "gfx90a"])
def test_code_for_another_gpu_is_refused(bench: Bench, architecture: str) -> None:
    code = "cubin" if architecture.startswith("sm") else "hsaco"
    with pytest.raises(LlamacError, match=r"LLC0864.*(NO_BINARY_FOR_GPU|NoBinaryForGpu)"):
        bench.driver.load_module(compiled("best", architecture).code)
    assert code


def test_parameters_are_counted_in_the_code(bench: Bench) -> None:
    """The stub reads them from the cubin and the hsaco; Triton says how many there should be."""
    for name in ("remember", "answer", "best"):
        made = compiled(name, bench.stub.architecture)
        bench.stub.clear()
        module = bench.driver.load_module(made.code)
        assert bench.stub.log("load")[0]["parameters"] == len(made.parameters) + 2
        bench.driver.unload_module(module)


@pytest.mark.parametrize("size", [1, 1000, 4096, 10_000])
def test_upload_in_chunks(bench: Bench, size: int) -> None:
    driver = bench.driver
    source = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    address = driver.allocate(size)
    upload(driver, source, address, bench.stream, chunk_bytes=1000)
    np.testing.assert_array_equal((ctypes.c_uint8 * size).from_address(address), source)
    assert [row["bytes"] for row in bench.stub.log("copy_in")] == [1000] * (size // 1000) + [size % 1000] * (
        size % 1000 > 0
    )
    driver.free(address)


CALLS = {
    "cuda": [
        "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
        "cuMemGetInfo", "cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate",
        "cuEventCreate", "cuMemcpyHtoDAsync", "cuMemsetD8Async", "cuEventRecord", "cuStreamSynchronize",
    ],
    "hip": [
        "hipDriverGetVersion", "hipGetDeviceCount", "hipGetDevicePropertiesR0600", "hipSetDevice", "hipMemGetInfo",
        "hipModuleLoadData", "hipModuleGetFunction", "hipMalloc", "hipHostMalloc", "hipStreamCreateWithFlags",
        "hipEventCreateWithFlags", "hipMemcpyHtoDAsync", "hipMemsetD8Async", "hipEventRecord", "hipStreamSynchronize",
    ],
}  # fmt: skip
STEPS = {
    "cuda": ["cuMemcpyHtoDAsync", "cuEventRecord", "cuStreamBeginCapture", "cuLaunchKernelEx", "cuStreamEndCapture",
             "cuGraphInstantiate", "cuGraphLaunch", "cuMemcpyDtoHAsync", "cuStreamSynchronize"],
    "hip": ["hipMemcpyHtoDAsync", "hipEventRecord", "hipStreamBeginCapture", "hipModuleLaunchKernel",
            "hipStreamEndCapture", "hipGraphInstantiate", "hipGraphLaunch", "hipMemcpyDtoHAsync",
            "hipStreamSynchronize"],
}  # fmt: skip


def _each(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(vendor, name) for vendor, names in table.items() for name in names]


@pytest.mark.parametrize(("vendor", "call"), _each(CALLS))
def test_whatever_fails_while_loading_is_named_and_nothing_is_left(
    vendor: str, call: str, request: pytest.FixtureRequest, toy_gpu_artifacts: ToyGpuArtifacts
) -> None:
    stub: Stub = request.getfixturevalue(vendor)
    stub.be("sm_90" if vendor == "cuda" else "gfx942")
    path = toy_gpu_artifacts.make(stub.architecture, cpu=True)
    stub.fail(call, 999)
    with pytest.raises(LlamacError, match=f"LLC0864 {vendor}: {call} failed: "):
        load(path)


@pytest.mark.parametrize(("vendor", "call"), _each(STEPS))
def test_after_a_failed_step_the_next_one_runs(
    vendor: str, call: str, request: pytest.FixtureRequest, toy_gpu_artifacts: ToyGpuArtifacts
) -> None:
    from toy_gpu import ToyGpu

    stub: Stub = request.getfixturevalue(vendor)
    stub.be("sm_90" if vendor == "cuda" else "gfx942")
    toy = ToyGpu(stub)
    with load(toy_gpu_artifacts.make(stub.architecture), device=vendor) as model:
        stub.fail(call, 999)
        with pytest.raises(LlamacError, match=f"LLC0864 {vendor}: {call}"):
            model.generate([1, 2], max_new_tokens=3)
        assert model.generate([98], max_new_tokens=3).token_ids == [99, 100, 101]
    assert toy.failure is None


def test_a_thread_without_a_context_is_caught(cuda: Stub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    cuda.be("sm_90")
    bench = Bench(cuda)
    with ThreadPoolExecutor(1) as pool, pytest.raises(LlamacError, match=r"LLC0864.*INVALID_CONTEXT"):
        pool.submit(bench.driver.allocate, 16).result()
    assert "cuMemAlloc on a thread without a context" in cuda.violations()[0]
    cuda.clear()
    bench.close()


@pytest.mark.parametrize("vendor", ["cuda", "hip"])
def test_a_launch_that_is_refused_while_it_is_recorded_is_named(
    vendor: str, request: pytest.FixtureRequest, toy_gpu_artifacts: ToyGpuArtifacts
) -> None:
    """It ends the recording, so that ending it fails too: that is not what went wrong."""
    from toy_gpu import ToyGpu

    stub: Stub = request.getfixturevalue(vendor)
    stub.be("sm_90" if vendor == "cuda" else "gfx942")
    ToyGpu(stub)
    launch, end = {
        "cuda": ("cuLaunchKernelEx", "cuStreamEndCapture"),
        "hip": ("hipModuleLaunchKernel", "hipStreamEndCapture"),
    }[vendor]
    with load(toy_gpu_artifacts.make(stub.architecture), device=vendor) as model:
        sequence = model.session.open()
        stub.fail(launch, 999)
        stub.fail(end, 901)
        with pytest.raises(LlamacError, match=f"LLC0864 {vendor}: {launch} failed"):
            model.session.prefill(sequence, [1])


def test_the_last_one_to_close_leaves_no_context(cuda: Stub) -> None:
    """Who uses CUDA next on this thread, torch for one, must not find a context that is gone; others keep theirs."""
    cuda.be("sm_90")
    first, second = load_driver("cuda"), load_driver("cuda")
    first.open(0)
    second.open(0)
    first.close()
    second.free_memory()
    second.close()
    with pytest.raises(LlamacError, match=r"LLC0864.*INVALID_CONTEXT"):
        second.free_memory()
    cuda.clear()

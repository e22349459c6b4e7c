"""NVIDIA's driver through cuda-bindings, which is imported when a GPU is wanted."""

from __future__ import annotations

from typing import Any, ClassVar

from llamac.errors import LlamacError

from .driver import GpuInfo, Kind, LaunchShape, refused

INSTALL = 'pip install "llamac[cuda]"'
SHARED_WITHOUT_ASKING = 48 << 10
_NON_BLOCKING_STREAM = 1
_NO_DEVICE = 100
_CAPTURE_THIS_THREAD = "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        reason = f"cuda-bindings, which reaches the driver of NVIDIA GPUs, is not installed ({error})"
        raise LlamacError("LLC0861", "cuda", reason, INSTALL) from None
    return driver


class CudaDriver:
    """`driver.Driver` for NVIDIA GPUs.

    Raises LLC0861 when cuda-bindings is missing and LLC0860 when there is no libcuda.
    """

    kind: Kind = "cuda"
    _retained: ClassVar[int] = 0
    """Drivers of this process that hold a context."""

    def __init__(self) -> None:
        self._cuda = _bindings()
        self._context: Any = None
        self._device = 0
        self._found = self._start()

    def _start(self) -> bool:
        """Whether there is any GPU."""
        try:
            (status,) = self._cuda.cuInit(0)
        except RuntimeError as error:
            reason = f"the driver library libcuda.so.1 cannot be loaded: {_first_line(error)}"
            raise LlamacError("LLC0860", "cuda", reason, "install NVIDIA's driver, or run on the CPU") from None
        if int(status) == _NO_DEVICE:
            return False
        self._check("cuInit", status)
        return True

    def _check(self, call: str, status: Any) -> None:
        if int(status) != 0:
            _, name = self._cuda.cuGetErrorName(status)
            raise refused("cuda", call, name.decode() if isinstance(name, bytes) else str(status))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function by name; its results without the status, one as itself."""
        try:
            status, *results = getattr(self._cuda, name)(*arguments)
        except RuntimeError as error:  # the driver is older than the function
            raise refused("cuda", name, _first_line(error)) from None
        self._check(name, status)
        return results[0] if len(results) == 1 else results

    def _attribute(self, name: str, device: Any) -> int:
        which = getattr(self._cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", which, device))

    def gpus(self) -> list[GpuInfo]:
        return [self._describe(n) for n in range(int(self._call("cuDeviceGetCount")))] if self._found else []

    def _describe(self, index: int) -> GpuInfo:
        device = self._call("cuDeviceGet", index)
        version = int(self._call("cuDriverGetVersion"))
        major, minor = (self._attribute(f"COMPUTE_CAPABILITY_{part}", device) for part in ("MAJOR", "MINOR"))
        return GpuInfo(
            kind="cuda",
            index=index,
            name=self._call("cuDeviceGetName", 128, device).split(b"\0")[0].decode("utf-8", "replace").strip(),
            architecture=f"sm_{major}{minor}",
            driver=(version // 1000, version % 1000 // 10),
            memory_bytes=int(self._call("cuDeviceTotalMem", device)),
            shared_bytes=self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", device),
        )

    def open(self, index: int) -> None:
        self._device = int(self._call("cuDeviceGet", index))
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        CudaDriver._retained += 1
        try:
            self.make_current()
        except LlamacError:
            self.close()
            raise

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            CudaDriver._retained -= 1
            self._call("cuDevicePrimaryCtxRelease", self._device)
            if CudaDriver._retained == 0:
                # With its last holder the context is gone: what uses CUDA next on this thread must not find it current.
                self._call("cuCtxSetCurrent", None)

    def make_current(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def free_memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def load_module(self, image: bytes) -> int:
        return int(self._call("cuModuleLoadData", image))

    def unload_module(self, module: int) -> None:
        self._call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        return int(self._call("cuModuleGetFunction", module, name.encode()))

    def allow_shared(self, function: int, shared_bytes: int) -> None:
        if shared_bytes > SHARED_WITHOUT_ASKING:
            which = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, which, shared_bytes)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_pinned(self, size: int) -> int:
        return int(self._call("cuMemHostAlloc", size, 0))

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", to, source, size, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", to, source, size, stream)

    def copy_within(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, source, size, stream)

    def fill(self, to: int, value: int, size: int, stream: int) -> None:
        self._call("cuMemsetD8Async", to, value, size, stream)

    def new_stream(self) -> int:
        return int(self._call("cuStreamCreate", _NON_BLOCKING_STREAM))

    def end_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def wait_for_stream(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def new_event(self) -> int:
        return int(self._call("cuEventCreate", 0))

    def end_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def mark(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait_for_event(self, event: int) -> None:
        self._call("cuEventSynchronize", event)

    def seconds_between(self, start: int, stop: int) -> float:
        return float(self._call("cuEventElapsedTime", start, stop)) * 1e-3

    def launch(self, function: int, shape: LaunchShape, parameters: int, stream: int) -> None:
        config = self._cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = shape.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = shape.threads, 1, 1
        config.sharedMemBytes = shape.shared_bytes
        config.hStream = stream
        attributes = self._launch_attributes(shape)
        config.attrs, config.numAttrs = attributes, len(attributes)
        self._call("cuLaunchKernelEx", config, function, parameters, 0)

    def _launch_attributes(self, shape: LaunchShape) -> list[Any]:
        names = self._cuda.CUlaunchAttributeID
        rows = []
        if shape.dependent:
            row = self._cuda.CUlaunchAttribute()
            row.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            row.value.programmaticStreamSerializationAllowed = 1
            rows.append(row)
        if shape.cooperative:
            row = self._cuda.CUlaunchAttribute()
            row.id = names.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            row.value.cooperative = 1
            rows.append(row)
        return rows

    def begin_capture(self, stream: int) -> None:
        mode = getattr(self._cuda.CUstreamCaptureMode, _CAPTURE_THIS_THREAD)
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        recorded = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", recorded, 0))
        finally:
            self._call("cuGraphDestroy", recorded)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def end_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

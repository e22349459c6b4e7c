"""AMD's driver through ctypes: the functions of libamdhip64 that the runtime needs."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from llamac.errors import LlamacError

from .driver import GpuInfo, Kind, LaunchShape, refused

LIBRARY_NAMES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so")
"""Where ROCm 7 and 6 have it; the structure of device properties has been the same since ROCm 6."""

_PROPERTIES_BYTES, _NAME_BYTES, _ARCHITECTURE_AT = 1472, 256, 1160
"""hipDeviceProp_tR0600: its size, that of the name at its beginning, and the offset of gcnArchName."""

_NON_BLOCKING_STREAM = 1
_NO_DEVICE = 100
_CAPTURE_THIS_THREAD = 1

_U32, _INT, _SIZE, _POINTER = ctypes.c_uint32, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_OUT, _OUT_INT, _OUT_SIZE = ctypes.POINTER(_POINTER), ctypes.POINTER(_INT), ctypes.POINTER(_SIZE)
_COPY = (_POINTER, _POINTER, _SIZE, _POINTER)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hipInit": (_U32,),
    "hipDriverGetVersion": (_OUT_INT,),
    "hipGetDeviceCount": (_OUT_INT,),
    "hipSetDevice": (_INT,),
    "hipGetDevicePropertiesR0600": (_POINTER, _INT),
    "hipMemGetInfo": (_OUT_SIZE, _OUT_SIZE),
    "hipModuleLoadData": (_OUT, ctypes.c_char_p),
    "hipModuleUnload": (_POINTER,),
    "hipModuleGetFunction": (_OUT, _POINTER, ctypes.c_char_p),
    "hipMalloc": (_OUT, _SIZE),
    "hipFree": (_POINTER,),
    "hipHostMalloc": (_OUT, _SIZE, _U32),
    "hipHostFree": (_POINTER,),
    "hipMemcpyHtoDAsync": _COPY,
    "hipMemcpyDtoHAsync": _COPY,
    "hipMemcpyDtoDAsync": _COPY,
    "hipMemsetD8Async": (_POINTER, ctypes.c_ubyte, _SIZE, _POINTER),
    "hipStreamCreateWithFlags": (_OUT, _U32),
    "hipStreamDestroy": (_POINTER,),
    "hipStreamSynchronize": (_POINTER,),
    "hipEventCreateWithFlags": (_OUT, _U32),
    "hipEventDestroy": (_POINTER,),
    "hipEventRecord": (_POINTER, _POINTER),
    "hipEventSynchronize": (_POINTER,),
    "hipEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "hipStreamBeginCapture": (_POINTER, _INT),
    "hipStreamEndCapture": (_POINTER, _OUT),
    "hipGraphInstantiate": (_OUT, _POINTER, _POINTER, _POINTER, _SIZE),
    "hipGraphLaunch": (_POINTER, _POINTER),
    "hipGraphDestroy": (_POINTER,),
    "hipGraphExecDestroy": (_POINTER,),
    "hipModuleLaunchKernel": (_POINTER, *[_U32] * 7, _POINTER, _POINTER, _POINTER),
    "hipModuleLaunchCooperativeKernel": (_POINTER, *[_U32] * 7, _POINTER, _POINTER),
}
"""Function -> its arguments (hip_runtime_api.h); every one returns a status."""


def _library() -> ctypes.CDLL:
    reasons = []
    for name in LIBRARY_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    reason = f"the driver library libamdhip64 cannot be loaded: {reasons[0]}"
    raise LlamacError("LLC0860", "hip", reason, "install ROCm 6 or later, or run on the CPU")


class HipDriver:
    """`driver.Driver` for AMD GPUs. Raises LLC0860 when there is no libamdhip64 of ROCm 6 or later."""

    kind: Kind = "hip"

    def __init__(self) -> None:
        self._hip = _library()
        for name, arguments in _SIGNATURES.items():
            self._declare(name, arguments)
        self._hip.hipGetErrorName.restype = ctypes.c_char_p
        self._index = 0
        status = self._hip.hipInit(0)
        self._found = status != _NO_DEVICE
        if self._found:
            self._check("hipInit", status)

    def _declare(self, name: str, arguments: tuple[Any, ...]) -> None:
        function = getattr(self._hip, name, None)
        if function is None:
            reason = f"libamdhip64 has no function {name}: it is older than ROCm 6"
            raise LlamacError("LLC0860", "hip", reason, "install ROCm 6 or later, or run on the CPU")
        function.restype, function.argtypes = _INT, list(arguments)

    def _check(self, call: str, status: int) -> None:
        if status != 0:
            raise refused("hip", call, self._hip.hipGetErrorName(status).decode("ascii", "replace"))

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._hip, name)(*arguments))

    def _made(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument is where it puts a handle or an address."""
        out = ctypes.c_void_p()
        self._call(name, ctypes.byref(out), *arguments)
        return out.value or 0

    def _integer(self, name: str) -> int:
        out = ctypes.c_int()
        self._call(name, ctypes.byref(out))
        return out.value

    def gpus(self) -> list[GpuInfo]:
        return [self._describe(n) for n in range(self._integer("hipGetDeviceCount"))] if self._found else []

    def _describe(self, index: int) -> GpuInfo:
        properties = ctypes.create_string_buffer(2 * _PROPERTIES_BYTES)
        self._call("hipGetDevicePropertiesR0600", properties, index)
        self._call("hipSetDevice", index)
        # `gfx942:sramecc+:xnack-`: modes of the GPU stand behind the name of the instruction set.
        found = re.match(rb"gfx[0-9a-f]+", properties.raw[_ARCHITECTURE_AT : _ARCHITECTURE_AT + _NAME_BYTES])
        if found is None:
            raise refused("hip", "hipGetDevicePropertiesR0600", "it names no architecture")
        version = self._integer("hipDriverGetVersion")
        return GpuInfo(
            kind="hip",
            index=index,
            name=properties.raw[:_NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace").strip(),
            architecture=found[0].decode(),
            driver=(version // 10_000_000, version // 100_000 % 100),
            memory_bytes=self.free_memory()[1],
        )

    def open(self, index: int) -> None:
        self._index = index
        self.make_current()

    def close(self) -> None:
        """Nothing is held: HIP keeps its context for the life of the process."""

    def make_current(self) -> None:
        self._call("hipSetDevice", self._index)

    def free_memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def load_module(self, image: bytes) -> int:
        return self._made("hipModuleLoadData", image)

    def unload_module(self, module: int) -> None:
        self._call("hipModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        return self._made("hipModuleGetFunction", module, name.encode())

    def allow_shared(self, function: int, shared_bytes: int) -> None:
        """Nothing to ask for: a block may have all of the local memory that the instruction set has."""

    def allocate(self, size: int) -> int:
        return self._made("hipMalloc", size)

    def free(self, address: int) -> None:
        self._call("hipFree", address)

    def allocate_pinned(self, size: int) -> int:
        return self._made("hipHostMalloc", size, 0)

    def free_pinned(self, address: int) -> None:
        self._call("hipHostFree", address)

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("hipMemcpyHtoDAsync", to, source, size, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("hipMemcpyDtoHAsync", to, source, size, stream)

    def copy_within(self, to: int, source: int, size: int, stream: int) -> None:
        self._call("hipMemcpyDtoDAsync", to, source, size, stream)

    def fill(self, to: int, value: int, size: int, stream: int) -> None:
        self._call("hipMemsetD8Async", to, value, size, stream)

    def new_stream(self) -> int:
        return self._made("hipStreamCreateWithFlags", _NON_BLOCKING_STREAM)

    def end_stream(self, stream: int) -> None:
        self._call("hipStreamDestroy", stream)

    def wait_for_stream(self, stream: int) -> None:
        self._call("hipStreamSynchronize", stream)

    def new_event(self) -> int:
        return self._made("hipEventCreateWithFlags", 0)

    def end_event(self, event: int) -> None:
        self._call("hipEventDestroy", event)

    def mark(self, event: int, stream: int) -> None:
        self._call("hipEventRecord", event, stream)

    def wait_for_event(self, event: int) -> None:
        self._call("hipEventSynchronize", event)

    def seconds_between(self, start: int, stop: int) -> float:
        milliseconds = ctypes.c_float()
        self._call("hipEventElapsedTime", ctypes.byref(milliseconds), start, stop)
        return milliseconds.value * 1e-3

    def launch(self, function: int, shape: LaunchShape, parameters: int, stream: int) -> None:
        block = (*shape.grid, shape.threads, 1, 1, shape.shared_bytes)
        if shape.cooperative:
            self._call("hipModuleLaunchCooperativeKernel", function, *block, stream, parameters)
        else:
            self._call("hipModuleLaunchKernel", function, *block, stream, parameters, None)

    def begin_capture(self, stream: int) -> None:
        self._call("hipStreamBeginCapture", stream, _CAPTURE_THIS_THREAD)

    def end_capture(self, stream: int) -> int:
        out = ctypes.c_void_p()
        self._call("hipStreamEndCapture", stream, ctypes.byref(out))
        try:
            return self._made("hipGraphInstantiate", out, None, None, 0)
        finally:
            self._call("hipGraphDestroy", out)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("hipGraphLaunch", graph, stream)

    def end_graph(self, graph: int) -> None:
        self._call("hipGraphExecDestroy", graph)

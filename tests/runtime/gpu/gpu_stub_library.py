"""The recording stub drivers of `stub/`: built with zig, loaded in place of libcuda and libamdhip64, and asked."""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

from llamac.backends.cpu.toolchain import compiler_environment, zig_command

Vendor = Literal["cuda", "hip"]
FOLDER = Path(__file__).parent / "stub"
SONAMES = {"cuda": "libcuda.so.1", "hip": "libamdhip64.so.7"}
MACHINES: dict[str, dict[str, int | str]] = {
    "sm_80": {"major": 8, "minor": 0, "shared": 163 << 10},
    "sm_86": {"major": 8, "minor": 6, "shared": 99 << 10},
    "sm_89": {"major": 8, "minor": 9, "shared": 99 << 10},
    "sm_90": {"major": 9, "minor": 0, "shared": 227 << 10},
    "sm_100": {"major": 10, "minor": 0, "shared": 227 << 10},
    "gfx90a": {"architecture": "gfx90a", "shared": 64 << 10},
    "gfx942": {"architecture": "gfx942", "shared": 64 << 10},
    "gfx950": {"architecture": "gfx950", "shared": 160 << 10},
}
NEW_DRIVER = {"cuda": 13040, "hip": 70051831}
OBSERVER = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_uint32] * 3, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint32
)


def vendor_of(architecture: str) -> Vendor:
    return "cuda" if architecture.startswith("sm_") else "hip"


@functools.cache
def build(vendor: Vendor) -> Path:
    """The stub of a vendor; its SONAME is the real one, so that whoever opens that name afterwards gets it."""
    out = Path(tempfile.mkdtemp(prefix="llamac-gpu-stub-")) / SONAMES[vendor]
    sources = [str(FOLDER / f"{name}.c") for name in ("core", "modules", "queue", "nccl", vendor)]
    flags = [
        "-O1",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-sanitize=all",
    ]
    command = [*zig_command(), "cc", *flags, f"-Wl,-soname,{SONAMES[vendor]}", *sources, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=compiler_environment())
    assert done.returncode == 0, done.stderr
    return out


class Stub:
    """A stub driver in this process. Calls since the last `clear` are in `log()`."""

    architecture = ""
    toy: Any = None

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.library = ctypes.CDLL(str(build(vendor)), mode=ctypes.RTLD_GLOBAL)
        self.library.stub_log.restype = ctypes.c_char_p
        for name in ("stub_blocks", "stub_handles", "stub_room"):
            getattr(self.library, name).restype = ctypes.c_uint64
        self._observer: Any = None
        self.reset()

    def reset(self) -> None:
        """No GPU, no memory, no log."""
        self.library.stub_reset()
        self._observer = None

    def be(
        self, architecture: str, *, memory: int = 80 << 30, free: int | None = None, driver: int | None = None
    ) -> None:
        """One GPU of an architecture, with so much memory in bytes; driver as its library numbers versions."""
        assert vendor_of(architecture) == self.vendor
        self.architecture = architecture
        known = driver if driver is not None else NEW_DRIVER[self.vendor]
        for key, value in {
            "devices": 1,
            "driver": known,
            "total": memory,
            "free": memory if free is None else free,
        }.items():
            self.set(key, value)
        self.set("units", 132)
        self.set("name", f"Stub {architecture}")
        for key, value in MACHINES[architecture].items():
            self.set(key, value)

    def set(self, key: str, value: int | str) -> None:
        if isinstance(value, str):
            self.library.stub_set_text(key.encode(), value.encode())
        else:
            self.library.stub_set(key.encode(), ctypes.c_uint64(value))

    def fail(self, function: str, code: int, call: int = 1) -> None:
        """Let the `call`-th call of a function from now on return `code`."""
        self.library.stub_fail(function.encode(), call, code)

    def on_launch(self, run: Any) -> None:
        """Call run(kernel, module, gx, gy, gz, parameters, count) for every launch when its turn has come."""
        self._observer = OBSERVER(run)
        self.library.stub_on_launch(self._observer)

    def log(self, call: str | None = None) -> list[dict[str, Any]]:
        """What was recorded, oldest first; only of one kind of call when it is named."""
        rows = [json.loads(line) for line in self.library.stub_log().decode().splitlines()]
        return rows if call is None else [row for row in rows if row["call"] == call]

    def clear(self) -> None:
        self.library.stub_clear_log()

    @property
    def blocks(self) -> int:
        """Allocations that were not freed, pinned ones included."""
        return int(self.library.stub_blocks())

    @property
    def handles(self) -> int:
        """Streams, events and graphs that were not destroyed."""
        return int(self.library.stub_handles())

    def room(self, address: int) -> int:
        """Bytes from an address on the GPU to the end of its allocation; 0 outside of any."""
        return int(self.library.stub_room(ctypes.c_uint64(address)))

    def violations(self) -> list[str]:
        return [row["reason"] for row in self.log("violation")]

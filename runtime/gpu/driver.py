"""What the runtime needs of a GPU driver: one small interface, the same for CUDA and HIP.

Addresses, streams, events, modules, functions and graphs are plain integers here. Every call raises LLC0864 with the
driver's own name of the error when it fails. `make_current` comes first on every thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from llamac.errors import LlamacError

Kind = Literal["cuda", "hip"]


@dataclass(frozen=True)
class GpuInfo:
    """One GPU of this machine.

    architecture: `sm_90`, `gfx942`. driver: the CUDA release that the driver supports, or the HIP release, as
    (major, minor). memory_bytes: all of its memory. shared_bytes: the most shared memory of a block, 0 where the
    architecture alone says it.
    """

    kind: Kind
    index: int
    name: str
    architecture: str
    driver: tuple[int, int]
    memory_bytes: int
    shared_bytes: int = 0

    @property
    def label(self) -> str:
        """`NVIDIA H100 (sm_90, CUDA 13.0 driver)`."""
        maker = "CUDA" if self.kind == "cuda" else "HIP"
        return f"{self.name} ({self.architecture}, {maker} {self.driver[0]}.{self.driver[1]} driver)"


@dataclass(frozen=True)
class LaunchShape:
    """How a function is launched: blocks in x, y and z, threads of a block, bytes of dynamic shared memory.

    dependent: it may start before the launch before it has ended (CUDA, sm_90 on). cooperative: all of its blocks run
    at the same time.
    """

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int = 0
    dependent: bool = False
    cooperative: bool = False


class Driver(Protocol):
    """The driver of one kind of GPU; `open` chooses the GPU that everything else concerns."""

    kind: Kind

    def gpus(self) -> list[GpuInfo]:
        """The GPUs that this process may use."""

    def open(self, index: int) -> None:
        """Choose a GPU and make it this thread's."""

    def close(self) -> None:
        """Let go of the GPU; everything made on it must be freed before."""

    def make_current(self) -> None:
        """Make the chosen GPU this thread's."""

    def free_memory(self) -> tuple[int, int]:
        """(free, all) bytes of the GPU's memory."""

    def load_module(self, image: bytes) -> int:
        """A module from a cubin, an hsaco or PTX text."""

    def unload_module(self, module: int) -> None:
        """Forget a module and its functions."""

    def function(self, module: int, name: str) -> int:
        """The kernel of that name."""

    def allow_shared(self, function: int, shared_bytes: int) -> None:
        """Let a function have so much dynamic shared memory, where that must be asked for."""

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU, aligned to 256 at least."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def allocate_pinned(self, size: int) -> int:
        """The address of host memory that the GPU reads and writes by itself."""

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy from pinned memory to the GPU, when the stream comes to it."""

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy from the GPU to pinned memory, when the stream comes to it."""

    def copy_within(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy on the GPU, when the stream comes to it."""

    def fill(self, to: int, value: int, size: int, stream: int) -> None:
        """Set bytes on the GPU to `value`, when the stream comes to it."""

    def new_stream(self) -> int:
        """A queue of work; what is in it runs in order."""

    def end_stream(self, stream: int) -> None:
        """Forget a stream."""

    def wait_for_stream(self, stream: int) -> None:
        """Wait until all work of a stream is done."""

    def new_event(self) -> int:
        """A mark to set in streams."""

    def end_event(self, event: int) -> None:
        """Forget an event."""

    def mark(self, event: int, stream: int) -> None:
        """Set the mark behind all work that the stream has now."""

    def wait_for_event(self, event: int) -> None:
        """Wait until the stream has come to the mark."""

    def seconds_between(self, start: int, stop: int) -> float:
        """GPU time between two marks that have been reached."""

    def launch(self, function: int, shape: LaunchShape, parameters: int, stream: int) -> None:
        """Launch a function; parameters: the address of an array of addresses, one of each parameter's value."""

    def begin_capture(self, stream: int) -> None:
        """From now on the stream's work is recorded, not done."""

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to launch."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Do what was recorded."""

    def end_graph(self, graph: int) -> None:
        """Forget a recording."""


def refused(kind: Kind, call: str, name: str) -> LlamacError:
    """The error of a call that the driver refused with the error called `name`."""
    hint = "see whether other programs use the GPU and whether its driver is well (nvidia-smi, rocm-smi)"
    return LlamacError("LLC0864", kind, f"{call} failed: {name}", hint)

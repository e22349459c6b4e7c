"""The GPU memory of a model: what the plan asks for, whether it fits, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.artifact.launch_plan import Buffer, LaunchPlan, evaluate
from llamac.errors import LlamacError

from .driver import Driver, GpuInfo
from .step_inputs import StepInputs, aligned

OWN_BYTES = 256 << 20
"""What the driver takes beside our buffers: code, stacks, graphs."""

_ROLES = {"weights": "weights", "cache": "KV cache", "scratch": "scratch", "counters": "scratch"}


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes of each buffer but the inputs and outputs, and of the blocks of these, for the largest step."""

    buffers: Mapping[str, int]
    input_bytes: int
    output_bytes: int
    rows: Mapping[str, int]
    """What for -> bytes, for people."""
    image_bytes: tuple[int, int] = (0, 0)
    """Of a run of the image encoder: what it takes and what it gives."""

    @property
    def total(self) -> int:
        """All of it, with what the driver takes."""
        return sum(self.rows.values())

    def arithmetic(self) -> str:
        """`weights 2.5 GB + KV cache 1.1 GB + ... = 4.0 GB`."""
        parts = " + ".join(f"{name} {gigabytes(size)}" for name, size in self.rows.items())
        return f"{parts} = {gigabytes(self.total)}"


def gigabytes(size: int) -> str:
    """Bytes for people, in units of 10^9."""
    return f"{size / 1e9:.2f} GB"


def memory_needs(
    plan: LaunchPlan, inputs: StepInputs, weight_bytes: Mapping[str, int], image_bytes: tuple[int, int] = (0, 0)
) -> MemoryNeeds:
    """Sizes for the largest step of any bucket. weight_bytes: member -> its bytes. image_bytes: see `MemoryNeeds`."""
    largest = [inputs.largest(bucket) for bucket in plan.buckets]
    buffers: dict[str, int] = {}
    rows: dict[str, int] = {}
    for buffer in plan.buffers:
        if buffer.role in _ROLES:
            buffers[buffer.name] = size = _bytes_of(buffer, largest, weight_bytes)
            rows[_ROLES[buffer.role]] = rows.get(_ROLES[buffer.role], 0) + aligned(size)
    outputs = [b for b in plan.buffers if b.role == "output"]
    output_bytes = max(sum(aligned(evaluate(b.bytes, sizes)) for b in outputs) for sizes in largest)
    input_bytes = max(inputs.offsets(sizes)[1] for sizes in largest)
    rows |= {"inputs and outputs": input_bytes + output_bytes + sum(image_bytes), "the driver's own": OWN_BYTES}
    return MemoryNeeds(buffers, input_bytes, output_bytes, rows, image_bytes)


def _bytes_of(buffer: Buffer, largest: list[dict[str, int]], weight_bytes: Mapping[str, int]) -> int:
    size = max(evaluate(buffer.bytes, sizes) for sizes in largest)
    if buffer.role != "weights":
        return size
    found = weight_bytes.get(buffer.member)
    if found is None or found < size:
        reason = f"its plan reads {size} bytes of weights from {buffer.member!r}, which has {found or 'none'}"
        raise LlamacError("LLC0802", buffer.name, reason, "the artifact is damaged: copy it again")
    return found


def check_fits(needs: MemoryNeeds, gpu: GpuInfo, free: int, context: int) -> None:
    """LLC0866, with the arithmetic, when a model needs more than is free."""
    if needs.total <= free:
        return
    reason = (
        f"the model needs {needs.arithmetic()}, and {gpu.label} has {gigabytes(free)} free of "
        f"{gigabytes(gpu.memory_bytes)}: {gigabytes(needs.total - free)} too little"
    )
    raise LlamacError("LLC0866", "GPU memory", reason, _way_out(needs, free, context))


def _way_out(needs: MemoryNeeds, free: int, context: int) -> str:
    """The context that would fit, where the cache is what is too large."""
    cache = needs.rows.get("KV cache", 0)
    room = free - (needs.total - cache)
    tokens = int(context * room / cache) if cache and room > 0 else 0
    if tokens >= 1024:
        return f"load it with a context of at most {tokens // 1024 * 1024} tokens, or free GPU memory"
    return "quantize the weights (--quantize int4), take a larger GPU, or run it on the CPU"


class PlannedMemory:
    """Every buffer of a plan on the GPU, allocated once; `base` gives addresses. Free it with `close`."""

    def __init__(self, driver: Driver, needs: MemoryNeeds) -> None:
        self._driver = driver
        self._made: list[int] = []
        self._pinned: list[int] = []
        self.needs = needs
        self.base: dict[str, int] = {}
        try:
            for name, size in needs.buffers.items():
                self.base[name] = self._allocate(size)
            self.inputs = self._allocate(needs.input_bytes)
            self.outputs = self._allocate(needs.output_bytes)
            self.image_inputs, self.image_outputs = (self._allocate(n) if n else 0 for n in needs.image_bytes)
        except BaseException:
            self.close()
            raise

    def _allocate(self, size: int) -> int:
        address = self._driver.allocate(max(size, 1))
        self._made.append(address)
        return address

    def pinned(self, size: int) -> int:
        """The address of host memory that lives as long as this."""
        address = self._driver.allocate_pinned(max(size, 1))
        self._pinned.append(address)
        return address

    def close(self) -> None:
        """Give everything back."""
        while self._pinned:
            self._driver.free_pinned(self._pinned.pop())
        while self._made:
            self._driver.free(self._made.pop())

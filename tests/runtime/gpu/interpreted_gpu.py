"""A whole runtime on a GPU that Triton's interpreter plays: python interpreted_gpu.py ARTIFACT ARCHITECTURE OUT.npz

The runtime loads the artifact through the stub driver and generates, as it would on hardware. Whenever a launch's turn
comes, the kernel is interpreted over the driver's memory with the very parameters that the launch passed. Whether a
kernel is interpreted is decided when its module is imported, so this is a process of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_stub_library import Stub, vendor_of

from llamac.artifact.launch_plan import Kernel, LaunchPlan
from llamac.errors import LlamacError
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

TYPES = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32, "u32": torch.uint32,
    "i64": torch.int64,
    "u8": torch.uint8, "fp8e4nv": torch.float8_e4m3fn, "fp8e4b8": torch.float8_e4m3fnuz,
}  # fmt: skip


class Watched:
    """The interpreter's loads, stores and atomics, each address of each program checked to lie in the GPU's memory."""

    def __init__(self, real: Any, stub: Stub) -> None:
        self._real = real
        rows = sorted((row["address"], row["address"] + row["bytes"]) for row in stub.log("allocate"))
        self._starts = np.array([start for start, _ in rows], np.uint64)
        self._stops = np.array([stop for _, stop in rows], np.uint64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _check(self, pointers: Any, mask: Any, size: int, what: str) -> None:
        used = np.asarray(pointers, np.uint64)[np.broadcast_to(np.asarray(mask, bool), np.shape(pointers))]
        place = np.searchsorted(self._starts, used, "right") - 1
        wrong = (place < 0) | (used + np.uint64(size) > self._stops[np.maximum(place, 0)])
        assert not wrong.any(), (
            f"{what} {size} bytes outside of the GPU's memory, in {wrong.sum()} of {used.size} places"
        )

    def load(self, pointers: Any, mask: Any, other: Any, kind: Any) -> Any:
        self._check(pointers, mask, np.dtype(kind).itemsize, "reads")
        return self._real.load(pointers, mask, other, kind)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self._check(pointers, mask, value.dtype.itemsize, "writes")
        return self._real.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self._check(pointers, mask, value.dtype.itemsize, "updates")
        return self._real.atomic_rmw(operation, pointers, value, mask, order)


class InterpretedGpu:
    """Interprets launches; `failure` is the first that went wrong."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.launches = 0
        self.failure = self.running = ""
        self._kernels: dict[int, Kernel] = {}
        stub.on_launch(self._launch)

    def learn(self, plan: LaunchPlan) -> None:
        """Which kernel each module holds: modules are loaded in the plan's order, each member once."""
        by_member = {kernel.member: kernel for kernel in reversed(plan.kernels)}
        members = list(dict.fromkeys(kernel.member for kernel in plan.kernels))
        modules = [row["module"] for row in self.stub.log("load")]
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
        interpreter._interpreter = Watched(interpreter._interpreter, self.stub)
        self._kernels = {module: by_member[member] for module, member in zip(modules, members, strict=True)}

    def _launch(self, name: bytes, module: int, x: int, y: int, z: int, values: Any, count: int) -> None:
        if self.failure:
            return
        try:
            kernel = self._kernels[module]
            assert name.decode() == kernel.name and count == len(kernel.parameters) + 2
            self.running = f"{kernel.source} from {kernel.member} over {x} x {y} x {z}"
            passed = {"PDL": False} if "PDL" in kernel.constants else {}
            passed = dict(kernel.constants) | passed
            for parameter, value in zip(kernel.parameters, values[: count - 2], strict=True):
                passed[parameter.name] = self._tensor(value, parameter.type) if parameter.is_pointer else value
            family, function = kernel.source.split(".")
            module_of = importlib.import_module(f"llamac.backends.gpu.kernels.{family}")
            getattr(module_of, function)[(x, y, z)](**passed)
            self.launches += 1
        except BaseException:  # ctypes would only print it
            self.failure = f"{self.running}:\n{traceback.format_exc()}"

    def _tensor(self, address: int, type_name: str) -> torch.Tensor:
        size = self.stub.room(address) // 16 * 16
        memory = (ctypes.c_uint8 * size).from_address(address)
        return torch.frombuffer(memory, dtype=torch.uint8).view(TYPES[type_name.removeprefix("*")])


def generate(model: Model, prompts: list[list[int]], sampling: dict[str, Any]) -> dict[str, Any]:
    """Logits of a prompt, of a batch in several steps, greedy texts, and texts drawn as `sampling` says."""
    session = model.session
    found: dict[str, Any] = {"prompt": model.logits(prompts[0])}
    sequences = [session.open() for _ in prompts]
    feeds = [Feed(sequence, ids[:-1], "none") for sequence, ids in zip(sequences, prompts, strict=True)]
    session.step(feeds)
    found["batch"] = session.step([Feed(s, ids[-1:]) for s, ids in zip(sequences, prompts, strict=True)])
    for sequence in sequences:
        sequence.close()
    texts = model.generate_batch(prompts, max_new_tokens=4, temperature=0.0, ignore_stop_ids=True)
    found["texts"] = np.array([text.token_ids for text in texts])
    texts = model.generate_batch(prompts, max_new_tokens=4, ignore_stop_ids=True, **sampling)
    found["drawn"] = np.array([text.token_ids for text in texts])
    return found


def main(path: str, architecture: str, out: str) -> None:
    """Run the artifact on one interpreted GPU."""
    torch.set_num_threads(1)
    faulthandler.enable()
    stub = Stub(vendor_of(architecture))
    stub.be(architecture)
    gpu = InterpretedGpu(stub)
    prompts, sampling = json.loads(sys.stdin.read())
    with load(path, device=stub.vendor, sequences=len(prompts), context=64) as model:
        assert isinstance(model._device, GpuDevice)
        gpu.learn(model._device.launch_plan)
        try:
            found = generate(model, prompts, sampling)
        except LlamacError as error:
            raise AssertionError(f"{error}; {stub.violations()} {gpu.failure}") from error
    assert not gpu.failure, gpu.failure
    assert not stub.violations() and (stub.blocks, stub.handles) == (0, 0), stub.violations()
    np.savez(out, launches=gpu.launches, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

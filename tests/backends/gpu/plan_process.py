"""Runs launch plans in Triton's interpreter, in a process of its own: python plan_process.py.

It follows a plan as a driver does, launch by launch over named memory. Requests come pickled on stdin: a method of
`Machine` and its arguments; answers go to stdout: what it returned, or the text of an exception.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from llamac.artifact.launch_plan import Buffer, Kernel, Launch, LaunchPlan, Pointer, evaluate
from llamac.artifact.launch_plan_file import read_plan

POISON = 0xFF
"""Every byte that nothing was written to: NaN as a float of any size, and no index."""

TYPES = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32, "u32": torch.uint32,
    "i64": torch.int64,
    "u8": torch.uint8, "fp8e4nv": torch.float8_e4m3fn, "fp8e4b8": torch.float8_e4m3fnuz,
}  # fmt: skip
GUARD = 4096
"""Bytes behind each buffer that no kernel may write."""


class Machine:
    """The memory of one model, and the launches over it."""

    def load(self, plan: bytes, weights: Path, offset: int, variables: dict[str, int]) -> None:
        """Allocate everything; `variables` are those that hold for all steps: pages and the width of the tables."""
        self.plan: LaunchPlan = read_plan(plan, "plan")
        self.variables = variables
        self.memory: dict[str, torch.Tensor] = {}
        for buffer in self.plan.buffers:
            self.memory[buffer.name] = self.allocated(buffer, weights, offset)

    def allocated(self, buffer: Buffer, weights: Path, offset: int) -> torch.Tensor:
        """The memory of a buffer, as it is before the first step."""
        largest = {name: max(getattr(bucket, name) for bucket in self.plan.buckets) for name in ("tokens", "rows")} | {
            "sequences": 64
        }
        encoder = self.plan.encoder
        largest |= {"image_rows": largest["tokens"], "vision_tokens": encoder.most_rows if encoder else 0}
        size = evaluate(buffer.bytes, largest | self.variables)
        memory = torch.full((size + GUARD,), POISON, dtype=torch.uint8)
        if buffer.role == "weights":
            memory[:size] = torch.from_numpy(np.fromfile(weights, np.uint8, size, offset=offset))
        if buffer.role == "counters":
            memory[:size] = 0
        return memory

    def step(
        self, bucket_name: str, result: str, inputs: dict[str, np.ndarray], variables: dict[str, int]
    ) -> np.ndarray:
        """Write the inputs, run every launch, read the result; scratch and results are poisoned before."""
        bucket = next(b for b in self.plan.buckets if b.name == bucket_name)
        bound = self.variables | variables
        for buffer in self.plan.buffers:
            if buffer.role in ("scratch", "output", "input"):
                self.memory[buffer.name].fill_(POISON)
        for name, values in inputs.items():
            flat = torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).reshape(-1).copy())
            self.memory[name][: len(flat)] = flat
        for launch in bucket.steps(result):
            self.launch(self.plan.kernels[launch.kernel], launch, bound)
        self.check(bound)
        name = {"logits": "logits", "greedy": "best", "sample": "sampled"}[result]
        kind = np.float32 if result == "logits" else np.int32
        size = evaluate(self.plan.buffer(name).bytes, bound)
        return self.memory[name][:size].numpy().view(kind).reshape(bound["rows"], -1).copy()

    def encode(self, inputs: dict[str, np.ndarray], variables: dict[str, int]) -> np.ndarray:
        """One run of the image encoder, as a step; what it gives, f32, empty where that is in the cache."""
        assert self.plan.encoder is not None
        bound = self.variables | variables
        for buffer in self.plan.buffers:
            if buffer.role in ("scratch", "image_input", "image_output"):
                self.memory[buffer.name].fill_(POISON)
        for name, values in inputs.items():
            flat = torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).reshape(-1).copy())
            assert len(flat) <= evaluate(self.plan.buffer(name).bytes, bound), name
            self.memory[name][: len(flat)] = flat
        for launch in self.plan.encoder.launches:
            self.launch(self.plan.kernels[launch.kernel], launch, bound)
        self.check(bound)
        outputs = [b for b in self.plan.buffers if b.role == "image_output"]
        found = [self.memory[b.name][: evaluate(b.bytes, bound)].numpy().view(np.float32).copy() for b in outputs]
        return found[0] if found else np.zeros(0, np.float32)

    def launch(self, kernel: Kernel, launch: Launch, bound: dict[str, int]) -> None:
        """One launch: addresses as tensors over the rest of their buffer, constants as they are."""
        family, name = kernel.source.split(".")
        function = getattr(importlib.import_module(f"llamac.backends.gpu.kernels.{family}"), name)
        passed: dict[str, Any] = (
            dict(kernel.constants) | {"PDL": False} if "PDL" in kernel.constants else dict(kernel.constants)
        )
        for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True):
            if isinstance(argument, Pointer):
                rest = self.memory[argument.buffer][argument.offset :]
                kind = TYPES[parameter.type.removeprefix("*")]
                passed[parameter.name] = rest[: len(rest) // 16 * 16].view(kind)
            else:
                passed[parameter.name] = evaluate(argument, bound)
        grid = tuple(evaluate(size, bound) for size in launch.grid)
        assert all(size >= 1 for size in grid), f"{kernel.source} at {launch.where} has the grid {grid}"
        function[grid](**passed)

    def check(self, bound: dict[str, int]) -> None:
        """Counters are zero again, and nothing was written behind a buffer."""
        for buffer in self.plan.buffers:
            assert (self.memory[buffer.name][-GUARD:] == POISON).all(), f"something wrote behind {buffer.name}"
            if buffer.role == "counters":
                assert not self.memory[buffer.name][:-GUARD].any(), "a counter was left behind"


def main() -> None:
    """Serve requests until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get among the answers
    torch.set_num_threads(1)
    machine = Machine()
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: Any = getattr(machine, method)(*arguments)
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()

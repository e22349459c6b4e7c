"""A compiled case on a GPU: its code from the file, its weights made on the way, timed by the GPU's own clock."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from made_weights import MadeWeights

from llamac.artifact.launch_plan_file import read_plan
from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.gpu.found import find_gpu
from llamac.runtime.kv import pages_for
from llamac.runtime.run_plan import CachePlan, MemoryPlan
from llamac.runtime.session import Session


class OpenedCase:
    """The device that runs `path`, a file of `compile_cases.py`, with room for `sequences` of `context` tokens.

    around: makes of the driver the one to use, where it is given.
    """

    def __init__(
        self, path: Path, context: int, sequences: int = 1, around: Callable[[Any], Any] | None = None
    ) -> None:
        members = read_members(path)
        self.about, self.weights = described(members)
        plan = read_plan(members["plan.json"], str(path))
        self.plan = plan
        memory = self._memory_plan()
        pages = [sequences * count for count in pages_for(memory, context)]
        found, gpu = find_gpu("cuda" if plan.kind == "cuda" else "hip")
        driver = around(found) if around is not None else found
        driver.open(0)
        given: Any = {buffer.member: self.weights for buffer in plan.buffers if buffer.role == "weights"}
        self.device = GpuDevice(driver, gpu, plan, members.__getitem__, memory, given, pages, context)
        self.session = Session(self.device, context)

    def _memory_plan(self) -> MemoryPlan:
        caches = tuple(
            CachePlan(int(cache.name.partition(".chunk")[2] or 0), (0,), cache.page_bytes)
            for cache in self.plan.caches()
        )
        size = self.weights.nbytes
        most = self.about["max_step_tokens"]
        return MemoryPlan(0, self.plan.page_tokens, caches, self.about["kv"], most, size, size)

    def __enter__(self) -> OpenedCase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.close()

    def decode_seconds(self, batch: int, context: int, times: int) -> list[float]:
        """GPU seconds of each of `times` steps in which `batch` sequences get their best next token after `context`."""
        width = context // self.plan.page_tokens + 1
        owners = np.arange(batch, dtype=np.int32)
        pages = np.arange(batch * width, dtype=np.int32).reshape(batch, width)
        tables = np.stack([pages] * len(self.plan.caches()))
        arrays = (owners + 1, np.full(batch, context, np.int32), owners, tables, owners)
        return self.device.step_seconds(*arrays, "greedy", times)

    def prefill_seconds(self, tokens: int, times: int) -> list[float]:
        """GPU seconds of each of `times` steps that read a prompt of so many tokens and give its best next one."""
        places = np.arange(tokens, dtype=np.int32)
        width = -(-tokens // self.plan.page_tokens)
        tables = np.stack([np.arange(width, dtype=np.int32)[None]] * len(self.plan.caches()))
        arrays = (places % 1000, places, places * 0, tables, places[-1:])
        return self.device.step_seconds(*arrays, "greedy", times)

    def least_bytes(self, batch: int, context: int) -> int:
        """What a decode step must move: each weight once but the table of embeddings, keys and values once."""
        table = sum(row["bytes"] for row in self.about["weights"] if row["name"].startswith("embed"))
        read = self.weights.nbytes - (0 if self.about["config"]["tied_head"] else table)
        cache = sum(one.page_bytes for one in self.plan.caches()) // self.plan.page_tokens
        return read + batch * (context + 1) * cache

    def prefill_operations(self, tokens: int) -> float:
        """Floating point operations of a prompt: products with weights, and of queries with keys and values."""
        c = self.about["config"]
        projections = c["hidden_size"] * c["head_dim"] * (2 * c["heads"] + 2 * c["kv_heads"])
        layer = projections + 3 * c["hidden_size"] * c["intermediate_size"]
        attention = 2 * tokens * c["heads"] * c["head_dim"] / 2  # causal: half of all pairs
        return 2.0 * tokens * c["layers"] * (layer + attention) + 2.0 * c["hidden_size"] * c["vocab_size"]


def read_members(path: Path) -> dict[str, bytes]:
    """Everything in a file of `compile_cases.py`."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def described(members: dict[str, bytes]) -> tuple[dict[str, Any], MadeWeights]:
    """What a case says of itself, and its weights."""
    about: dict[str, Any] = json.loads(members["case.json"])
    small = {int(n.removeprefix("small/")): data for n, data in members.items() if n.startswith("small/")}
    return about, MadeWeights(about["weights"], small)

"""A model that several processes of one machine share: each has a part of the weights and of the cache.

This process is rank 0. It starts one process for every other rank (`rank_process.py`), which opens the same artifact;
every step goes to all of them, and they meet within it, wherever the code adds or joins their parts.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from llamac.artifact.read import Artifact
from llamac.errors import LlamacError

from .collectives import Collectives, SocketCollectives, socket_mesh
from .cpu_settings import CpuSettings
from .device_cpu import CpuDevice, Float32s, Int32s
from .native import EXCHANGE, load_library
from .ranked import RankedRows
from .run_plan import CodeTarget, RunPlan, read_run_plan
from .session import PageCopyingDevice, StepDevice
from .step_pictures import StepPictures

ADD, JOIN = 0, 1
"""What a rank meets the others for: numbers of `llamac_exchange`."""


class RankDevice(CpuDevice):
    """The CPU device of one rank: its code meets the other ranks through `collectives` within a step."""

    def __init__(self, collectives: Collectives, *given: Any) -> None:
        super().__init__(*given)
        self.collectives = collectives
        self._failed: LlamacError | None = None
        self._exchange = EXCHANGE(self._meet)  # the code holds its address
        assert self._model is not None
        set_group = self._library.optional("llamac_set_group")
        status = set_group(self._model, collectives.rank, collectives.ranks, self._exchange, None)
        if status != 0:
            reason = self._library.status_text(status)
            raise LlamacError("LLC0805", self._library.where, reason, "check the file with `llamac verify`")

    def step(self, *given: Any, **named: Any) -> None:
        """As on one CPU; LLC0868 where another rank has gone."""
        try:
            super().step(*given, **named)
        except LlamacError as error:
            raise (self._failed if error.code == "LLC0806" and self._failed else error) from None

    def _meet(self, context: object, kind: int, x: int, residual: int | None, out: int, rows: int, columns: int) -> int:
        """Called by the code, in the thread that called `step`; 0 when all went well."""
        try:
            if kind == ADD:
                self._add(x, residual, out, rows * columns)
            else:
                self._join(out, rows, columns)
        except LlamacError as error:
            self._failed = error
            return 1
        return 0

    def _add(self, x: int, residual: int | None, out: int, count: int) -> None:
        total = self.collectives.all_reduce(_floats(x, count))
        if residual:
            total += _floats(residual, count)
        _floats(out, count)[:] = total

    def _join(self, out: int, rows: int, columns: int) -> None:
        ranks = self.collectives.ranks
        joined = _floats(out, rows * ranks * columns).reshape(rows, ranks, columns)
        for rank, part in enumerate(self.collectives.all_gather(joined[:, self.collectives.rank])):
            joined[:, rank] = part


def _floats(address: int, count: int) -> Float32s:
    """The floats that the code hands over, in place."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (count,))


@dataclass(frozen=True)
class RankStart:
    """All that the process of a rank needs to open its part.

    sockets: descriptors by rank; orders: rank 0's. Of GPUs: context: the longest sequence, identity: that of the group.
    """

    rank: int
    path: str
    target: str
    pages: list[int]
    settings: dict[str, Any]
    sockets: dict[int, int]
    orders: int
    context: int = 0
    identity: str = ""


class LeadingDevice(RankDevice):
    """Rank 0: what it is asked to do, all ranks do."""

    def __init__(self, others: Sequence[RankProcess], *given: Any) -> None:
        self._others = list(others)
        super().__init__(*given)

    def step(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        logits: Float32s | None,
        pictures: StepPictures | None = None,
        ranked: RankedRows | None = None,
    ) -> None:
        """As on one CPU, on every rank; LLC0868 where one of them has gone."""
        given = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
        for other in self._others:
            other.order("step", given)
        try:
            super().step(*given, logits, pictures, ranked)
        finally:
            wait_for(self._others)

    def copy_page(self, cache: int, source: int, to: int) -> None:
        """As on one CPU, in every rank's part of the cache."""
        for other in self._others:
            other.order("copy_page", (cache, source, to))
        super().copy_page(cache, source, to)
        wait_for(self._others)

    def close(self) -> None:
        """End the other processes, then as on one CPU."""
        end_all(self._others)
        self.collectives.close()
        super().close()


class RankProcess:
    """A process with another rank, as rank 0 sees it."""

    def __init__(self, start: RankStart, orders: Connection, keep: Sequence[int]) -> None:
        import json

        self.rank = start.rank
        self._orders = orders
        command = [sys.executable, "-m", "llamac.runtime.rank_process", json.dumps(asdict(start))]
        self._process = subprocess.Popen(command, pass_fds=tuple(keep), stdin=subprocess.DEVNULL)

    def order(self, name: str, given: tuple[Any, ...]) -> None:
        """Ask for something; the answer is to be fetched."""
        with suppress(OSError):  # who has gone gives no answer, which is where it is noticed
            self._orders.send((name, given))

    def answer(self) -> str | None:
        """None when all went well, else what went wrong there."""
        try:
            found = self._orders.recv()
        except (EOFError, OSError):
            return f"rank {self.rank} has ended"
        return None if found is None else str(found)

    def end(self) -> None:
        """Ask the process to end, and see that it does."""
        self._orders.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def rank_settings(settings: CpuSettings, rank: int, ranks: int) -> CpuSettings:
    """A rank's share of the threads, and of the processors that they keep to."""
    threads = max(settings.threads // ranks, 1)
    pinned = settings.pinned
    if pinned is not None:
        if len(pinned) < ranks:
            reason = f"{len(pinned)} processors are named for {ranks} ranks"
            raise LlamacError("LLC0811", "pin", reason, "name at least one for each")
        pinned = pinned[rank * threads : (rank + 1) * threads]
    return replace(settings, threads=threads, pinned=pinned)


def open_part(
    artifact: Artifact, plan: RunPlan, chosen: CodeTarget, pages: Sequence[int], settings: CpuSettings, rank: int
) -> tuple[Any, ...]:
    """What the device of a rank is made of: the code, and the rank's weights mapped in place."""
    library = load_library(artifact.member_bytes(chosen.code), chosen.code)
    row = next(row for row in artifact.manifest["weights"] if row["layout"] == chosen.ranks[rank])
    offsets = [int(tensor["offset"]) for tensor in row["tensors"]]
    share = rank_settings(settings, rank, len(chosen.ranks))
    return library, plan.memory, plan.vocab_size, artifact.map(row["member"]), pages, share, None, offsets


def start_others(start: RankStart, mesh: Sequence[Mapping[int, socket.socket]], ranks: int) -> list[RankProcess]:
    """Start a process for every rank but the first, like `start` but for what is its own; none is left on an error."""
    others: list[RankProcess] = []
    lines = [socket.socketpair() for _ in range(ranks - 1)]
    try:
        for rank, (near, far) in enumerate(lines, 1):
            sockets = {other: peer.fileno() for other, peer in mesh[rank].items()}
            own = replace(start, rank=rank, sockets=sockets, orders=far.fileno())
            orders = Connection(os.dup(near.fileno()))
            others.append(RankProcess(own, orders, [*sockets.values(), far.fileno()]))
    except BaseException:
        end_all(others)
        raise
    finally:
        for held in [*(s for pair in lines for s in pair), *(s for peers in mesh[1:] for s in peers.values())]:
            held.close()
    return others


def end_all(others: Sequence[RankProcess]) -> None:
    """End every other rank's process."""
    for other in others:
        other.end()


def wait_for(others: Sequence[RankProcess], answers: int = 1) -> None:
    """Take so many answers of every other rank; LLC0868 for the first that is none or an error."""
    refused = [text for _ in range(answers) for other in others if (text := other.answer()) is not None]
    if refused and sys.exc_info()[0] is None:  # an error of this rank goes before those of the others
        raise LlamacError("LLC0868", "ranks", refused[0], "load the model again")


def open_ranks(
    artifact: Artifact, plan: RunPlan, chosen: CodeTarget, pages: list[int], settings: CpuSettings
) -> LeadingDevice:
    """Start the other ranks' processes, and open rank 0 here (LLC0868 where one of them cannot start)."""
    ranks, path = len(chosen.ranks), str(Path(artifact.path).resolve())
    mesh = socket_mesh(ranks)
    others = start_others(RankStart(0, path, chosen.name, pages, asdict(settings), {}, 0), mesh, ranks)
    try:
        part = open_part(artifact, plan, chosen, pages, settings, 0)
        device = LeadingDevice(others, SocketCollectives(0, mesh[0]), *part)
        wait_for(others)
    except BaseException:
        end_all(others)
        raise
    return device


def serve(start: RankStart) -> None:
    """The life of another rank's process: open the part, then do what rank 0 asks until it ends."""
    orders = Connection(start.orders)
    try:
        if start.identity:
            from .device_gpu_ranks import open_rank as open_gpu_rank

            device: StepDevice = open_gpu_rank(start, orders)
        else:
            device = _open_rank(start)
    except LlamacError as error:
        orders.send(error.message())
        return
    orders.send(None)
    with suppress(EOFError, OSError):
        while True:
            orders.send(_done(device, *orders.recv()))
    device.close()  # type: ignore[attr-defined]


def _open_rank(start: RankStart) -> RankDevice:
    peers = {other: socket.socket(fileno=number) for other, number in start.sockets.items()}
    settings = CpuSettings(**start.settings)
    with Artifact.open(start.path, "none") as artifact:
        plan = read_run_plan(artifact.manifest)
        chosen = next(target for target in plan.targets if target.name == start.target)
        part = open_part(artifact, plan, chosen, start.pages, settings, start.rank)
        return RankDevice(SocketCollectives(start.rank, peers), *part)


def _done(device: StepDevice, name: str, given: tuple[Any, ...]) -> str | None:
    """Do one thing; None, or what went wrong."""
    try:
        if name == "step":
            logits = np.empty((len(given[4]), device.vocab_size), np.float32)
            token_ids, positions, sequences, tables, rows = given
            device.step(token_ids, positions, sequences, tables, rows, logits)
        elif name == "copy_page":
            assert isinstance(device, PageCopyingDevice)
            device.copy_page(*given)
        else:  # step_drawn, start_ahead and what follows it: what is found is the same on every rank
            getattr(device, name)(*given)
    except (LlamacError, TypeError, ValueError) as error:
        return str(error)
    return None

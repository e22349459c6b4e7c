"""A model that several GPUs of one machine share: a process for each, which meet through NCCL or RCCL within a step.

As with CPUs (`device_ranks.py`), this process is rank 0, on GPU 0, and what it is asked to do, all ranks do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llamac.artifact.read import Artifact
from llamac.errors import LlamacError

from .choose_device import ChosenGpu
from .device_gpu import Float32s, GpuDevice, Int32s
from .device_ranks import RankProcess, RankStart, end_all, start_others, wait_for
from .gpu.code import pick_code
from .gpu.driver import Kind
from .gpu.found import find_gpu
from .gpu.nccl import Nccl, unique_id
from .run_plan import CodeTarget, RunPlan, read_run_plan
from .step_pictures import StepPictures


class LeadingGpu(GpuDevice):
    """Rank 0. Where it runs ahead, so do all: each finds the same tokens in the logits, which every rank joins."""

    def __init__(self, others: Sequence[RankProcess], *given: Any) -> None:
        self._others = list(others)
        self._owed = 0
        super().__init__(*given)

    def step(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        logits: Float32s,
        pictures: StepPictures | None = None,
    ) -> None:
        """As on one GPU, on every rank; LLC0868 where one of them has gone."""
        given = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
        self._order("step", given)
        try:
            super().step(*given, logits, pictures)
        finally:
            self._hear()

    def step_drawn(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        sampling: Int32s,
        pictures: StepPictures | None = None,
    ) -> Int32s:
        """As on one GPU, on every rank; LLC0868 where one of them has gone."""
        given = (token_ids, positions, sequence_of_token, page_tables, logit_rows, sampling, pictures)
        self._order("step_drawn", given)
        try:
            return super().step_drawn(*given)
        finally:
            self._hear()

    def start_ahead(
        self,
        token_ids: Int32s | None,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        sampling: Int32s | None = None,
        pictures: StepPictures | None = None,
    ) -> None:
        """As on one GPU, on every rank; nobody waits for an answer, and what goes wrong is said when it is finished."""
        given = (token_ids, positions, sequence_of_token, page_tables, sampling, pictures)
        self._order("start_ahead", given)
        super().start_ahead(*given)

    def finish_ahead(self) -> Int32s:
        """As on one GPU; LLC0868 where another rank has gone or refused a step."""
        self._order("finish_ahead", ())
        try:
            return super().finish_ahead()
        finally:
            self._hear()

    def forget_ahead(self) -> None:
        """As on one GPU, on every rank; what went wrong in a step that nobody wants is of no interest."""
        super().forget_ahead()
        self._order("forget_ahead", ())
        with suppress(LlamacError):
            self._hear()

    def _order(self, name: str, given: tuple[Any, ...]) -> None:
        """Ask the others for something; its answer is owed."""
        self._owed += 1
        for other in self._others:
            other.order(name, given)

    def _hear(self) -> None:
        """Take every answer that is owed; LLC0868 for the first that is an error."""
        owed, self._owed = self._owed, 0
        wait_for(self._others, owed)

    def close(self) -> None:
        """End the other processes, then as on one GPU."""
        end_all(self._others)
        super().close()


def open_gpu_ranks(artifact: Artifact, plan: RunPlan, chosen: ChosenGpu, pages: list[int], context: int) -> LeadingGpu:
    """Start the other ranks' processes, each on the GPU of its number, and open rank 0 here.

    LLC0868 with the reason where one of them has no GPU, or no code for it; LLC0869 without NCCL.
    """
    target, kind = chosen.target, chosen.gpu.kind
    ranks, identity = len(target.ranks), unique_id(kind)
    path = str(Path(artifact.path).resolve())
    start = RankStart(0, path, target.name, pages, {"pinned": None}, {}, 0, context, identity.hex())
    others = start_others(start, [{} for _ in range(ranks)], ranks)
    try:
        wait_for(others)  # each has its GPU and code: nobody waits in vain for a group to be made
        group = Nccl(kind, 0, ranks, identity)
        given = (chosen.driver, chosen.gpu, chosen.launch_plan, artifact.member_bytes, plan.memory)
        weights = _weights(artifact, target, 0)
        device = LeadingGpu(others, *given, weights, pages, context, plan.token_ids, group)
        wait_for(others)
    except BaseException:
        end_all(others)
        raise
    return device


def open_rank(start: RankStart, orders: Connection) -> GpuDevice:
    """The device of another rank; says that its GPU is there, then waits for the others."""
    with Artifact.open(start.path, "none") as artifact:
        plan = read_run_plan(artifact.manifest)
        target = next(t for t in plan.targets if t.name == start.target)
        kind: Kind = "cuda" if target.kind == "cuda" else "hip"
        driver, gpu = find_gpu(kind, start.rank)
        code, *fallback = target.others
        own = replace(target, code=code, fallback=fallback[0] if fallback else None)
        _, launch_plan = pick_code([own], gpu, artifact.member_bytes)
        driver.open(start.rank)
        orders.send(None)
        group = Nccl(kind, start.rank, len(target.ranks), bytes.fromhex(start.identity))
        given = (driver, gpu, launch_plan, artifact.member_bytes, plan.memory)
        weights = _weights(artifact, target, start.rank)
        return GpuDevice(*given, weights, start.pages, start.context, plan.token_ids, group)


def _weights(artifact: Artifact, target: CodeTarget, rank: int) -> dict[str, Any]:
    """A rank's weights, under the name that its plan has for them: that of the first rank with such a plan."""
    members = {row["layout"]: row["member"] for row in artifact.manifest["weights"]}
    if len(target.ranks) <= rank or any(layout not in members for layout in target.ranks):
        raise LlamacError("LLC0802", target.name, f"it has no weights for rank {rank}", "the artifact is damaged")
    return {members[target.ranks[min(rank, 1)]]: artifact.map(members[target.ranks[rank]])}

"""The GPU device: a launch plan, its kernels and its memory behind the same `step` as the CPU's."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import Bucket, LaunchPlan
from llamac.errors import LlamacError

from .gpu.bucket_run import OUTPUT_OF, BucketRun, Result
from .gpu.code import GpuCode, Read
from .gpu.driver import Driver, GpuInfo
from .gpu.greedy_steps import MOST_IN_FLIGHT, GreedySteps
from .gpu.memory import MemoryNeeds, PlannedMemory, check_fits, memory_needs
from .gpu.nccl import GpuCollectives
from .gpu.staging import Staging
from .gpu.step_inputs import StepArrays, StepInputs
from .gpu.upload import Bytes, host_bytes, settle, upload
from .profile import Profile
from .run_plan import MemoryPlan
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class GpuDevice:
    """One compiled model on one GPU; `step` may be called from any thread, one call at a time runs.

    driver: open on `gpu`, closed with the device. launch_plan: what runs. read: the bytes of a code member. weights:
    member -> its mapped bytes, which are uploaded here. page_counts: pages of each cache. context: the longest sequence
    in tokens. token_ids: how many ids can be fed, the vocabulary's unless given. collectives: how the GPUs of a divided
    model meet, closed with the device; each of them has a device in a process of its own.

    All memory is allocated here, once, after a check that it fits (LLC0866).
    """

    threads = 1
    """Only the caller's own thread works on the host."""

    most_top = 0
    """No lists of best logits are ranked on the GPU; `step_greedy` gives the best one."""

    def __init__(
        self,
        driver: Driver,
        gpu: GpuInfo,
        launch_plan: LaunchPlan,
        read: Read,
        plan: MemoryPlan,
        weights: Mapping[str, Bytes],
        page_counts: Sequence[int],
        context: int,
        token_ids: int | None = None,
        collectives: GpuCollectives | None = None,
    ) -> None:
        self.gpu = gpu
        self._collectives = collectives
        self.plan = plan
        self.launch_plan = launch_plan
        self.vocab_size = launch_plan.vocab
        self.page_counts = list(page_counts)
        self.most_greedy_rows = max((b.rows for b in launch_plan.buckets if b.is_replayed), default=0)
        self._token_ids = token_ids or launch_plan.vocab
        self._driver = driver
        self._lock = threading.Lock()
        self._is_open = True
        with ExitStack() as owned:
            owned.callback(driver.close)
            if collectives is not None:
                owned.callback(collectives.close)
            _check_agreement(launch_plan, plan)
            _check_ranks(launch_plan, collectives)
            self._inputs = StepInputs(launch_plan, page_counts, -(-context // plan.kv_page_tokens))
            self._inputs.check()
            needs = memory_needs(launch_plan, self._inputs, {name: part.nbytes for name, part in weights.items()})
            check_fits(needs, gpu, driver.free_memory()[0], context)
            self.needs = needs
            self._set_up(owned, needs, read, weights)
            owned.callback(settle, driver, self._stream)
            owned.callback(driver.make_current)  # the first thing done when all is let go, on whatever thread
            self._owned = owned.pop_all()
        self._close = weakref.finalize(self, self._owned.close)

    def _set_up(self, owned: ExitStack, needs: MemoryNeeds, read: Read, weights: Mapping[str, Bytes]) -> None:
        """Allocate, load and upload; whatever was made is undone by `owned`, the last first."""
        driver, plan = self._driver, self.launch_plan
        code = GpuCode(driver, plan, read)
        owned.callback(code.close)
        memory = PlannedMemory(driver, needs)
        owned.callback(memory.close)
        self._stream = stream = driver.new_stream()
        owned.callback(driver.end_stream, stream)
        owned.callback(settle, driver, stream)
        self._staging = Staging(driver, memory, needs.input_bytes)
        owned.callback(self._staging.close)
        self._greedy = GreedySteps(driver, memory, max(bucket.rows for bucket in plan.buckets))
        owned.callback(self._greedy.close)
        self._results = memory.pinned(needs.output_bytes)
        self._memory = memory
        for buffer in plan.buffers:
            if buffer.role == "weights":
                upload(driver, weights[buffer.member], memory.base[buffer.name], stream)
            elif buffer.role == "counters":
                driver.fill(memory.base[buffer.name], 0, needs.buffers[buffer.name], stream)
        common = (code.functions, self._inputs, memory, self._collectives)
        self._runs = {bucket.name: BucketRun(plan, bucket, *common) for bucket in plan.buckets}
        for run in self._runs.values():
            owned.callback(run.close, driver)
        driver.wait_for_stream(stream)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the caches."""
        return sum(self.needs.buffers[cache.name] for cache in self.launch_plan.caches())

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
        """Run one ragged step: T tokens of S sequences, R of whose rows get logits; as `CpuDevice.step`.

        Without logit rows it returns before the GPU has done the work. LLC0867 for pictures, LLC0715 for a step that is
        larger than the plan's largest bucket.
        """
        if pictures is not None:
            reason = "code for GPUs takes no pictures yet"
            raise LlamacError("LLC0867", self.launch_plan.target, reason, "give text alone, or run it on the CPU")
        asked = StepArrays(token_ids, positions, sequence_of_token, page_tables, logit_rows)
        self._check(asked)
        if logits.dtype != np.float32 or logits.shape != (logit_rows.size, self.vocab_size):
            raise ValueError(f"step needs float32 logits of shape ({logit_rows.size}, {self.vocab_size})")
        self._run(asked, "logits" if logit_rows.size else "none", logits)

    def step_greedy(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
    ) -> Int32s:
        """As `step`, but the id of each row's largest logit, i32 [R], the lower id among equals; logits stay there."""
        asked = StepArrays(token_ids, positions, sequence_of_token, page_tables, logit_rows)
        self._check(asked)
        ids = np.empty(logit_rows.size, np.int32)
        self._run(asked, "greedy" if logit_rows.size else "none", ids)
        return ids

    def start_greedy(
        self,
        token_ids: Int32s | None,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
    ) -> None:
        """Put a step of one token a sequence on its way; `finish_greedy` gives the best id after each of them.

        token_ids: None for the ids of the step that was started last, of the same sequences, which may still run. At
        most two steps may be on their way, none of more rows than `most_greedy_rows`.
        """
        tokens = np.zeros_like(positions) if token_ids is None else token_ids
        rows = np.arange(positions.size, dtype=np.int32)
        asked = StepArrays(tokens, positions, sequence_of_token, page_tables, rows)
        self._check(asked)
        with self._at_work():
            if (token_ids is None) != (self._greedy.in_flight > 0) or self._greedy.in_flight >= MOST_IN_FLIGHT:
                raise ValueError("a step takes the ids of the one on its way before it, and only of that")
            run = self._runs[self._choose(asked).name]
            self._send_inputs(run, asked)
            best = run.output_at[OUTPUT_OF["greedy"]]
            if token_ids is None:
                token_place = self._memory.inputs + run.input_offsets["token_ids"]
                self._greedy.feed_back(token_place, best, self._stream)
            run.run(self._driver, self._stream, "greedy")
            self._greedy.send(best, rows.size, self._stream)

    def finish_greedy(self) -> Int32s:
        """The ids of the oldest step that is on its way, i32 [rows]; waits for it."""
        with self._at_work():
            return self._greedy.take()

    def forget_greedy(self) -> None:
        """Give up the steps that are on their way; what they write to the cache stays unused."""
        self._greedy.forget()

    def step_seconds(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        result: Result,
        times: int,
    ) -> list[float]:
        """GPU seconds of each of `times` repetitions of one step, back to back, after one that does not count.

        What the host does before and after a step is not in them.
        """
        asked = StepArrays(token_ids, positions, sequence_of_token, page_tables, logit_rows)
        self._check(asked)
        driver = self._driver
        with self._at_work(), ExitStack() as owned:
            run = self._runs[self._choose(asked).name]
            self._send_inputs(run, asked)
            run.run(driver, self._stream, result)
            events = [driver.new_event() for _ in range(times + 1)]
            for event in events:
                owned.callback(driver.end_event, event)
            driver.mark(events[0], self._stream)
            for event in events[1:]:
                run.run(driver, self._stream, result)
                driver.mark(event, self._stream)
            driver.wait_for_stream(self._stream)
            return [driver.seconds_between(*pair) for pair in pairwise(events)]

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """One caller at a time, with the GPU current on its thread."""
        with self._lock:
            if not self._is_open:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            self._driver.make_current()
            yield

    def _run(self, asked: StepArrays, result: Result, out: Float32s | Int32s) -> None:
        with self._at_work():
            bucket = self._choose(asked)
            run = self._runs[bucket.name]
            self._send_inputs(run, asked)
            run.run(self._driver, self._stream, result)
            if result == "none":
                return
            at_once = bucket.rows
            self._read_back(run, result, out[:at_once])
            for start in range(at_once, asked.logit_rows.size, at_once):
                self._send_rows(run, asked.logit_rows[start : start + at_once])
                run.run_tail(self._driver, self._stream, result)
                self._read_back(run, result, out[start : start + at_once])

    def _check(self, asked: StepArrays) -> None:
        """A number out of its range would be a wild read on the GPU: LLC0806."""
        _check_arrays(asked, len(self.page_counts))
        tokens, (sequences, width) = asked.token_ids.size, asked.page_tables.shape[1:]
        ranges = (
            (asked.token_ids, self._token_ids, "token id"),
            (asked.sequence_of_token, sequences, "sequence index"),
            (asked.positions, width * self.plan.kv_page_tokens, "position"),
            (asked.logit_rows, tokens, "logit row"),
        )
        for values, stop, name in ranges:
            if values.size and not (values.min() >= 0 and values.max() < stop):
                raise self._refused(tokens, f"{name} out of range")
        places = asked.positions // self.plan.kv_page_tokens
        pages = asked.page_tables[:, asked.sequence_of_token, places]
        most = asked.page_tables.max(axis=(1, 2), initial=-1)
        if (pages < 0).any() or (most >= np.array(self.page_counts)).any():
            raise self._refused(tokens, "page out of range or missing")

    def _refused(self, tokens: int, reason: str) -> LlamacError:
        where = self.launch_plan.target
        return LlamacError(
            "LLC0806", where, f"step of {tokens} tokens: {reason}", "check the file with `llamac verify`"
        )

    def _choose(self, asked: StepArrays) -> Bucket:
        """The bucket of a step; what asks for more logit rows than any has gets them in turns."""
        tokens, rows = asked.token_ids.size, asked.logit_rows.size
        most = max((b.rows for b in self.launch_plan.buckets if b.tokens >= tokens), default=rows)
        return self.launch_plan.choose(tokens, min(rows, most), asked.longest_run)

    def _send_inputs(self, run: BucketRun, asked: StepArrays) -> None:
        variables = self._inputs.variables(run.bucket, asked)
        _, size = self._inputs.offsets(variables)
        self._inputs.fill(self._staging.next_block(), asked, variables)
        self._staging.send(self._memory.inputs, 0, size, self._stream)
        run.prepare(variables)

    def _send_rows(self, run: BucketRun, rows: Int32s) -> None:
        """Other logit rows of the step that ran last."""
        padded = np.zeros(run.bucket.rows, np.int32)
        padded[: rows.size] = rows
        block = self._staging.next_block()
        block[: padded.nbytes] = padded.view(np.uint8)
        place = self._memory.inputs + run.input_offsets["logit_rows"]
        self._staging.send(place, 0, padded.nbytes, self._stream)

    def _read_back(self, run: BucketRun, result: Result, out: Float32s | Int32s) -> None:
        """Wait for a result and copy its first rows to `out`."""
        self._driver.copy_out(self._results, run.output_at[OUTPUT_OF[result]], out.nbytes, self._stream)
        self._driver.wait_for_stream(self._stream)
        out[:] = host_bytes(self._results, out.nbytes).view(out.dtype).reshape(out.shape)

    def expert_counts(self) -> npt.NDArray[np.uint64]:
        """Empty for a model without mixtures; LLC0867 for one with them: nothing counts on the GPU."""
        if not any(kernel.source.startswith("moe.") for kernel in self.launch_plan.kernels):
            return np.zeros((1, 0), np.uint64)
        reason = "code for GPUs does not count the rows of experts"
        raise LlamacError("LLC0867", self.launch_plan.target, reason, "run it on the CPU to see them")

    def profiled(self) -> AbstractContextManager[Profile]:
        """LLC0867: steps are replayed as a whole."""
        reason = "code for GPUs takes no profile of its own"
        raise LlamacError(
            "LLC0867", self.launch_plan.target, reason, "use the tools of the GPU's maker: nsys, rocprofv3"
        )

    def close(self) -> None:
        """Let go of the GPU and its memory; `step` refuses afterwards."""
        with self._lock:
            self._is_open = False
            self._close()


def _check_agreement(launch_plan: LaunchPlan, plan: MemoryPlan) -> None:
    """The plan of the launches and the manifest must speak of the same cache: LLC0802 where they do not."""
    caches = launch_plan.caches()
    sizes = [cache.page_bytes for cache in caches]
    if launch_plan.page_tokens != plan.kv_page_tokens or sizes != [cache.page_bytes for cache in plan.caches]:
        reason = f"its caches have pages of {sizes} bytes, the manifest's {[c.page_bytes for c in plan.caches]}"
        raise LlamacError("LLC0802", launch_plan.target, reason, "the artifact is damaged: copy it again")
    most = max((bucket.tokens for bucket in launch_plan.buckets), default=0)
    if most < plan.max_step_tokens:
        reason = f"its steps take {most} tokens, the manifest says {plan.max_step_tokens}"
        raise LlamacError("LLC0802", launch_plan.target, reason, "the artifact is damaged: copy it again")


def _check_ranks(launch_plan: LaunchPlan, collectives: GpuCollectives | None) -> None:
    """A part of a model runs with all the others, or not at all: LLC0867."""
    here = (collectives.ranks, min(collectives.rank, 1)) if collectives is not None else (1, 0)
    if here != (launch_plan.ranks, launch_plan.rank):
        reason = f"the code is for {launch_plan.ranks} GPUs with a process each, here is {here[0]}"
        raise LlamacError("LLC0867", launch_plan.target, reason, "compile the model for one GPU")


def _check_arrays(asked: StepArrays, caches: int) -> None:
    """A wrong shape or type here would be a wild read on the GPU: refuse it as the programming error it is."""
    rows = (asked.token_ids, asked.positions, asked.sequence_of_token)
    if not all(array.dtype == np.int32 for array in (*rows, asked.page_tables, asked.logit_rows)):
        raise TypeError("step needs int32 arrays")
    if len({array.shape for array in rows}) != 1 or asked.token_ids.ndim != 1 or not asked.token_ids.size:
        raise ValueError("step needs token_ids, positions, sequence_of_token of one length")
    if asked.page_tables.ndim != 3 or asked.page_tables.shape[0] != caches:
        raise ValueError(f"step needs the page tables [caches, S, P] of {caches} caches")

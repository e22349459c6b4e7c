"""The GPU device: a launch plan, its kernels and its memory behind the same `step` as the CPU's."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import SAMPLED_WORDS, Bucket, LaunchPlan
from llamac.errors import LlamacError

from .gpu.bucket_run import OUTPUT_OF, TOKENS_OF, BucketRun, Result
from .gpu.code import GpuCode, Read
from .gpu.driver import Driver, GpuInfo
from .gpu.encoder_run import EncoderRun, encoder_places
from .gpu.memory import MemoryNeeds, PlannedMemory, check_fits, memory_needs
from .gpu.nccl import GpuCollectives
from .gpu.staging import Staging
from .gpu.step_checks import StepChecks, check_agreement, check_ranks
from .gpu.step_inputs import StepArrays, StepInputs
from .gpu.steps_ahead import MOST_IN_FLIGHT, StepsAhead
from .gpu.upload import Bytes, host_bytes, settle, upload
from .profile import Profile
from .run_plan import ImagePlan, MemoryPlan
from .step_pictures import StepPictures, check_pixels

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

RESULT_BYTES = 64 << 20
"""Pinned memory that results come to the host through: logits of every token of a step are more, and come in turns."""


class GpuDevice:
    """One compiled model on one GPU; `step` may be called from any thread, one call at a time runs.

    driver: open on `gpu`, closed with the device. launch_plan: what runs. read: the bytes of a code member. weights:
    member -> its mapped bytes, which are uploaded here. page_counts: pages of each cache. context: the longest sequence
    in tokens. token_ids: how many ids can be fed, the vocabulary's unless given. collectives: how the GPUs of a divided
    model meet, closed with the device; each of them has a device in a process of its own. image: what the image encoder
    takes and gives, where there is one.

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
        image: ImagePlan | None = None,
    ) -> None:
        self.gpu = gpu
        self.image = image
        self._collectives = collectives
        self.plan = plan
        self.launch_plan = launch_plan
        self.vocab_size = launch_plan.vocab
        self.page_counts = list(page_counts)
        replayed = [bucket for bucket in launch_plan.buckets if bucket.is_replayed]
        self.most_rows_ahead = max((bucket.rows for bucket in replayed), default=0)
        self.draws_ahead = all("sample" in bucket.tails for bucket in replayed)
        self._driver = driver
        self._lock = threading.Lock()
        self._closed = threading.Event()
        with ExitStack() as owned:
            owned.callback(driver.close)
            if collectives is not None:
                owned.callback(collectives.close)
            check_agreement(launch_plan, plan)
            check_ranks(launch_plan, collectives)
            vision_pages = [n for n, cache in zip(page_counts, plan.caches, strict=True) if cache.cross]
            width = max(-(-context // plan.kv_page_tokens), *vision_pages, 1)
            self._inputs = StepInputs(launch_plan, page_counts, width)
            self._inputs.check()
            takes = {buffer.name for buffer in self._inputs.inputs}
            self._checks = StepChecks(launch_plan.target, plan, page_counts, token_ids or launch_plan.vocab, takes)
            self._places = encoder_places(launch_plan, width, image)
            sizes = {name: part.nbytes for name, part in weights.items()}
            image_bytes = (self._places.input_bytes, self._places.output_bytes) if self._places is not None else (0, 0)
            needs = memory_needs(launch_plan, self._inputs, sizes, image_bytes)
            check_fits(needs, gpu, driver.free_memory()[0], context)
            self.needs = needs
            self._set_up(owned, needs, read, weights)
            owned.callback(settle, driver, self._stream)
            owned.callback(driver.make_current)  # the first thing done when all is let go, on whatever thread
            self._owned = owned.pop_all()
        self._close = weakref.finalize(self, _close, self._lock, self._closed, self._owned, os.getpid())

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
        self._ahead = StepsAhead(driver, memory, max(self.most_rows_ahead, 1))
        owned.callback(self._ahead.close)
        self._result_bytes = min(needs.output_bytes, max(RESULT_BYTES, 4 * self.vocab_size, 4 * SAMPLED_WORDS))
        self._results = memory.pinned(self._result_bytes)
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
        self._encoder: EncoderRun | None = None
        if self._places is not None and self.image is not None:
            given = (self._places, self.image, self._inputs.table_width)
            self._encoder = EncoderRun(driver, plan, code.functions, memory, *given)
            owned.callback(self._encoder.close)
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

        Without logit rows it returns before the GPU has done the work. pictures: what the rows show or see of pictures;
        LLC0867 where the code takes none. LLC0715 for a step that is larger than the plan's largest bucket.
        """
        asked = StepArrays(token_ids, positions, sequence_of_token, page_tables, logit_rows)
        if pictures is not None:
            asked = replace(asked, pictures=self._checks.shown(pictures, token_ids.size))
        self._checks.check(asked)
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
        self._checks.check(asked)
        ids = np.empty(logit_rows.size, np.int32)
        self._run(asked, "greedy" if logit_rows.size else "none", ids)
        return ids

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
        """As `step`, but a token drawn for each row as `sampling_rows` says, i32 [R, SAMPLED_WORDS]; logits stay there.

        Only where `draws_ahead`.
        """
        shows = self._checks.shown(pictures, token_ids.size) if pictures is not None else None
        asked = StepArrays(token_ids, positions, sequence_of_token, page_tables, logit_rows, sampling, shows)
        self._checks.check(asked)
        found = np.empty((logit_rows.size, SAMPLED_WORDS), np.int32)
        self._run(asked, "sample" if logit_rows.size else "none", found)
        return found

    def start_ahead(
        self,
        token_ids: Int32s | None,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        sampling: Int32s | None = None,
        pictures: StepPictures | None = None,
    ) -> None:
        """Put a step of one token a sequence on its way; `finish_ahead` gives what it finds after each of them.

        token_ids: None for those that the step before finds, of the same sequences, which may still run. sampling: how
        tokens are drawn, as `sampling_rows` makes it; None: the best ones. pictures: the vision tokens that rows see.
        At most two steps may be on their way, none of more rows than `most_rows_ahead`.
        """
        tokens = np.zeros_like(positions) if token_ids is None else token_ids
        rows = np.arange(positions.size, dtype=np.int32)
        shows = self._checks.shown(pictures, positions.size) if pictures is not None else None
        asked = StepArrays(tokens, positions, sequence_of_token, page_tables, rows, sampling, shows)
        self._checks.check(asked)
        result: Result = "greedy" if sampling is None else "sample"
        with self._at_work():
            if (token_ids is None) != (self._ahead.in_flight > 0) or self._ahead.in_flight >= MOST_IN_FLIGHT:
                raise ValueError("a step takes the ids of the one on its way before it, and only of that")
            run = self._runs[self._choose(asked).name]
            self._send_inputs(run, asked)
            if token_ids is None:
                self._ahead.feed_back(self._memory.inputs + run.input_offsets["token_ids"], self._stream)
            run.run(self._driver, self._stream, result)
            found, tokens_at = run.output_at[OUTPUT_OF[result]], run.output_at[TOKENS_OF[result]]
            self._ahead.send(tokens_at, found, rows.size, 1 if sampling is None else SAMPLED_WORDS, self._stream)

    def finish_ahead(self) -> Int32s:
        """What the oldest step that is on its way found, i32 [rows, 1] or [rows, SAMPLED_WORDS]; waits for it."""
        with self._at_work():
            return self._ahead.take()

    def forget_ahead(self) -> None:
        """Give up the steps that are on their way; what they write to the cache stays unused."""
        self._ahead.forget()

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
        self._checks.check(asked)
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
            if self._closed.is_set():
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            self._driver.make_current()
            yield

    def encode_image(
        self, pixels: Float32s, aspect_ratio: int = 0, pages: Int32s | None = None, first: int = 0
    ) -> Float32s | None:
        """Run the image encoder on the tiles of one picture, as `CpuDevice.encode_image`.

        LLC0806 for pages that are not there, LLC0838 when the model takes no pictures.
        """
        if self.image is None or self._encoder is None:
            where = self.launch_plan.target
            raise LlamacError("LLC0838", where, "the model has no image encoder", "give it text alone")
        check_pixels(pixels, self.image)
        with self._at_work():
            if not self.image.is_joint:
                return np.concatenate([self._encoder.encode_tile(tile[None], self._stream) for tile in pixels])
            pool = next(n for n, cache in zip(self.page_counts, self.plan.caches, strict=True) if cache.cross)
            tiles = len(pixels)
            if not self._encoder.takes(tiles, aspect_ratio, pages, first, self.plan.kv_page_tokens, pool):
                reason = f"picture of {tiles} tiles: its pages or its shape are out of range"
                hint = "check the file with `llamac verify`"
                raise LlamacError("LLC0806", self.launch_plan.target, reason, hint)
            assert pages is not None
            self._encoder.encode_picture(pixels, aspect_ratio, pages, first, self._stream)
            return None

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
                self._send_rows(run, "logit_rows", asked.logit_rows[start : start + at_once])
                if asked.sampling is not None:
                    self._send_rows(run, "sampling", asked.sampling[start : start + at_once])
                run.run_tail(self._driver, self._stream, result)
                self._read_back(run, result, out[start : start + at_once])

    def _choose(self, asked: StepArrays) -> Bucket:
        """The bucket of a step; what asks for more logit rows than any has gets them in turns."""
        tokens, rows = asked.token_ids.size, asked.logit_rows.size
        most = max((b.rows for b in self.launch_plan.buckets if b.tokens >= tokens), default=rows)
        return self.launch_plan.choose(tokens, min(rows, most), asked.longest_run, asked.image_rows > 0)

    def _send_inputs(self, run: BucketRun, asked: StepArrays) -> None:
        variables = self._inputs.variables(run.bucket, asked)
        _, size = self._inputs.offsets(variables)
        self._inputs.fill(self._staging.next_block(), asked, variables)
        self._staging.send(self._memory.inputs, 0, size, self._stream)
        run.prepare(variables)

    def _send_rows(self, run: BucketRun, name: str, rows: Int32s) -> None:
        """An input of other logit rows of the step that ran last."""
        padded = np.zeros((run.bucket.rows, *rows.shape[1:]), np.int32)
        padded[: len(rows)] = rows
        block = self._staging.next_block()
        block[: padded.nbytes] = padded.reshape(-1).view(np.uint8)
        self._staging.send(self._memory.inputs + run.input_offsets[name], 0, padded.nbytes, self._stream)

    def _read_back(self, run: BucketRun, result: Result, out: Float32s | Int32s) -> None:
        """Wait for a result and copy its first rows to `out`."""
        row = out.nbytes // len(out)
        at_once = self._result_bytes // row
        for start in range(0, len(out), at_once):
            part, source = out[start : start + at_once], run.output_at[OUTPUT_OF[result]] + start * row
            self._driver.copy_out(self._results, source, part.nbytes, self._stream)
            self._driver.wait_for_stream(self._stream)
            part[:] = host_bytes(self._results, part.nbytes).view(out.dtype).reshape(part.shape)

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
        self._close()


def _close(lock: threading.Lock, closed: threading.Event, owned: ExitStack, process: int) -> None:
    """Let go of what a device owns once the step that a thread may be in has ended, also where the process ends.

    A fork of the process owns nothing of the GPU: it has no context there.
    """
    if os.getpid() == process:
        with lock:
            closed.set()
            owned.close()

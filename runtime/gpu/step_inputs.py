"""The inputs of a step, side by side in one block of memory: one copy brings them all to the GPU.

A bucket that is replayed is filled up to its size: padding tokens belong to a sequence of their own, the last row of
the page tables, whose first page is the padding page of each cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import (
    IMAGE_ROWS,
    PAGES,
    ROWS,
    SEQUENCES,
    TABLE_WIDTH,
    TOKENS,
    Bucket,
    Buffer,
    LaunchPlan,
    attention_tiles,
    evaluate,
)
from llamac.errors import LlamacError

from .shown_pictures import INPUTS as PICTURE_INPUTS
from .shown_pictures import ShownPictures

Int32s = npt.NDArray[np.int32]
ALIGNMENT = 256
_TABLES = "page_tables"
NO_PICTURES = np.zeros(0, np.int32)
NO_SAMPLING = np.zeros(0, np.int32)


def aligned(size: int) -> int:
    """`size` rounded up to what buffers are aligned to."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class StepArrays:
    """What a step is asked to do, as `GpuDevice.step` takes it: i32, page_tables [caches, S, pages]."""

    token_ids: Int32s
    positions: Int32s
    sequence_of_token: Int32s
    page_tables: Int32s
    logit_rows: Int32s
    sampling: Int32s | None = None
    """Options of the rows to draw for, i32 [R, SAMPLING_WORDS]; rows without any get their best token."""

    pictures: ShownPictures | None = None
    """What the rows show and see of pictures; None for text alone."""

    @property
    def longest_run(self) -> int:
        """Most tokens of one sequence."""
        return int(np.bincount(self.sequence_of_token).max())

    @property
    def image_rows(self) -> int:
        """Rows of pictures among the tokens."""
        return self.pictures.count if self.pictures is not None else 0


class StepInputs:
    """Where each input lies for a bucket, and how an input is filled.

    table_width: pages of one row of the tables. page_counts: pages of each cache, the padding page not counted.
    """

    def __init__(self, plan: LaunchPlan, page_counts: Sequence[int], table_width: int) -> None:
        self.plan = plan
        self.table_width = table_width
        self.page_counts = list(page_counts)
        self.inputs = [b for b in plan.buffers if b.role == "input"]
        self._pages = {f"{PAGES}.{c.name}": n for c, n in zip(plan.caches(), page_counts, strict=True)}
        self._suffixes = [cache.name.removeprefix("cache") for cache in plan.caches()]

    def most_sequences(self, bucket: Bucket) -> int:
        """Rows of the tables that a step of a bucket can need: each sequence has a page; one row is for padding."""
        return min(bucket.tokens, max(self.page_counts)) + 1

    def largest(self, bucket: Bucket) -> dict[str, int]:
        """The variables of the largest step of a bucket, which are those of every step that is replayed."""
        images = 0 if bucket.is_replayed else bucket.tokens
        return self._variables(bucket.tokens, bucket.rows, self.most_sequences(bucket), images)

    def variables(self, bucket: Bucket, step: StepArrays) -> dict[str, int]:
        """The variables of one step; LLC0715 when it has more sequences than there are pages."""
        sequences = step.page_tables.shape[1] + 1
        if sequences > self.most_sequences(bucket) or step.page_tables.shape[2] > self.table_width:
            rows, width = step.page_tables.shape[1:]
            reason = f"{rows} sequences of {width} pages do not fit its page tables of {self.table_width} pages a row"
            raise LlamacError("LLC0715", "step", reason, "load the model with more sequences or a larger context")
        if bucket.is_replayed:
            return self.largest(bucket)
        rows = min(max(step.logit_rows.size, 1), bucket.rows)
        return self._variables(step.token_ids.size, rows, sequences, step.image_rows)

    def _variables(self, tokens: int, rows: int, sequences: int, images: int) -> dict[str, int]:
        sizes = {TOKENS: tokens, ROWS: rows, SEQUENCES: sequences, TABLE_WIDTH: self.table_width, IMAGE_ROWS: images}
        return sizes | self._pages

    def offsets(self, variables: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """(input -> its offset in the block, bytes of the block)."""
        offsets, end = {}, 0
        for buffer in self.inputs:
            offsets[buffer.name] = end
            end += aligned(evaluate(buffer.bytes, variables))
        return offsets, end

    def fill(self, block: npt.NDArray[np.uint8], step: StepArrays, variables: Mapping[str, int]) -> None:
        """Write a step's inputs to `block`, uint8 of at least the block's size."""
        offsets, _ = self.offsets(variables)
        for buffer in self.inputs:
            start = offsets[buffer.name]
            place = block[start : start + evaluate(buffer.bytes, variables)].view(np.int32)
            self._fill_one(buffer, place, step, variables)

    def _fill_one(self, buffer: Buffer, place: Int32s, step: StepArrays, variables: Mapping[str, int]) -> None:
        if buffer.name.startswith(_TABLES):
            cache = self._suffixes.index(buffer.name.removeprefix(_TABLES))
            _fill_tables(place.reshape(-1, self.table_width), step.page_tables[cache], self.page_counts[cache])
        elif buffer.name == "attention_tiles":
            tiles = attention_tiles(step.sequence_of_token.tolist(), buffer.tile_tokens)
            _fill_up(place, np.array(tiles, np.int32).reshape(-1), 0)
        elif buffer.name == "sequence_of_token":
            _fill_up(place, step.sequence_of_token, variables[SEQUENCES] - 1)
        elif buffer.name == "sampling":
            _fill_up(place, NO_SAMPLING if step.sampling is None else step.sampling.reshape(-1), 0)
        elif buffer.name in PICTURE_INPUTS:
            shown = NO_PICTURES if step.pictures is None else step.pictures.input(buffer.name)
            if buffer.name == "image_embeddings" and shown.size != place.size:
                raise ValueError("step needs embeddings of pictures as wide as the model")
            _fill_up(place, shown, -1 if buffer.name == "image_rows" else 0)
        else:
            _fill_up(place, getattr(step, buffer.name), 0)

    def check(self) -> None:
        """LLC0802 when the plan wants an input that no step has."""
        known = {"token_ids", "positions", "sequence_of_token", "logit_rows", "attention_tiles", "sampling"}
        known |= {f"{_TABLES}{suffix}" for suffix in self._suffixes} | PICTURE_INPUTS
        strange = sorted({buffer.name for buffer in self.inputs} - known)
        if strange:
            reason = f"it wants the input {strange[0]!r}, which this llamac does not know"
            raise LlamacError("LLC0802", self.plan.target, reason, "use the llamac that made the file, or a newer one")


def _fill_up(place: Int32s, values: Int32s, padding: int) -> None:
    used = min(values.size, place.size)
    place[:used] = values[:used]
    place[used:] = padding


def _fill_tables(place: Int32s, tables: Int32s, padding_page: int) -> None:
    """Rows beyond the sequences are those of padding tokens, whose one page is the cache's last."""
    rows, width = tables.shape
    place[:] = -1
    place[:rows, :width] = tables
    place[rows:, 0] = padding_page

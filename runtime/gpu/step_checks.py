"""What a step on a GPU is held against before anything runs: a number out of its range would be a wild read there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from llamac.artifact.launch_plan import SAMPLING_WORDS, LaunchPlan
from llamac.errors import LlamacError

from ..run_plan import MemoryPlan
from ..step_pictures import StepPictures
from .nccl import GpuCollectives
from .shown_pictures import ShownPictures
from .shown_pictures import shown as shown_pictures
from .step_inputs import StepArrays


class StepChecks:
    """What steps of a loaded model may hold.

    page_counts: pages of each cache. token_ids: how many ids can be fed. takes: names of the inputs of its steps.
    """

    def __init__(
        self, target: str, plan: MemoryPlan, page_counts: Sequence[int], token_ids: int, takes: Collection[str]
    ) -> None:
        self._target = target
        self._plan = plan
        self._page_counts = page_counts
        self._token_ids = token_ids
        self._takes = takes

    def check(self, asked: StepArrays) -> None:
        """A number out of its range would be a wild read on the GPU: LLC0806."""
        _check_arrays(asked, len(self._page_counts))
        tokens, (sequences, width) = asked.token_ids.size, asked.page_tables.shape[1:]
        ranges = (
            (asked.token_ids, self._token_ids, "token id"),
            (asked.sequence_of_token, sequences, "sequence index"),
            (asked.positions, width * self._plan.kv_page_tokens, "position"),
            (asked.logit_rows, tokens, "logit row"),
        )
        for values, stop, name in ranges:
            if values.size and not (values.min() >= 0 and values.max() < stop):
                raise self._refused(tokens, f"{name} out of range")
        places = asked.positions // self._plan.kv_page_tokens
        own = [number for number, cache in enumerate(self._plan.caches) if not cache.cross]
        pages = asked.page_tables[own][:, asked.sequence_of_token, places]
        most = asked.page_tables.max(axis=(1, 2), initial=-1)
        if (pages < 0).any() or (most >= np.array(self._page_counts)).any():
            raise self._refused(tokens, "page out of range or missing")
        if asked.pictures is not None and not self._has_vision(asked):
            raise self._refused(tokens, "range of vision tokens without a page")

    def shown(self, pictures: StepPictures, tokens: int) -> ShownPictures | None:
        """The pictures of a step: LLC0867 where the code has no place for them, LLC0806 for rows that are not there."""
        wanted = "image_rows" if pictures.image_rows is not None else "vision_start"
        if wanted not in self._takes:
            reason = "its code takes no pictures: it was made from a checkpoint without them, or is for several GPUs"
            raise LlamacError("LLC0867", self._target, reason, "give text alone, or compile it for one GPU")
        try:
            return shown_pictures(pictures, tokens)
        except IndexError:
            raise self._refused(tokens, "row of a picture out of range") from None

    def _has_vision(self, asked: StepArrays) -> bool:
        """Whether every vision token that a row sees is on a page."""
        assert asked.pictures is not None
        start, stop = asked.pictures.vision_start, asked.pictures.vision_stop
        held = next((asked.page_tables[n] for n, cache in enumerate(self._plan.caches) if cache.cross), None)
        sees = start < stop
        if held is None or not sees.any():
            return not sees.any()
        size = self._plan.kv_page_tokens
        # Pages of vision tokens are held from the first one on.
        pages = (held >= 0).sum(axis=1)[asked.sequence_of_token[sees]]
        return bool((start[sees] >= 0).all() and (stop[sees] <= pages * size).all())

    def _refused(self, tokens: int, reason: str) -> LlamacError:
        where = self._target
        return LlamacError(
            "LLC0806", where, f"step of {tokens} tokens: {reason}", "check the file with `llamac verify`"
        )


def check_agreement(launch_plan: LaunchPlan, plan: MemoryPlan) -> None:
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


def check_ranks(launch_plan: LaunchPlan, collectives: GpuCollectives | None) -> None:
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
    if asked.sampling is not None and asked.sampling.shape != (asked.logit_rows.size, SAMPLING_WORDS):
        raise ValueError(f"a step that draws needs {SAMPLING_WORDS} words for each of {asked.logit_rows.size} rows")

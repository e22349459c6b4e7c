"""Takes the times of every step out of the code, and counts what the steps asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .native import NativeLibrary, OpInfo, OpTimes
from .profile import DECODE, IMAGE, PREFILL, UNITS, VERIFY, Phase, Profile, ProfiledOp, StepWork
from .run_plan import CachePlan
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]


class Profiler:
    """The profile of one model while it is being taken; the device calls it after each step, one at a time."""

    def __init__(self, library: NativeLibrary, model: int, caches: Sequence[CachePlan]) -> None:
        self._model = model
        self._caches = caches
        self._take = library.optional("llamac_profile")
        self.profile = Profile(_read_ops(library))
        self._times = np.zeros((len(self.profile.ops), 3), np.uint64)  # rows of OpTimes
        peak = library.optional("llamac_peak")
        used = dict.fromkeys(op.unit for op in self.profile.ops if op.unit)
        self.profile.peaks = {unit: float(peak(model, UNITS.index(unit))) for unit in used}
        self._take(model, 1, None, 0)

    def stepped(self, positions: Int32s, sequence_of_token: Int32s, logit_rows: int, pictures: StepPictures) -> None:
        """A step has run."""
        work = step_work(self._caches, positions, sequence_of_token, logit_rows, pictures)
        sequences = np.unique(sequence_of_token).size
        together = VERIFY if logit_rows > sequences else PREFILL
        self._add(DECODE if positions.size == sequences else together, work)

    def encoded(self) -> None:
        """A picture has been encoded."""
        self._add(IMAGE, None)

    def stop(self) -> None:
        """Measure no more."""
        self._take(self._model, 0, None, 0)

    def _add(self, name: str, work: StepWork | None) -> None:
        rows = self._times.ctypes.data_as(ctypes.POINTER(OpTimes))
        self._take(self._model, 1, rows, len(self._times))
        phase = self.profile.phases.setdefault(name, Phase(np.zeros_like(self._times)))
        phase.add(work, self._times)


def step_work(
    caches: Sequence[CachePlan],
    positions: Int32s,
    sequence_of_token: Int32s,
    logit_rows: int,
    pictures: StepPictures | None = None,
) -> StepWork:
    """What a step of these rows asks for."""
    counted = [_keys(cache, positions, sequence_of_token, pictures) for cache in caches]
    keys, row_keys = (tuple(int(pair[part].sum()) for pair in counted) for part in range(2))
    return StepWork(positions.size, logit_rows, keys, row_keys)


def _keys(
    cache: CachePlan, positions: Int32s, sequence_of_token: Int32s, pictures: StepPictures | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Keys that each sequence sees, every one once, and keys that each row sees."""
    stop = positions.astype(np.int64) + 1
    start = (stop - 1) // cache.chunk * cache.chunk if cache.chunk else np.zeros_like(stop)
    if cache.cross:
        if pictures is None or pictures.vision_start is None or pictures.vision_stop is None:
            return np.zeros(1, np.int64), np.zeros(1, np.int64)
        start, stop = pictures.vision_start.astype(np.int64), pictures.vision_stop.astype(np.int64)
    seen = np.maximum(stop - start, 0)
    owners = np.unique(sequence_of_token)
    spans = [(stop[mine].max() - start[mine].min()) for mine in (sequence_of_token == owner for owner in owners)]
    return np.maximum(np.array(spans, np.int64), 0), seen


def _read_ops(library: NativeLibrary) -> list[ProfiledOp]:
    table = ctypes.POINTER(OpInfo)()
    count = int(library.optional("llamac_ops")(ctypes.byref(table)))
    return [_read_op(table[index]) for index in range(count)]


def _read_op(row: OpInfo) -> ProfiledOp:
    function, kind, name, detail = (
        getattr(row, field).decode("ascii") for field in ("function", "kind", "name", "detail")
    )
    sizes = ("weight_bytes", "token_bytes", "key_bytes", "operations", "per", "cache", "experts", "chosen")
    counts = {field: int(getattr(row, field)) for field in sizes}
    return ProfiledOp(function, kind, name, detail, unit=UNITS[row.unit], **counts)

"""The image encoder on a GPU: its launches over memory of their own, recorded once for each number of vision tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import TABLE_WIDTH, VISION_TOKENS, Encoder, LaunchPlan, evaluate
from llamac.errors import LlamacError

from ..run_plan import ImagePlan
from .driver import Driver
from .launches import LaunchList
from .memory import PlannedMemory
from .staging import Staging
from .step_inputs import aligned
from .upload import host_bytes

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
PIXELS, RATIO, POSITIONS, TABLE = (f"image.{n}" for n in ("pixels", "aspect_ratio", "positions", "page_tables.cross"))
KNOWN = frozenset({PIXELS, RATIO, POSITIONS, TABLE})


class EncoderPlaces:
    """Where the inputs of a run lie in their block, and how large that and the result are.

    table_width: entries of the page table of a sequence. LLC0802 when the plan wants an input that no run has.
    """

    def __init__(self, plan: LaunchPlan, encoder: Encoder, table_width: int) -> None:
        self.most_rows = encoder.most_rows
        sizes = {VISION_TOKENS: encoder.most_rows, TABLE_WIDTH: table_width}
        self.offsets: dict[str, int] = {}
        self.input_bytes = 0
        for buffer in plan.buffers:
            if buffer.role == "image_input":
                if buffer.name not in KNOWN:
                    reason = f"its encoder wants the input {buffer.name!r}, which this llamac does not know"
                    raise LlamacError("LLC0802", plan.target, reason, "use the llamac that made the file")
                self.offsets[buffer.name] = self.input_bytes
                self.input_bytes += aligned(evaluate(buffer.bytes, sizes))
        outputs = [b for b in plan.buffers if b.role == "image_output"]
        self.output = outputs[0].name if outputs else ""
        self.output_bytes = evaluate(outputs[0].bytes, sizes) if outputs else 0


def encoder_places(plan: LaunchPlan, table_width: int, image: ImagePlan | None) -> EncoderPlaces | None:
    """The places of a plan's encoder, None without one; LLC0802 where it takes or gives what `image` does not say."""
    if plan.encoder is None or image is None:
        return None
    places = EncoderPlaces(plan, plan.encoder, table_width)
    taken = evaluate(plan.buffer(PIXELS).bytes, {}) if PIXELS in places.offsets else 0
    given = 0 if image.is_joint else 4 * prod(image.embeddings)
    named = KNOWN if image.is_joint else {PIXELS}
    if taken != 4 * prod(image.pixels) or places.output_bytes != given or places.offsets.keys() != named:
        reason = f"its encoder takes other pictures than {image.pixels}, or gives something else for them"
        raise LlamacError("LLC0802", plan.target, reason, "the artifact is damaged: copy it again")
    return places


class EncoderRun:
    """Encodes pictures on one stream; the device that owns it sees to it that one call runs at a time."""

    def __init__(
        self, driver: Driver, plan: LaunchPlan, functions: Sequence[int], memory: PlannedMemory, places: EncoderPlaces,
        image: ImagePlan, table_width: int,
    ) -> None:  # fmt: skip
        assert plan.encoder is not None
        self.image = image
        self._driver, self._memory, self._places, self._table_width = driver, memory, places, table_width
        self._shapes = plan.encoder.shapes
        self._launches = LaunchList(plan, plan.encoder.launches, functions)
        self._graphs: dict[int, int] = {}
        self._staging = Staging(driver, memory, places.input_bytes)
        self._result = memory.pinned(places.output_bytes) if places.output else 0

    def encode_tile(self, pixels: Float32s, stream: int) -> Float32s:
        """The embeddings [rows, width] of one tile; waits for them."""
        self._run({PIXELS: pixels}, 1, stream)
        out = np.empty(self.image.embeddings, np.float32)
        self._driver.copy_out(self._result, self._memory.image_outputs, out.nbytes, stream)
        self._driver.wait_for_stream(stream)
        out[:] = host_bytes(self._result, out.nbytes).view(np.float32).reshape(out.shape)
        return out

    def encode_picture(self, pixels: Float32s, ratio: int, pages: Int32s, first: int, stream: int) -> None:
        """Put the vision tokens of a picture's tiles into `pages`, from place `first` on; does not wait."""
        most, count = self.image.pixels[0], len(pixels)
        tokens = count * (self._places.most_rows // most)
        padded = np.concatenate([pixels, np.zeros((most - count, *pixels.shape[1:]), np.float32)])
        table = np.full(self._table_width, -1, np.int32)
        table[: pages.size] = pages
        places = np.arange(first, first + tokens, dtype=np.int32)
        given = {PIXELS: padded, RATIO: np.array([ratio], np.int32), POSITIONS: places, TABLE: table}
        self._run(given, tokens, stream)

    def takes(self, tiles: int, ratio: int, pages: Int32s | None, first: int, page_tokens: int, pool: int) -> bool:
        """Whether a picture of so many tiles has that shape, and `pages`, out of `pool`, have room for its tokens."""
        shapes, tokens = self._shapes, tiles * (self._places.most_rows // self.image.pixels[0])
        if pages is None or pages.dtype != np.int32 or not 0 < ratio < len(shapes) or shapes[ratio] != tiles:
            return False
        used = pages[first // page_tokens : -(-(first + tokens) // page_tokens)]
        has_room = first >= 0 and first + tokens <= min(pages.size, self._table_width) * page_tokens
        return has_room and bool(((used >= 0) & (used < pool)).all())

    def _run(self, inputs: Mapping[str, npt.NDArray[np.float32] | Int32s], tokens: int, stream: int) -> None:
        block = self._staging.next_block()
        for name, values in inputs.items():
            start = self._places.offsets[name]
            block[start : start + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._staging.send(self._memory.image_inputs, 0, self._places.input_bytes, stream)
        if tokens not in self._graphs:
            self._graphs[tokens] = self._record(tokens, stream)
        self._driver.launch_graph(self._graphs[tokens], stream)

    def _record(self, tokens: int, stream: int) -> int:
        base = dict(self._memory.base) | {self._places.output: self._memory.image_outputs}
        base |= {name: self._memory.image_inputs + offset for name, offset in self._places.offsets.items()}
        self._launches.bind(base, {VISION_TOKENS: tokens, TABLE_WIDTH: self._table_width})
        self._driver.begin_capture(stream)
        try:
            self._launches.run(self._driver, stream)
        except BaseException:
            with suppress(LlamacError):  # what was refused has ended the recording: that error is the one to tell
                self._driver.end_graph(self._driver.end_capture(stream))
            raise
        return self._driver.end_capture(stream)

    def close(self) -> None:
        """Forget the recordings."""
        self._staging.close()
        while self._graphs:
            self._driver.end_graph(self._graphs.popitem()[1])

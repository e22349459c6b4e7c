"""Tiny models with pictures by their launch plans, kernels in Triton's interpreter, against what the IR means."""

from __future__ import annotations

import numpy as np
import pytest
from plan_simulator import PlanSimulator
from planned_models import Array, Planned, Rows, relative_error
from seeing_models import encoder_meaning, pixels_of, planned_seeing

from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import kv_groups, whole_sequences
from llamac.ir.ops.cache_ops import CacheState
from llamac.models.llama.vision_config import MllamaVision

TOLERANCE = {"f32": 4e-6, "bf16": 3e-2}
"""Largest error by the type of activations between kernels. The interpreter cuts f32 to bf16."""

SHOWS = 0.1
"""How much pictures change, at least: what is the same with and without them would be right by accident."""

SWEEP = [("sm_90", "f32"), ("sm_90", "bf16"), ("sm_80", "f32"), ("gfx942", "bf16")]
IMAGE = 33
PROMPTS = [[7, 0, IMAGE, IMAGE, IMAGE, IMAGE, 30, 1, IMAGE, IMAGE, 16], [5, 6, 12], [1, 2, IMAGE, 4]]
IMAGE_ROWS = [5, 0, 7, 2, 3, 3, 1]


def encoded_tiles(model: Planned, simulator: PlanSimulator, count: int, tolerance: float) -> Array:
    """The embeddings of some tiles, each held against the IR's."""
    tiles, meaning = pixels_of(model.checkpoint.config, count), encoder_meaning(model)
    wanted = [meaning.run({"pixels": tile[None]}, "encode_image")[0] for tile in tiles]
    assert relative_error(wanted[0], wanted[-1]) > SHOWS or count == 1
    found = [simulator.encode(pixels=tile).reshape(wanted[0].shape) for tile in tiles]
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, np.asarray(theirs, np.float64)) < tolerance
    return np.concatenate(found)


def text_meaning(model: Planned, prompts: list[list[int]], shown: dict[str, Array]) -> Array:
    """Logits after every id, as the IR means the text model."""
    inputs = whole_sequences(model.compiled.module.step, prompts) | shown
    found = Interpreter(model.compiled.module, model.checkpoint.read_rows).run(inputs)[0]
    return np.asarray(found, np.float64)


def test_a_tile_and_a_step_that_shows_it() -> None:
    """Llama 4: rows of the picture in place of tokens, and rows of text beside them."""
    model = planned_seeing("llama4", "f32", "sm_90", small=True)
    with model.simulated() as simulator:
        embeddings = encoded_tiles(model, simulator, 1, TOLERANCE["f32"])
        shown = {"image_rows": np.array([-1, 3, -1, 0], np.int32), "image_embeddings": embeddings}
        found = simulator.step(Rows().add(0, 0, [1, IMAGE, 4]).add(1, 0, [IMAGE]), **shown)
        assert relative_error(found, text_meaning(model, [[1, IMAGE, 4], [IMAGE]], shown)) < TOLERANCE["f32"]


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "dtype"), SWEEP)
def test_llama4(machine: str, dtype: str) -> None:
    """Tiles through the encoder; then a ragged step of rows with and without pictures, and text after them."""
    model, tolerance = planned_seeing("llama4", dtype, machine), TOLERANCE[dtype]
    rows = np.where(np.concatenate(PROMPTS) == IMAGE, 0, -1).astype(np.int32)
    rows[rows == 0] = IMAGE_ROWS
    with model.simulated() as simulator:
        embeddings = encoded_tiles(model, simulator, 2, tolerance)
        wanted = text_meaning(model, PROMPTS, {"image_rows": rows, "image_embeddings": embeddings})
        assert relative_error(text_meaning(model, PROMPTS, {}), wanted) > SHOWS
        fed = np.delete(np.arange(18), 13)  # all but the last token of the second sequence
        step = Rows().add(0, 0, PROMPTS[0]).add(1, 0, PROMPTS[1][:2]).add(2, 0, PROMPTS[2])
        found = simulator.step(step, image_rows=rows[fed], image_embeddings=embeddings)
        assert relative_error(found, wanted[fed]) < tolerance
        assert relative_error(simulator.step(Rows().add(1, 2, PROMPTS[1][2:])), wanted[13:14]) < tolerance


def cached_pictures(model: Planned, simulator: PlanSimulator, pictures: list[tuple[int, int, int, int]]) -> CacheState:
    """Encode (sequence, place of the first vision token, number of the shape, tiles); the cache as the IR fills it."""
    meaning, kind = encoder_meaning(model), kv_groups(model.compiled.module.step)[1].type
    vision = model.checkpoint.config.vision
    assert isinstance(vision, MllamaVision)
    table = simulator.tables["page_tables.cross"]
    state = CacheState.empty(kind, simulator.pages + 1, False)
    for seed, (sequence, first, shape, tiles) in enumerate(pictures):
        pixels = np.zeros((vision.max_tiles, 3, 28, 28), np.float32)
        pixels[:tiles] = pixels_of(model.checkpoint.config, tiles, seed)
        given = {
            "pixels": pixels, "aspect_ratio": np.array([shape], np.int32),
            "positions": first + np.arange(5 * tiles, dtype=np.int32),
            "page_tables.cross": table[sequence : sequence + 1],
        }  # fmt: skip
        (state,) = meaning.run({**given, "cache.cross": state}, "encode_image")
        simulator.encode(5 * tiles, **given)
    return state


def seeing_meaning(
    model: Planned, simulator: PlanSimulator, state: CacheState, prompts: list[list[int]], starts: Array, stops: Array
) -> Array:
    """Logits after every id of rows that see these vision tokens."""
    tables = simulator.tables["page_tables.cross"][: len(prompts)]
    cached = {"cache.cross": state, "page_tables.cross": tables}
    wanted = text_meaning(model, prompts, {**cached, "vision_start": starts, "vision_stop": stops})
    blind = text_meaning(model, prompts, {**cached, "vision_start": stops, "vision_stop": stops})
    assert relative_error(blind, wanted) > SHOWS
    return wanted


def ranges(*spans: tuple[int, int]) -> tuple[Array, Array]:
    """Starts and stops of what rows see."""
    starts, stops = zip(*spans, strict=True)
    return np.array(starts, np.int32), np.array(stops, np.int32)


def test_a_picture_and_rows_that_see_it() -> None:
    """Llama 3.2 Vision: two tiles into the cache; a prefill whose first row sees nothing, then a decode step."""
    model = planned_seeing("mllama", "f32", "sm_90", small=True)
    with model.simulated() as simulator:
        state = cached_pictures(model, simulator, [(0, 0, 2, 2)])
        starts, stops = ranges((0, 0), *[(0, 10)] * 12, *[(5, 10)] * 4, (3, 7))
        ids = [7, 0, 36, 3, 21, 9, 30, 1, 1, 35, 16, 2, 28, 33, 4, 19, 8, 25]
        wanted = seeing_meaning(model, simulator, state, [ids], starts, stops)
        found = simulator.step(Rows().add(0, 0, ids[:17]), vision_start=starts[:17], vision_stop=stops[:17])
        assert relative_error(found, wanted[:17]) < TOLERANCE["f32"]
        found = simulator.step(Rows().add(0, 17, ids[17:]), vision_start=starts[17:], vision_stop=stops[17:])
        assert relative_error(found, wanted[17:]) < TOLERANCE["f32"]


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "dtype"), SWEEP)
def test_mllama(machine: str, dtype: str) -> None:
    """Pictures of several shapes; rows that see none, one or two of them, in one prefill and in decode steps."""
    model, tolerance = planned_seeing("mllama", dtype, machine), TOLERANCE[dtype]
    prompts = [[7, 0, 36, 3, 21, 9, 30, 1], [5, 6, 12, 8], [1, 2, 3, 4, 9]]
    starts, stops = ranges(
        (0, 0), (0, 0), (0, 20), (0, 20), (0, 20), (0, 30), (0, 30), (20, 30), *[(0, 0)] * 4, *[(0, 5)] * 5
    )
    with model.simulated() as simulator:
        state = cached_pictures(model, simulator, [(0, 0, 6, 4), (0, 20, 2, 2), (2, 0, 1, 1)])
        wanted = seeing_meaning(model, simulator, state, prompts, starts, stops)

        def check(rows: Rows, fed: list[int]) -> None:
            found = simulator.step(rows, vision_start=starts[fed], vision_stop=stops[fed])
            assert relative_error(found, wanted[fed]) < tolerance

        whole = Rows().add(0, 0, prompts[0][:7]).add(1, 0, prompts[1]).add(2, 0, prompts[2][:4])
        check(whole, [*range(7), *range(8, 12), *range(12, 16)])
        check(Rows().add(0, 7, [1]), [7])
        check(Rows().add(2, 4, [9]).add(1, 3, [8]), [16, 11])

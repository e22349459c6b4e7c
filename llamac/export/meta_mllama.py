"""How Meta's files hold the weights of Llama 3.2 Vision: names, shapes, and tables of what a tile adds by its place.

Hugging Face's files have these tables by the shape of the picture, Meta's by the place in a grid of tiles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from llamac.errors import LlamacError
from llamac.models.image_shrink import GRID
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import MllamaVision
from llamac.models.llama.weights import META, expected_shapes
from llamac.models.mllama.vision_weights import expected_vision_shapes
from llamac.models.mllama.weights import LEARNED_ROWS, stored_name

from .hf_names import HfTensor
from .hf_plain import Floats, MeantRows
from .model_weights import ModelWeights
from .request import ExportRequest


def mllama_params(config: LlamaConfig) -> dict[str, object]:
    """The keys of params.json that other models do not have; n_layers counts the layers that attend to text."""
    vision = config.vision
    assert isinstance(vision, MllamaVision)
    return {
        "n_layers": config.layers - len(config.cross_layers),
        "vision_chunk_size": vision.image_size,
        "vision_max_num_chunks": vision.max_tiles,
        "vision_num_cross_attention_layers": len(config.cross_layers),
    }


def mllama_tensors(config: LlamaConfig, names: Collection[str]) -> list[HfTensor]:
    """Every tensor of one shard. `names` are the source's weights, whose tables may be of either kind.

    Layouts besides "rows": "first rows" and "last rows" of a weight, and "grid", a table by places from one by shapes.
    """
    vision = config.vision
    assert isinstance(vision, MllamaVision)
    shapes = expected_shapes(config) | expected_vision_shapes(vision, config.hidden_size, grids=True)
    found: list[HfTensor] = []
    for name, shape in shapes.items():
        stored = stored_name(name, META, config)
        assert stored is not None, name
        if name == "embed":
            rows = config.vocab_size
            found.append(HfTensor(stored, (rows, shape[1]), (name,), "first rows"))
            found.append(HfTensor(LEARNED_ROWS, (shape[0] - rows, shape[1]), (name,), "last rows"))
        elif name.endswith(".grid"):
            positions = shape[1] // vision.hidden_size
            source, layout = (name, "rows") if name in names else (name.removesuffix(".grid"), "grid")
            sides = (vision.max_tiles, vision.max_tiles)
            found.append(HfTensor(stored, (*sides, positions, vision.hidden_size), (source,), layout))
        else:
            found.append(HfTensor(stored, shape, (name,)))
    return found


def mllama_values(weights: ModelWeights, config: LlamaConfig, tensor: HfTensor) -> Iterator[Floats]:
    """The elements of a tensor whose layout is one of `mllama_tensors`."""
    (name,) = tensor.weights
    if tensor.layout == "grid":
        yield grid_of_tiles(weights, config, name)
        return
    rows = tensor.shape[0]
    first = 0 if tensor.layout == "first rows" else weights.shape(name)[0] - rows
    step = weights.rows_at_once(name)
    for lo in range(first, first + rows, step):
        yield weights.rows(name, lo, min(lo + step, first + rows))


def grid_of_tiles(weights: ModelWeights, config: LlamaConfig, name: str) -> Floats:
    """[places, values] of a table by shapes; zeros where no supported shape has a tile.

    LLC0951 where two shapes have different numbers for a place, or one has some for tiles that it lacks, whose tokens
    the others see: a table by places cannot say either.
    """
    vision = config.vision
    assert isinstance(vision, MllamaVision)
    side = vision.max_tiles
    values = weights.shape(name)[1] // side
    grid, known = np.zeros((side * side, values), np.float32), np.zeros(side * side, bool)
    for index, (high, wide) in enumerate(vision.supported_aspect_ratios, start=1):
        row = weights.rows(name, index, index + 1).reshape(side, values)
        for tile in range(high * wide):
            place = tile // wide * side + tile % wide
            if known[place] and not np.array_equal(grid[place], row[tile]):
                where = f"row {place // side}, column {place % side}"
                reason = f"what a tile at {where} adds differs by the shape of the picture ({high} x {wide})"
                raise LlamacError("LLC0951", name, reason, "export to hf, which has a table for each shape")
            grid[place], known[place] = row[tile], True
        if row[high * wide :].any():
            reason = f"a picture of {high} x {wide} tiles adds to tiles that it lacks"
            raise LlamacError("LLC0951", name, reason, "export to hf, which has a table for each shape")
    return grid


def check_grids(weights: ModelWeights, config: LlamaConfig, tensors: Iterable[HfTensor]) -> None:
    """LLC0951 for a table by shapes that is no table by places."""
    for tensor in tensors:
        if tensor.layout == "grid":
            grid_of_tiles(weights, config, tensor.weights[0])


def with_grids(meant: MeantRows, weights: ModelWeights, config: LlamaConfig) -> MeantRows:
    """The values that the shard's reader should find: tables under the names that Meta's have."""

    def rows(name: str, lo: int, hi: int) -> Floats:
        table = name.removesuffix(".grid")
        if table == name or name in weights.names:
            return meant(name, lo, hi)
        return grid_of_tiles(weights, config, table)[lo:hi]

    return rows


def note_places(request: ExportRequest, weights: ModelWeights) -> None:
    """The places that no picture reaches, in the ledger, where the source does not have them."""
    vision = request.checkpoint.config.vision
    if not isinstance(vision, MllamaVision) or GRID in weights.names:
        return
    shapes = vision.supported_aspect_ratios
    reached = {(row, column) for high, wide in shapes for row in range(high) for column in range(wide)}
    what = f"{vision.max_tiles**2 - len(reached)} of {vision.max_tiles**2} places of the grid of tiles hold zeros"
    reason = "the source says what tiles add by the shape of the picture, and no shape reaches them"
    request.note("default", "vision", what, reason)

"""The fixed frame of the image side of a code member: what llamac_encode_image takes, checks and runs."""

from __future__ import annotations

import math

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.graph import DataSource, Graph, Module, Op, Weight


def image_declarations(image: Module) -> str:
    """Sizes of the encoder and the state that its functions see."""
    graph = image.main
    sizes = _sizes_of_pictures(graph) if is_joint(graph) else _sizes_of_tiles(graph)
    return f"{sizes}\n{IMAGE_STRUCT}\n{_ARGUMENTS}"


def image_exports(image: Module) -> str:
    """The exported function of the encoder."""
    return _PICTURES if is_joint(image.main) else _TILES


def is_joint(graph: Graph) -> bool:
    """Whether one pass works on all tiles of a picture."""
    return any(a.name == "aspect_ratio" for a in graph.arguments)


def _sizes_of_tiles(graph: Graph) -> str:
    result = math.prod(d for d in graph.outputs[0].tensor.shape if isinstance(d, int))
    return f"""
enum {{
  PIXELS = {_count(graph, "pixels")}, /* values of a tile */
  EMBEDDINGS = {result}, /* what becomes of them */
}};
"""


def _sizes_of_pictures(graph: Graph) -> str:
    order, table = _op(graph, "order_tokens"), _op(graph, "lookup_row").operands[0]
    tiles = [str(int(count)) for count in (_slots(table) >= 0).sum(axis=1)]
    tokens, most = order.attributes["tokens"], order.operands[0].tensor.shape[0]
    return f"""
enum {{
  SHAPES = {len(tiles)}, /* of pictures, 0 being none */
  TILE_TOKENS = {tokens},
  VISION_TOKENS = {int(str(tokens)) * int(str(most))},
}};
static const uint32_t TILES_OF_SHAPE[SHAPES] = {{{", ".join(tiles)}}};
"""


def _slots(table: object) -> np.ndarray:
    if not isinstance(table, Weight) or not isinstance(table.source, DataSource):
        raise LlamacError("LLC0605", "vision.mask", "the slots of tiles are no table of the model")
    shape = tuple(d for d in table.tensor.shape if isinstance(d, int))
    return np.frombuffer(table.source.data, "<i4").reshape(shape)


def _op(graph: Graph, opcode: str) -> Op:
    for op in graph.ops:
        if op.opcode == opcode:
            return op
    raise LlamacError("LLC0605", f"@{graph.name}", f"the encoder of whole pictures has no {opcode}")


def _count(graph: Graph, name: str) -> int:
    return math.prod(d for d in graph.argument(name).tensor.shape if isinstance(d, int))


IMAGE_STRUCT = """/* What the image encoder runs: see llamac_encode_image. */
typedef struct {
  uint32_t tiles, aspect_ratio;
  const float *pixels;
  float *embeddings;
  const int32_t *pages;
  uint32_t page_count, first;
} llamac_image_input;
"""

_ARGUMENTS = """typedef struct {
  const uint8_t *weights;
  uint8_t *arena;
  llamac_profile_state *profile; /* NULL: off */
  const float *pixels;
  float *embeddings;
  uint32_t vision_tokens;
  const int32_t *aspect_ratio, *positions;
  llamac_kv cross;
} image_args;
"""

_TILES = """
EXPORT int llamac_encode_image(void *model, const llamac_image_input *in)
{
  model_state *m = model;
  if (in->tiles == 0 || in->pixels == NULL || in->embeddings == NULL) return 11;
  for (size_t tile = 0; tile < in->tiles; tile++) {
    image_args s = {
        .weights = m->weights,
        .arena = m->arena,
        .profile = m->is_profiled ? &m->profile : NULL,
        .pixels = in->pixels + tile * PIXELS,
        .embeddings = in->embeddings + tile * EMBEDDINGS,
    };
    llamac_profiled_run(m->pool, s.profile, encode_image, &s);
  }
  return 0;
}
"""

_PICTURES = """
/* Whether the pages of `tokens` vision tokens from position `first` on are there. */
static int has_image_pages(const model_state *m, const llamac_image_input *in, uint32_t tokens)
{
  if (in->pages == NULL || in->first > INT32_MAX - tokens) return 0;
  const uint32_t last = (in->first + tokens - 1) / PAGE_TOKENS;
  if (last >= in->page_count) return 0;
  for (uint32_t p = in->first / PAGE_TOKENS; p <= last; p++)
    if (in->pages[p] < 0 || (uint32_t)in->pages[p] >= m->kv[CROSS].pages) return 0;
  return 1;
}

EXPORT int llamac_encode_image(void *model, const llamac_image_input *in)
{
  model_state *m = model;
  if (in->pixels == NULL || in->aspect_ratio == 0 || in->aspect_ratio >= SHAPES) return 11;
  if (in->tiles != TILES_OF_SHAPE[in->aspect_ratio]) return 11;
  const uint32_t tokens = in->tiles * TILE_TOKENS;
  if (!has_image_pages(m, in, tokens)) return 2;
  const int32_t aspect_ratio = (int32_t)in->aspect_ratio;
  int32_t positions[VISION_TOKENS];
  for (uint32_t t = 0; t < tokens; t++) positions[t] = (int32_t)(in->first + t);
  image_args s = {
      .weights = m->weights,
      .arena = m->arena,
      .profile = m->is_profiled ? &m->profile : NULL,
      .pixels = in->pixels,
      .vision_tokens = tokens,
      .aspect_ratio = &aspect_ratio,
      .positions = positions,
      .cross = {m->kv[CROSS].base, PAGE_BYTES[CROSS], in->pages, in->page_count},
  };
  llamac_profiled_run(m->pool, s.profile, encode_image, &s);
  return 0;
}
"""

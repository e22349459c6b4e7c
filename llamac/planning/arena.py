"""What the compiler itself says of a model of the same widths with few layers: its arena, and its encoder's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import small_tensors
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import Quantization, Share

from .few_layers import FewLayers, few_layers
from .weights import Part, counted_image_parts, image_role

if TYPE_CHECKING:
    from llamac.compiled_graph import CompiledGraph


@dataclass(frozen=True)
class Arena:
    """Bytes of the arena and the weights of the image side, and why they are estimates; nothing when they are not."""

    bytes: int
    image_parts: tuple[Part, ...]
    estimated: str = ""


def plan_arena(
    config: LlamaConfig,
    encodings: Mapping[str, str],
    quantization: Quantization,
    step_tokens: int,
    gpu: str = "",
    tp: int = 1,
) -> Arena:
    """The arena of a step of at most `step_tokens` tokens, which the encoder shares: on a CPU, or a GPU of `tp`."""
    from llamac.compiled_graph import compile_graph
    from llamac.gpu_side import arena_on

    few = few_layers(config, encodings)
    try:
        checkpoint = replace(random_checkpoint(few.config, 0), tensors=small_tensors(few.config, few.encodings))
        if gpu:
            graph = compile_graph(checkpoint, quantization, None, step_tokens, None, [], kind="gpu", share=Share(tp))
            return Arena(arena_on(graph, gpu), _image_parts(graph, few))
        graph = compile_graph(checkpoint, quantization, None, step_tokens, None, [])
        return Arena(graph.limits.arena_bytes, _image_parts(graph, few))
    except LlamacError as error:
        counted = counted_image_parts(config, encodings, quantization, tp)
        return Arena(estimate_arena(config, step_tokens, tp), counted, f"{error.code}: {error.reason}")


def _image_parts(graph: CompiledGraph, few: FewLayers) -> tuple[Part, ...]:
    """What only the image encoder reads, as it was placed."""
    if graph.image is None:
        return ()
    found = []
    for placed in graph.placed:
        name = placed.weight.name
        if graph.image.weights.get(name) is not placed.weight:
            continue
        rows, columns = (1, *placed.shape)[-2:]
        role = image_role(name, len(placed.shape))
        found.append(Part(role, placed.format, rows, columns, "image", few.count(name), placed=placed.nbytes))
    return tuple(found)


def estimate_arena(config: LlamaConfig, step_tokens: int, tp: int = 1) -> int:
    """About what one layer has in use at once, in f32: hidden state and its norm, and q, k, v or gate and up."""
    heads = (config.heads + 2 * max(config.kv_heads // tp, 1) * tp) * config.head_dim
    inner = config.moe.intermediate_size if config.moe else 0
    widest = max(heads + config.heads * config.head_dim, 3 * max(config.intermediate_size, inner))
    return step_tokens * (3 * config.hidden_size + -(-widest // tp)) * 4

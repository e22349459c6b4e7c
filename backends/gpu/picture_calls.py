"""Calls of a step for pictures: their rows among the embedded text, and layers that attend to vision tokens."""

from __future__ import annotations

from llamac.artifact.launch_plan import TABLE_WIDTH, Expression, Pointer
from llamac.ir.graph import Op

from . import picture_requests
from .attention_calls import TILES_INPUT, most_tiles
from .calls import Passed, StepCalls, constant, tiles
from .cost_model import padded_tokens, splits_of
from .linear_calls import type_of
from .picture_requests import BLOCK


def width_of(op: Op) -> int:
    """Columns of a result's rows."""
    width = op.result.tensor.shape[1]
    assert isinstance(width, int)
    return width


def merge(step: StepCalls, op: Op) -> None:
    """Rows of pictures in place of embedded tokens; decode buckets take none, so nothing has to be done there."""
    hidden, embeddings, rows = op.operands
    place = step.at(hidden)
    step.memory[op.result] = place
    if step.shape.is_replayed:
        return
    signature = {"rows_ptr": "*i32", "images_ptr": "*fp32", "y_ptr": "*fp32"}
    request = picture_requests.picture(step.machine, "place_rows", signature, WIDTH=width_of(op), BLOCK=BLOCK)
    grid = (step.shape.token_count(), tiles(width_of(op), BLOCK))
    step.call(request, grid, op.location, rows_ptr=step.at(rows), images_ptr=step.at(embeddings), y_ptr=place)


def gated_add(step: StepCalls, op: Op, rows: Expression) -> None:
    """residual + tanh(gate) x, where a row's range is not empty."""
    x, residual, gate, *ranges = op.operands
    signature = {"x_ptr": "*fp32", "residual_ptr": "*fp32", "gate_ptr": f"*{type_of(gate)}", "y_ptr": "*fp32"}
    given: dict[str, Passed] = dict(zip(("start_ptr", "stop_ptr"), map(step.at, ranges), strict=False))
    absent = {name: None for name in ("start_ptr", "stop_ptr") if name not in given}
    request = picture_requests.picture(
        step.machine,
        "gated_add",
        signature | dict.fromkeys(given, "*i32"),
        4,
        WIDTH=width_of(op),
        BLOCK=BLOCK,
        **absent,
    )
    step.call(
        request, (rows, tiles(width_of(op), BLOCK)), op.location, x_ptr=step.at(x), residual_ptr=step.at(residual),
        gate_ptr=step.at(gate), y_ptr=step.slot(op.result, "gated sum"), **given,
    )  # fmt: skip


def attend_vision(step: StepCalls, op: Op) -> None:
    """Attention of each row to the vision tokens that it sees."""
    q, norm, cache, start, stop, sequences, tables, gate = op.operands
    kind, a = cache.cache, op.attributes
    heads, scale, eps, layer = a["heads"], a["scale"], a["eps"], a["layer"]
    assert isinstance(heads, int) and isinstance(scale, float) and isinstance(eps, float) and isinstance(layer, int)
    tokens, out = step.shape.tokens, step.slot(op.result, "attended rows")
    splits = splits_of(step.units, tokens, kind.kv_heads) if step.shape.is_replayed else 0
    named = {"q_ptr": q, "norm_ptr": norm, "gate_ptr": gate, "out_ptr": op.result}
    types = {name: type_of(value) for name, value in named.items()} | {"cache_ptr": type_of_cache(kind.dtype.name)}
    # One list of tiles serves all layers: those of the text come first and say how many tokens one has.
    rows = padded_tokens(step.tile_tokens * (heads // kind.kv_heads)) if step.tile_tokens else 0
    request = picture_requests.vision_attention(step.machine, kind, types, heads, scale, eps, splits, rows)
    others: dict[str, Passed] = {}
    if splits > 1:
        parts = tokens * kind.kv_heads * constant(request, "ROWS") * splits
        others = {
            "partial_ptr": step.scratch(4 * parts * kind.head_dim, "split attention"),
            "weight_ptr": step.scratch(4 * parts, "weights of splits"),
            "counter_ptr": step.counter(tokens * kind.kv_heads),
        }
    grid: tuple[Expression, ...] = (tokens, kind.kv_heads, splits)
    if not splits:
        step.tile_tokens = step.tile_tokens or constant(request, "ROWS") // (heads // kind.kv_heads)
        others = {"tiles_ptr": Pointer(TILES_INPUT, 0)}
        grid = (most_tiles(step.shape.token_count(), step.tile_tokens), kind.kv_heads)
    step.call(
        request, grid, op.location, q_ptr=step.at(q), norm_ptr=step.at(norm), gate_ptr=step.at(gate),
        cache_ptr=step.memory[cache], start_ptr=step.at(start), stop_ptr=step.at(stop),
        sequences_ptr=step.at(sequences), table_ptr=step.at(tables), out_ptr=out, table_width=TABLE_WIDTH,
        layer=layer, **others,
    )  # fmt: skip


def type_of_cache(name: str) -> str:
    """Triton's name of what a cache of vision tokens holds."""
    return {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}[name]

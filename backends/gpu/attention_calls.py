"""Calls for the projection with its cache append, and for attention: one by one in decoding, in tiles in prefill."""

from __future__ import annotations

from dataclasses import replace

from llamac.artifact.launch_plan import SEQUENCES, TABLE_WIDTH, Expression, Pointer
from llamac.ir.dtypes import E4M3FN
from llamac.ir.graph import Op, Value
from llamac.ir.types import CacheType

from . import attention_requests
from .architectures import Architecture
from .attention_requests import Heads
from .calls import Passed, StepCalls, constant, tiles
from .cost_model import padded_tokens, splits_of
from .linear_calls import TRITON_TYPES, Given, input_of, is_few, tile_tokens, type_of, whole_input
from .tuned_rows import tuned

TILES_INPUT = "attention_tiles"


def cache_type(machine: Architecture, kind: CacheType) -> str:
    """Triton's type of a cache's elements: bytes where the hardware does not convert 8-bit floats."""
    if kind.dtype is E4M3FN:
        return "fp8e4nv" if machine.converts_e4m3 else "u8"
    return TRITON_TYPES[kind.dtype.name]


def heads_of(machine: Architecture, op: Op, cache: Value, scaled: bool) -> Heads:
    """The attention of a layer, from its projection or its attend op."""
    a = op.attributes
    heads, kind = a["heads"], cache.cache
    assert isinstance(heads, int)
    attends, floor, eps = op.opcode == "attend", a.get("floor", 0.0), a.get("qk_eps", -1.0)
    scale, temperature = (a["scale"], 0.0) if attends else (1.0, a.get("scale", 0.0))
    assert isinstance(scale, float) and isinstance(temperature, float)
    assert isinstance(floor, float) and isinstance(eps, float)
    rope = "cos" in str(a.get("operands", "")).split()
    return Heads(heads, kind, cache_type(machine, kind), scale, rope, eps, int(floor), temperature, scaled)


def qkv(step: StepCalls, op: Op) -> None:
    """Norm, projection, norm of q and k, rotation, temperature and append."""
    given = Given(op)
    heads = heads_of(step.machine, op, given["cache"], given.has("kv_scales"))
    count, tokens = step.shape.token_count(), step.shape.tokens
    step.memory[op.results[0]] = step.memory[given["cache"]]
    names = ("positions", "sequence_of_token", "page_tables", "kv_scales")
    shared = _cache(step, op, given["cache"], *(given[n] for n in names if given.has(n)))
    turned = {f"{n}_ptr": step.at(given[n]) for n in ("cos", "sin") if given.has(n)}
    others = shared | turned | step.matrix(given["weight"], given.layout)
    half, all_heads = heads.cache.head_dim // 2, heads.heads + 2 * heads.cache.kv_heads
    if is_few(step, given.layout, tokens):
        request = attention_requests.decode_qkv(step.machine, given.layout, heads, tokens, given.eps)
        if heads.qk_eps >= 0:  # the programs of a head meet before its norm
            partial = 4 * constant(request, "SPLITS") * padded_tokens(tokens) * given.layout.rows
            others |= {"partial_ptr": step.scratch(partial, "projected heads"), "counter_ptr": step.counter(all_heads)}
        rows = whole_input(step, given)
        grid: tuple[Expression, ...] = (all_heads * (half // constant(request, "BP")), constant(request, "SPLITS"))
    else:
        width = tile_tokens(step, tokens)
        rows = input_of(step, given, width)
        request = attention_requests.prefill_qkv(
            step.machine, given.layout, heads, width, x=rows.kind, norm=rows.norm, eps=given.eps
        )
        request = rows.taken(request, step.machine)
        grid = (tiles(count, constant(request, "BM")), all_heads * (half // constant(request, "BP")))
    q = step.slot(op.results[1], "queries")
    step.call(request, grid, op.location, x_ptr=rows.x, q_ptr=q, tokens=count, **rows.others, **others)


def attend(step: StepCalls, op: Op) -> None:
    """Attention of each row over its keys."""
    q, cache, *rows = op.operands
    heads = heads_of(step.machine, op, cache, len(rows) > 3)
    others = _cache(step, op, cache, *rows)
    kv_heads, tokens = heads.cache.kv_heads, step.shape.tokens
    out = step.slot(op.result, "attended rows")
    if step.shape.is_replayed:
        splits = splits_of(step.units, tokens, kv_heads)
        request = attention_requests.decode_attention(step.machine, heads, splits, type_of(q))
        measured = tuned(step.machine, request, tokens)
        splits = constant(measured, "SPLITS")
        # One split needs no scratch, so its parameters are others.
        request = attention_requests.decode_attention(step.machine, heads, splits, type_of(q))
        constants = {**request.constants, "KEYS": measured.constants["KEYS"]}
        request = replace(request, constants=constants, options=measured.options)
        if splits > 1:
            rows_of_tiles = tokens * kv_heads * constant(request, "ROWS") * splits
            others |= {
                "partial_ptr": step.scratch(4 * rows_of_tiles * heads.cache.head_dim, "split attention"),
                "weight_ptr": step.scratch(4 * rows_of_tiles, "weights of splits"),
                "counter_ptr": step.counter(tokens * kv_heads),
            }
        grid: tuple[Expression, ...] = (tokens, kv_heads, splits)
    else:
        request = attention_requests.prefill_attention(step.machine, heads, type_of(q))
        step.tile_tokens = constant(request, "ROWS") // (heads.heads // kv_heads)
        others |= {"tiles_ptr": Pointer(TILES_INPUT, 0)}
        grid = (most_tiles(step.shape.token_count(), step.tile_tokens), kv_heads)
    step.call(request, grid, op.location, q_ptr=step.at(q), out_ptr=out, **others)


def most_tiles(tokens: Expression, tile_tokens: int) -> Expression:
    """Tiles of at most `tile_tokens` rows of one sequence each that any step of so many tokens needs at most."""
    return ("min", tokens, ("add", tiles(tokens, tile_tokens), SEQUENCES))


def _cache(
    step: StepCalls, op: Op, cache: Value, positions: Value, sequences: Value, tables: Value, *scales: Value
) -> dict[str, Passed]:
    """What every kernel over the cache is told."""
    layer = op.attributes["layer"]
    assert isinstance(layer, int)
    return {
        "cache_ptr": step.memory[cache], "positions_ptr": step.at(positions), "sequences_ptr": step.at(sequences),
        "table_ptr": step.at(tables), "table_width": TABLE_WIDTH, "layer": layer,
        **({"kv_scale_ptr": step.at(scales[0])} if scales else {}),
    }  # fmt: skip

"""Calls for the projection with its cache append, and for attention: one by one in decoding, in tiles in prefill."""

from __future__ import annotations

from llamac.artifact.launch_plan import SEQUENCES, TABLE_WIDTH, Expression, Pointer
from llamac.ir.graph import Op, Value

from . import attention_requests
from .attention_requests import Heads
from .calls import Passed, StepCalls, constant, tiles
from .linear_calls import TRITON_TYPES, Given, input_of, is_few, tile_tokens, type_of
from .linear_requests import padded_tokens

TILES_INPUT = "attention_tiles"
MOST_SPLITS = 32
"""Programs that share the keys of a row at most: each result is read again to merge them."""


def splits_of(units: int, tokens: int, kv_heads: int) -> int:
    """Programs among which the keys of a row are split: as many as keep all multiprocessors busy, a power of two."""
    wanted = max(1, units // (tokens * kv_heads))
    return min(MOST_SPLITS, 1 << (wanted.bit_length() - 1))


def heads_of(op: Op, cache: Value) -> Heads:
    """The attention of a layer, from its projection or its attend op."""
    a = op.attributes
    heads, kind = a["heads"], cache.cache
    assert isinstance(heads, int)
    scaled, floor, eps = op.opcode == "attend", a.get("floor", 0.0), a.get("qk_eps", -1.0)
    scale, temperature = (a["scale"], 0.0) if scaled else (1.0, a.get("scale", 0.0))
    assert isinstance(scale, float) and isinstance(temperature, float)
    assert isinstance(floor, float) and isinstance(eps, float)
    rope = "cos" in str(a.get("operands", "")).split()
    return Heads(heads, kind, TRITON_TYPES[kind.dtype.name], scale, rope, eps, int(floor), temperature)


def qkv(step: StepCalls, op: Op) -> None:
    """Norm, projection, norm of q and k, rotation, temperature and append."""
    given = Given(op)
    heads = heads_of(op, given["cache"])
    count, tokens = step.shape.token_count(), step.shape.tokens
    step.memory[op.results[0]] = step.memory[given["cache"]]
    shared = _cache(step, op, given["cache"], *(given[n] for n in ("positions", "sequence_of_token", "page_tables")))
    turned = {f"{n}_ptr": step.at(given[n]) for n in ("cos", "sin") if given.has(n)}
    others = shared | turned | step.matrix(given["weight"], given.layout)
    half, all_heads = heads.cache.head_dim // 2, heads.heads + 2 * heads.cache.kv_heads
    if is_few(step, given.layout, tokens):
        request = attention_requests.decode_qkv(step.machine, given.layout, heads, tokens, given.eps)
        if heads.qk_eps >= 0:  # the programs of a head meet before its norm
            partial = 4 * constant(request, "SPLITS") * padded_tokens(tokens) * given.layout.rows
            others |= {"partial_ptr": step.scratch(partial, "projected heads"), "counter_ptr": step.counter(all_heads)}
        x: Passed = step.at(given["x"])
        norm: dict[str, Passed] = {"norm_ptr": step.at(given["norm"])}
        grid: tuple[Expression, ...] = (all_heads * (half // constant(request, "BP")), constant(request, "SPLITS"))
    else:
        width = tile_tokens(step, tokens)
        x, kind, norm = input_of(step, given, width)
        request = attention_requests.prefill_qkv(
            step.machine, given.layout, heads, width, x=kind, norm=bool(norm), eps=given.eps
        )
        grid = (tiles(count, constant(request, "BM")), all_heads * (half // constant(request, "BP")))
    q = step.slot(op.results[1], "queries")
    step.call(request, grid, op.location, x_ptr=x, q_ptr=q, tokens=count, **norm, **others)


def attend(step: StepCalls, op: Op) -> None:
    """Attention of each row over its keys."""
    q, cache, *rows = op.operands
    heads = heads_of(op, cache)
    others = _cache(step, op, cache, *rows)
    kv_heads, tokens = heads.cache.kv_heads, step.shape.tokens
    out = step.slot(op.result, "attended rows")
    if step.shape.is_replayed:
        splits = splits_of(step.units, tokens, kv_heads)
        request = attention_requests.decode_attention(step.machine, heads, splits, type_of(q))
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
    step: StepCalls, op: Op, cache: Value, positions: Value, sequences: Value, tables: Value
) -> dict[str, Passed]:
    """What every kernel over the cache is told."""
    layer = op.attributes["layer"]
    assert isinstance(layer, int)
    return {
        "cache_ptr": step.memory[cache], "positions_ptr": step.at(positions), "sequences_ptr": step.at(sequences),
        "table_ptr": step.at(tables), "table_width": TABLE_WIDTH, "layer": layer,
    }  # fmt: skip

"""From a kernel-level module to the calls of every bucket: one op is one call, or two where rows are normed first.

A step has a body and tails, of which one runs: logits of the wanted rows, the best token of each, or one that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llamac.analysis.weight_plan import PlacedWeight
from llamac.artifact.launch_plan import (
    IMAGE_ROWS,
    PAGES,
    RESULTS,
    ROWS,
    SEQUENCES,
    TABLE_WIDTH,
    TOKENS,
    Buffer,
    Pointer,
)
from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Module, Op, Weight
from llamac.ir.kv_groups import kv_groups
from llamac.ir.ops.row_kernels import E4M3_ABOVE
from llamac.ir.types import CacheType

from . import attention_calls, expert_calls, linear_calls, picture_calls, sample_calls, step_requests
from .architectures import Architecture
from .arena import place_slots
from .attention_calls import TILES_INPUT, most_tiles
from .calls import COUNTERS, Call, MeetingCall, Slot, StepCalls, StepShape
from .encoder_calls import EncoderCalls

LARGEST_DECODE = 64
"""Rows of the largest step whose rows attend one by one."""

_EMIT: Mapping[str, Callable[[StepCalls, Op], None]] = {
    "embed_rows16": linear_calls.embed,
    "rope_angles": linear_calls.angles,
    "linear_rows16": linear_calls.linear,
    "gate_up_rows16": linear_calls.gate_up,
    "qkv_rows16": attention_calls.qkv,
    "attend": attention_calls.attend,
    "route": expert_calls.route,
    "expert_gate_up_rows16": expert_calls.gate_up,
    "expert_down_rows16": expert_calls.down,
    "scatter_routed": expert_calls.scatter,
    "all_reduce": lambda step, op: _reduce(step, op),
    "merge_rows": picture_calls.merge,
    "attend_vision_rows": picture_calls.attend_vision,
    "gated_add": lambda step, op: picture_calls.gated_add(step, op, step.shape.token_count()),
}


@dataclass(frozen=True)
class BucketCalls:
    """The calls of one bucket with the places of its memory."""

    shape: StepShape
    body: list[Call]
    tails: Mapping[str, list[Call]]
    places: Mapping[Slot, int]
    arena_bytes: int
    counter_bytes: int
    tile_tokens: int
    meetings: Mapping[str, list[MeetingCall]] = field(default_factory=dict)
    """Where ranks of a divided model meet: within the body ("launches"), and within each tail."""


def step_shapes(max_tokens: int, module: Module | None = None) -> list[StepShape]:
    """The buckets of a target: powers of two for decoding, and all tokens of a step for prefill.

    Where `module` rounds the activations of large steps, prefill has a bucket for the smaller ones too.
    """
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= min(max_tokens, LARGEST_DECODE)]
    shapes = [StepShape(f"decode-{size}", "decode", size, size, True) for size in sizes]
    above = {op.attributes.get(E4M3_ABOVE) for _, op in module.ops()} - {None} if module else set()
    for size in sorted(int(str(size)) for size in above):
        if size < max_tokens:
            shapes.append(StepShape(f"prefill-{size}", "prefill", size, size, True))
    return [*shapes, StepShape(f"prefill-{max_tokens}", "prefill", max_tokens, max_tokens)]


def bucket_calls(
    module: Module, placed: list[PlacedWeight], machine: Architecture, units: int, shape: StepShape
) -> BucketCalls:
    """Every call of a step (LLC0605 for an op that no kernel does)."""
    graph = module.step
    offsets = {item.weight: item.offset for item in placed}
    step = StepCalls(machine, units, shape, _by_value(graph, offsets))
    for argument in graph.arguments:
        step.memory[argument] = Pointer(argument.name, 0)
    head = _head(graph)
    for op in graph.ops:
        if op is not head and op.opcode != "all_gather":
            _emit(step, op)
    body, step.calls = step.calls, []
    meetings, step.meetings = {"launches": step.meetings}, []
    tails = {}
    for result in RESULTS:
        tails[result] = _tail(step, graph, head, result)
        meetings[result], step.meetings = step.meetings, []
    # What the head reads stays until the last tail: each of them can run again, for other rows.
    places, arena = place_slots([*body, *tails["sample"], *tails["logits"], *tails["greedy"]])
    return BucketCalls(shape, body, tails, places, arena, step.counters, step.tile_tokens, meetings)


def _by_value(graph: Graph, offsets: Mapping[Weight, int]) -> dict[Weight, int]:
    used = {v for op in graph.ops for v in op.operands if isinstance(v, Weight)}
    return {weight: offsets[weight] for weight in used}


def _head(graph: Graph) -> Op:
    head = graph.outputs[0].producer
    if head is not None and head.opcode == "all_gather":
        head = head.operands[0].producer
    if head is None or head.opcode != "linear_rows16" or "rows" not in str(head.attributes["operands"]).split():
        raise LlamacError("LLC0605", "head", "the logits are not a product of the wanted rows over packed rows")
    return head


def _emit(step: StepCalls, op: Op) -> None:
    emit = _EMIT.get(op.opcode)
    if emit is None:
        reason = f"no GPU kernel does {op.opcode}"
        raise LlamacError("LLC0605", op.location or "@step", reason, "compile for a CPU target, which has one")
    emit(step, op)


def _reduce(step: StepCalls, op: Op) -> None:
    """The sum over ranks takes the place of what is summed."""
    x = op.operands[0]
    if len(op.operands) > 1:
        raise LlamacError("LLC0605", op.location, "on a GPU the first rank's product brings the residual")
    place, width = step.at(x), op.result.tensor.shape[1]
    assert isinstance(width, int)
    step.memory[op.result] = place
    step.meet("all_reduce", place, place, step.shape.token_count(), width, op.location)


def _gathered(step: StepCalls, graph: Graph, head: Op, logits: Pointer, ids: Pointer, result: str) -> None:
    """Each rank's columns of the logits, then those of all; and the best of them, or one that is drawn."""
    part, whole = head.attributes["rows"], graph.outputs[0].tensor.shape[1]
    assert isinstance(part, int) and isinstance(whole, int)
    own = step.scratch(4 * step.shape.rows * part, "part of the logits")
    linear_calls.linear(step, head, to=own)
    step.meet("all_gather", own, logits, step.shape.row_count(), part, head.location)
    if result == "sample":
        sample_calls.sample(step, whole, logits, head.location)
    if result == "greedy":
        request = step_requests.best_of_logits(whole)
        step.call(request, (step.shape.row_count(),), head.location, logits_ptr=logits, id_ptr=ids)


def _tail(step: StepCalls, graph: Graph, head: Op, result: str) -> list[Call]:
    logits, ids, normed = Pointer("logits", 0), Pointer("best", 0), dict(step.normed)
    if graph.outputs[0].producer is not head:
        _gathered(step, graph, head, logits, ids, result)
    elif result == "greedy":
        linear_calls.best(step, head, logits, ids)
    else:
        linear_calls.linear(step, head, to=logits)
        if result == "sample":
            vocab = graph.outputs[0].tensor.shape[1]
            assert isinstance(vocab, int)
            sample_calls.sample(step, vocab, logits, head.location)
    step.normed = normed  # what one tail makes the other does not have
    calls, step.calls = step.calls, []
    return calls


def buffers(
    module: Module, buckets: list[BucketCalls], weight_member: str, weight_bytes: int,
    encoder: EncoderCalls | None = None,
) -> tuple[Buffer, ...]:  # fmt: skip
    """All memory of a plan."""
    vocab = module.step.outputs[0].tensor.shape[1]
    assert isinstance(vocab, int)
    tile_tokens = max((b.tile_tokens for b in buckets), default=0)
    by_role = [
        Buffer("weights", "weights", weight_bytes, member=weight_member),
        Buffer("arena", "scratch", max([*(b.arena_bytes for b in buckets), encoder.arena_bytes if encoder else 0])),
        Buffer(COUNTERS, "counters", max(4, *(b.counter_bytes for b in buckets)), "i32"),
        *(_input(name, count) for name, count in (("token_ids", TOKENS), ("positions", TOKENS))),
        _input("sequence_of_token", TOKENS),
        _input("logit_rows", ROWS),
        *_pictures(module.step),
        Buffer("logits", "output", ("mul", ROWS, 4 * vocab), "fp32"),
        Buffer("best", "output", ("mul", ROWS, 4), "i32"),
        *sample_calls.buffers(),
    ]
    for group in kv_groups(module.step):
        by_role += [_cache(group.cache.name, group.type), _tables(group.tables.name)]
    if tile_tokens:
        size = ("mul", most_tiles(TOKENS, tile_tokens), 8)
        by_role.append(Buffer(TILES_INPUT, "input", size, "i32", tile_tokens=tile_tokens))
    return tuple(by_role) + (encoder.buffers if encoder is not None else ())


def _pictures(step: Graph) -> list[Buffer]:
    """What a step is told of pictures."""
    named = {argument.name: argument for argument in step.arguments}
    found = [_input(name, TOKENS) for name in ("image_rows", "vision_start", "vision_stop") if name in named]
    if "image_embeddings" in named:
        width = named["image_embeddings"].tensor.shape[1]
        assert isinstance(width, int)
        found.append(Buffer("image_embeddings", "input", ("mul", IMAGE_ROWS, 4 * width), "fp32"))
    return found


def _input(name: str, count: str) -> Buffer:
    return Buffer(name, "input", ("mul", count, 4), "i32")


def _tables(name: str) -> Buffer:
    return Buffer(name, "input", ("mul", ("mul", SEQUENCES, TABLE_WIDTH), 4), "i32")


def _cache(name: str, kind: CacheType) -> Buffer:
    pages = ("add", f"{PAGES}.{name}", 1)
    size = ("mul", pages, kind.page_bytes)
    return Buffer(name, "cache", size, kind.dtype.name, page_bytes=kind.page_bytes)

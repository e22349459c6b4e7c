"""Calls for mixtures of experts: routing, the experts of routed rows, their answers added back."""

from __future__ import annotations

from llamac.artifact.launch_plan import Expression
from llamac.ir.graph import Op

from . import expert_requests
from .calls import StepCalls, constant, tiles, times
from .expert_requests import Experts
from .linear_calls import Given, input_of, is_few, whole_input


def route(step: StepCalls, op: Op) -> None:
    """The experts of each token."""
    top, count = op.attributes["top_k"], op.operands[0].tensor.shape[1]
    assert isinstance(top, int) and isinstance(count, int)
    order, place, scores, offsets = (
        step.slot(result, name)
        for result, name in zip(op.results, ("order", "place", "scores", "offsets"), strict=True)
    )
    request = expert_requests.route(step.machine, count, top, step.shape.tokens)
    slots = 4 * step.shape.tokens * top
    step.call(
        request, (1,), op.location, logits_ptr=step.at(op.operands[0]), chosen_ptr=step.scratch(slots, "choices"),
        slot_score_ptr=step.scratch(slots, "scores of slots"), order_ptr=order, place_ptr=place, score_ptr=scores,
        offset_ptr=offsets, tokens=step.shape.token_count(),
    )  # fmt: skip


def _mixture(given: Given, hidden: int, inner: int) -> Experts:
    return Experts(given.integer("experts"), given.integer("top_k"), hidden, inner, given.layout.format)


def gate_up(step: StepCalls, op: Op) -> None:
    """swiglu of each routed row by its expert."""
    given = Given(op, op.attributes["experts"], 2)  # type: ignore[arg-type]
    mixture = _mixture(given, given.integer("columns"), given.integer("rows"))
    slots = times(step.shape.token_count(), mixture.top)
    few = is_few(step, given.layout, step.shape.tokens * mixture.top)
    if few:
        request = expert_requests.decode_gate_up(step.machine, mixture, given.eps)
        rows = whole_input(step, given)
        grid: tuple[Expression, ...] = (tiles(mixture.inner, constant(request, "BN")), slots)
    else:
        width = _tokens_of_expert(step, mixture)
        rows = input_of(step, given, width)
        request = expert_requests.prefill_gate_up(
            step.machine, mixture, width, x=rows.kind, norm=rows.norm, eps=given.eps
        )
        request = rows.taken(request, step.machine)
        grid = (
            _expert_tiles(slots, constant(request, "BM"), mixture.count),
            tiles(mixture.inner, constant(request, "BN")),
        )
    step.call(
        request, grid, op.location, x_ptr=rows.x, order_ptr=step.at(given["order"]),
        score_ptr=step.at(given["scores"]), offset_ptr=step.at(given["offsets"]),
        y_ptr=step.slot(op.result, "routed rows"), **rows.others,
        **step.matrix(given["weight"], given.layout),
    )  # fmt: skip


def down(step: StepCalls, op: Op) -> None:
    """Each routed row's way back, onto its token's row where it is the only one."""
    given = Given(op, op.attributes["experts"])  # type: ignore[arg-type]
    mixture = _mixture(given, given.integer("rows"), given.integer("columns"))
    slots = times(step.shape.token_count(), mixture.top)
    if is_few(step, given.layout, step.shape.tokens * mixture.top):
        rows = whole_input(step, given)
        request = expert_requests.decode_down(step.machine, mixture, given.has("base"))
        grid: tuple[Expression, ...] = (tiles(mixture.hidden, constant(request, "BN")), slots)
    else:
        width = _tokens_of_expert(step, mixture)
        rows = input_of(step, given, width)
        request = expert_requests.prefill_down(step.machine, mixture, width, given.has("base"))
        request = rows.taken(request, step.machine)
        grid = (
            _expert_tiles(slots, constant(request, "BM"), mixture.count),
            tiles(mixture.hidden, constant(request, "BN")),
        )
    base = {"base_ptr": step.at(given["base"])} if given.has("base") else {}
    step.call(
        request, grid, op.location, x_ptr=rows.x, order_ptr=step.at(given["order"]),
        offset_ptr=step.at(given["offsets"]), y_ptr=step.slot(op.result, "answers"), **rows.others, **base,
        **step.matrix(given["weight"], given.layout),
    )  # fmt: skip


def scatter(step: StepCalls, op: Op) -> None:
    """The answers of a token's experts added to its row."""
    routed, place, base = op.operands
    columns, top = op.result.tensor.shape[1], op.attributes["top_k"]
    assert isinstance(columns, int) and isinstance(top, int)
    request = expert_requests.scatter(step.machine, columns, top)
    step.call(
        request, (step.shape.token_count(), tiles(columns, constant(request, "BLOCK"))), op.location,
        routed_ptr=step.at(routed), place_ptr=step.at(place), base_ptr=step.at(base),
        y_ptr=step.slot(op.result, "sums"),
    )  # fmt: skip


def _tokens_of_expert(step: StepCalls, mixture: Experts) -> int:
    """Rows that an expert may expect when all are chosen alike: what its tiles are made for."""
    return max(1, step.shape.tokens * mixture.top // mixture.count)


def _expert_tiles(slots: Expression, size: int, experts: int) -> Expression:
    """Tiles of routed rows, none across experts: at most one a row, and at most one half-filled an expert."""
    whole = tiles(slots, size)
    if isinstance(whole, int) and isinstance(slots, int):
        return min(slots, whole + experts)
    return ("min", slots, ("add", whole, experts))

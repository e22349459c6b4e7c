"""Deliberate bugs in what Llama 4 adds: each is found before code is generated, by the check that the table names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mutations as m
import numpy as np
import pytest
from bugs import Bug, check_caught, meaning, put, rewrite
from mutations import ARENA, COUNT, LOGITS, VERIFIER, Mutation
from small_models import LLAMA4, SmallModel, with_llama4

from llamac.ir import registry
from llamac.ir.definition import Evaluation
from llamac.ir.dtypes import F32
from llamac.ir.graph import Module, Op, Value
from llamac.ir.types import CacheType
from llamac.passes import (
    fuse_gqa,
    fuse_residual,
    fuse_temperature,
    lower_moe_routing,
    plan_memory,
    raise_moe,
)
from llamac.transform import validation
from llamac.transform.rewriter import Rewriter

MODEL = with_llama4()
ALTERNATING = SmallModel(replace(with_llama4(unrotated=(1, 3)).config, moe=None))
"""Two layers of each kind: each kind becomes a function."""
LARGE_CHUNK = with_llama4(chunk=16)


def removed(opcode: str, wanted: Callable[[Op], bool] = lambda op: True) -> Mutation:
    """Ops of this kind are left out: what they changed stays as it was."""

    def mutate(module: Module) -> None:
        for graph, op in list(m.ops(module, opcode)):
            if wanted(op):
                graph.replace(op.result, op.operands[0])
                graph.ops.remove(op)
                op.drop_operands()

    return mutate


def with_chunk(change: Callable[[Op], Any]) -> Mutation:
    """Every attention gets another chunk; 0 for none."""

    def mutate(module: Module) -> None:
        for _, op in m.ops(module, "attention"):
            chunk = change(op)
            op.attributes.pop("chunk", None)
            if chunk:
                op.attributes["chunk"] = chunk

    return mutate


def _is_key(op: Op) -> bool:
    return op.result.tensor.shape[0] == LLAMA4.kv_heads


def _score_on_the_answers(rewriter: Rewriter, moe: Op, add: Op) -> None:
    x, logits, gate, up, down = moe.operands
    k, base = moe.attributes["top_k"], next(v for v in add.operands if v is not moe.result)
    rewriter.at(add, moe.location)
    order, place, scores, offsets = rewriter.multi("route", logits, top_k=k).results
    none = rewriter.op("mul", scores, rewriter.op("constant", value=0.0, dtype=F32))
    ones = rewriter.op("add", none, rewriter.op("constant", value=1.0, dtype=F32))
    rows = rewriter.op("gather_routed", x, order, ones, top_k=k)
    inner = rewriter.op("swiglu", *(rewriter.op("expert_linear", rows, w, offsets) for w in (gate, up)))
    answers = rewriter.op("expert_linear", inner, down, offsets)
    scored = rewriter.op("mul", answers, rewriter.op("reshape", scores, shape=(scores.tensor.shape[0], 1)))
    rewriter.replace(add.result, rewriter.op("scatter_routed", scored, place, base, top_k=k))


def use_result(opcode: str, index: int, result: int) -> Mutation:
    """Every op of this kind takes another result of the op that made its operand `index`."""

    def mutate(module: Module) -> None:
        for _, op in m.ops(module, opcode):
            producer = op.operands[index].producer
            assert producer is not None
            op.set_operand(index, producer.results[result])

    return mutate


def changed(name: str, change: Callable[[Evaluation, list[Any]], list[Any]]) -> Any:
    """An op of the IR computes what `change` makes of its results."""
    evaluate = registry.find_op(name).evaluate
    return meaning(name, lambda e: change(e, list(evaluate(e))))


def _scores_by_slot(e: Evaluation, results: list[Any]) -> list[Any]:
    order, place, scores, offsets = results
    return [order, place, scores[place], offsets]


def _later_of_equals(e: Evaluation, results: list[Any]) -> list[Any]:
    """The lowest of all where a choice should have been the highest."""
    return list(_ROUTE(Evaluation([-e.inputs[0]], e.attributes, e.result_types, e.symbols, e.exact)))


_ROUTE = registry.find_op("route").evaluate


def _next_expert(operand: int) -> Callable[[Evaluation], list[Any]]:
    """Each expert multiplies with the matrix of the one behind it."""

    def evaluate(e: Evaluation) -> list[Any]:
        stack = e.inputs[operand]
        inputs = [*e.inputs]
        inputs[operand] = np.roll(stack, -(stack.shape[0] // e.integer("experts")), axis=0)
        opcode = "expert_linear_dense" if operand == 1 else "expert_linear_grouped"
        return list(_EVALUATE[opcode](Evaluation(inputs, e.attributes, e.result_types, e.symbols, e.exact)))

    return evaluate


_EVALUATE = {name: registry.find_op(name).evaluate for name in ("expert_linear_dense", "expert_linear_grouped")}


def _without_shared(module: Module) -> None:
    for graph, op in m.ops(module, "scatter_routed"):
        zero = m.insert_before(graph, op, "constant", value=0.0, dtype=F32)
        op.set_operand(2, m.insert_before(graph, op, "mul", op.operands[2], zero.result).result)


def _residual_in_front(rewriter: Rewriter, add: Op) -> str | None:
    """The residual takes the place of the product that the experts' answers are added to."""
    for total, residual in (add.operands, add.operands[::-1]):
        scatter = total.producer
        if scatter is not None and scatter.opcode == "scatter_routed":
            rewriter.at(add)
            made = rewriter.op("scatter_routed", *scatter.operands[:2], residual, **scatter.attributes)
            rewriter.replace(add.result, made)
            return None
    return _FUSE(rewriter, add)


_FUSE = fuse_residual._fuse


def _tables_of(group: str) -> Mutation:
    """Attention in chunks reads the pages of another cache."""

    def mutate(module: Module) -> None:
        for _, op in m.ops(module, "attend"):
            if op.operands[1].cache.chunk:
                op.set_operand(4, module.step.argument(group))

    return mutate


def _full_from_chunked_pages(module: Module) -> None:
    chunked = next(a for a in module.step.arguments if a.name.startswith("page_tables.chunk"))
    for _, op in m.ops(module, "attend"):
        if not op.operands[1].cache.chunk:
            op.set_operand(4, chunked)


def _write_to_other_cache(module: Module) -> None:
    full = module.step.argument("cache")
    for _, op in m.ops(module, "rope_append"):
        op.set_operand(0, full)


def _given_back_early(tables: Any, cache: CacheType, lengths: Any) -> None:
    for sequence, length in enumerate(lengths):
        if cache.chunk:
            tables[sequence, : (cache.first_visible(length) + cache.page) // cache.page] = -1


def _skip_a_layer(module: Module) -> None:
    """The first layer of the second kind starts from what the layer in front of it started from."""
    first, second = (op for op in module.step.ops if op.opcode == "call" and op.location in ("layers.0", "layers.1"))
    second.set_operand(0, first.operands[0])


def _place_in_model(module: Module) -> None:
    """The number of the layer in the model where its place in its cache should be."""
    for _, op in m.ops(module, "call"):
        number = int(op.location.rpartition(".")[2])
        op.attributes["layer"] = min(number, op.operands[1].cache.layers - 1)


def _any_chunks(mask: Value) -> tuple[Value, int] | None:
    found = fuse_gqa.match(fuse_gqa._CHUNKED, mask.producer) if mask.producer is not None else None
    return (found["positions"], int(found.number("chunk")) + 1) if found is not None else _VISIBLE(mask)


_VISIBLE = fuse_gqa._visible


def _over_what_is_read(self: Any, op: Op, result: Value, index: int) -> Value | None:
    """Gathered rows over the rows that they are gathered from."""
    if op.opcode == "gather_routed" and self.place[op.operands[0]] >= 0:
        return op.operands[0]
    return _IN_PLACE(self, op, result, index)


_IN_PLACE = plan_memory._Planner._in_place


def _place_over_order(self: Any, result: Value, op: Op, index: int, strips: Any) -> None:
    _PLACE(self, result, op, index, strips)
    if op.opcode == "route" and result is op.results[1]:
        self.place[result] = self.place[op.results[0]]


_PLACE = plan_memory._Planner._place

BUGS = (
    # Attention in chunks.
    Bug("chunks one position longer", LOGITS, put(fuse_gqa, "_visible", _any_chunks), model=MODEL),
    Bug(
        "chunks one position shorter",
        LOGITS,
        edit=m.after("fuse-gqa", with_chunk(lambda op: op.attributes.get("chunk", 1) - 1)),
        model=MODEL,
    ),
    Bug("chunks forgotten", LOGITS, edit=m.after("fuse-gqa", with_chunk(lambda op: 0)), model=MODEL),
    Bug("unrotated layer in chunks too", LOGITS, edit=m.after("fuse-gqa", with_chunk(lambda op: 12)), model=MODEL),
    Bug(
        "mask of chunks unknown",
        COUNT,
        put(fuse_gqa, "_CHUNKED", fuse_gqa._CAUSAL),
        model=MODEL,
    ),
    # Norm and temperature of heads.
    Bug(
        "norm of heads with the eps of another model",
        LOGITS,
        edit=m.after("fuse-rms-norm", m.set_attribute("unit_rms_norm", "eps", 1e-5)),
        model=MODEL,
    ),
    Bug(
        "keys not normed",
        LOGITS,
        edit=m.after("fuse-gqa", removed("unit_rms_norm", _is_key)),
        model=MODEL,
    ),
    Bug(
        "norm of heads leaves out the keys",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("norm_heads", "heads", LLAMA4.heads)),
        model=MODEL,
    ),
    Bug(
        "norm of heads takes in the values",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("norm_heads", "heads", LLAMA4.heads + 2 * LLAMA4.kv_heads)),
        model=MODEL,
    ),
    Bug("temperature forgotten", LOGITS, edit=m.after("fuse-temperature", removed("temper")), model=MODEL),
    Bug(
        "temperature a position early",
        LOGITS,
        edit=m.after("fuse-temperature", m.shift_integers("temper", 1, 1)),
        model=MODEL,
    ),
    Bug(
        "temperature of the keys too",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("temper_heads", "heads", LLAMA4.heads + LLAMA4.kv_heads)),
        model=MODEL,
    ),
    Bug(
        "floor and scale of the temperature swapped",
        LOGITS,
        rewrite(
            fuse_temperature,
            lambda f, r: r.op("temper", f["q"], f["positions"], floor=f.number("scale"), scale=f.number("floor")),
        ),
        model=MODEL,
    ),
    # Mixtures of experts.
    Bug("gate and up of experts swapped", LOGITS, edit=m.after("raise-moe", m.swap_operands("moe", 2, 3)), model=MODEL),
    Bug("one expert fewer", LOGITS, edit=m.after("raise-moe", m.set_attribute("moe", "top_k", 1)), model=MODEL),
    Bug("one expert more", LOGITS, edit=m.after("raise-moe", m.set_attribute("moe", "top_k", 3)), model=MODEL),
    Bug(
        "softmax taken for sigmoid",
        LOGITS,
        rewrite(
            raise_moe,
            lambda f, r: r.op(
                "moe", f["x"], r.op("softmax", f["logits"], axis=-1), f["gate"], f["up"], f["down"], top_k=2
            ),
        ),
        model=MODEL,
    ),
    Bug("score on the answers", LOGITS, put(lower_moe_routing, "_route", _score_on_the_answers), model=MODEL),
    Bug("scores of other slots", LOGITS, changed("route", _scores_by_slot), model=MODEL),
    Bug("the worst experts chosen", LOGITS, changed("route", _later_of_equals), model=MODEL),
    Bug(
        "rows gathered in the order that they come back in",
        LOGITS,
        edit=m.after("lower-moe-routing", use_result("gather_routed", 1, 1)),
        model=MODEL,
    ),
    Bug(
        "answers scattered to other tokens",
        LOGITS,
        edit=m.after("lower-moe-routing", use_result("scatter_routed", 1, 0)),
        model=MODEL,
    ),
    Bug(
        "offsets of experts off by one",
        LOGITS,
        edit=m.after("lower-moe-routing", m.shift_integers("expert_linear", 2, -1)),
        model=MODEL,
    ),
    Bug("shared expert dropped", LOGITS, edit=m.after("lower-moe-routing", _without_shared), model=MODEL),
    Bug("shared expert lost under the residual", LOGITS, put(fuse_residual, "_fuse", _residual_in_front), model=MODEL),
    Bug("matrices of the next expert", LOGITS, meaning("expert_linear_dense", _next_expert(1)), model=MODEL),
    Bug(
        "integer matrices of the next expert",
        LOGITS,
        meaning("expert_linear_grouped", _next_expert(3)),
        model=replace(MODEL, quantize="int8"),
    ),
    Bug(
        "router of layer 1 in every layer",
        LOGITS,
        edit=m.after(
            "lower-moe-routing",
            m.use_weight("linear", 1, lambda n: "layers.1.moe.router" if n.endswith("router") else n),
        ),
        model=MODEL,
    ),
    # A cache for each kind of layer.
    Bug(
        "chunked layers read the other pages",
        LOGITS,
        edit=m.after("lower-kv-cache", _tables_of("page_tables")),
        model=MODEL,
    ),
    Bug(
        "unrotated layers read the chunked pages",
        LOGITS,
        edit=m.after("lower-kv-cache", _full_from_chunked_pages),
        model=MODEL,
    ),
    Bug(
        "keys written to the other cache", VERIFIER, edit=m.after("lower-kv-cache", _write_to_other_cache), model=MODEL
    ),
    Bug("pages given back too early", LOGITS, put(validation, "_give_back", _given_back_early), model=LARGE_CHUNK),
    Bug(
        "first visible position a page late",
        LOGITS,
        put(
            CacheType,
            "first_visible",
            lambda self, p: (p // self.chunk * self.chunk + 1) if self.chunk and p % self.chunk else p,
        ),
        model=MODEL,
    ),
    # Rolling and placing.
    Bug(
        "second kind of layer starts from before the first",
        LOGITS,
        edit=m.after("roll-layers", _skip_a_layer),
        model=ALTERNATING,
    ),
    Bug(
        "layers called by their number in the model",
        LOGITS,
        edit=m.after("roll-layers", _place_in_model),
        model=ALTERNATING,
    ),
    Bug(
        "gathered rows over those that are read again",
        ARENA,
        put(plan_memory._Planner, "_in_place", _over_what_is_read),
        model=MODEL,
    ),
    Bug(
        "two results of the router in one place",
        ARENA,
        put(plan_memory._Planner, "_place", _place_over_order),
        model=MODEL,
    ),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    check_caught(bug, monkeypatch)


@pytest.mark.parametrize("model", dict.fromkeys(bug.model for bug in BUGS), ids=lambda model: model.name)
def test_models_of_the_table_are_right_without_the_bugs(model: SmallModel) -> None:
    assert all(verdict.passed for verdict in model.run())

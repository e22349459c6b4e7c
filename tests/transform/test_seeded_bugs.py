"""Every deliberate bug of the table is found before code is generated, by the check that the table names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mutations as m
import numpy as np
import pytest
from bugs import Bug, both, check_caught, meaning, put, rewrite, rows_by
from mutations import ARENA, COUNT, DTYPE, LOGITS, REPORT, VERIFIER, WEIGHTS
from small_models import BASE, SmallModel, with_config

from llamac.ir.dtypes import BF16, F32, I8, U4, round_to
from llamac.ir.graph import DataSource, Module, Op, Value, Weight
from llamac.ir.ops import weights as weight_ops
from llamac.models.llama.graph import LlamaBuilder
from llamac.passes import (
    cast_weights,
    dedupe_ops,
    fold_constants,
    fold_rope,
    fuse_gate_up,
    fuse_gqa,
    fuse_qkv,
    fuse_residual,
    fuse_rms_norm,
    fuse_swiglu,
    plan_memory,
    quantize_fp8,
    quantize_int4,
    roll_layers,
    select_kernels,
)
from llamac.transform import integers, weight_rows
from llamac.transform.pattern import Node
from llamac.transform.rewriter import Rewriter


def _half_heads(name: str, weights: list[Any], attributes: dict[str, Any]) -> Any:
    return weights, {"head_dim": attributes["head_dim"] // 2}


def _attention(scale: Callable[[float], float]) -> Callable[..., Value]:
    def made(found: Any, rewriter: Rewriter) -> Value:
        value = fuse_gqa._rewrite(found, rewriter)
        assert value.producer is not None
        value.producer.attributes["scale"] = scale(found.number("scale"))
        return value

    return made


def _norm(eps: Callable[[float], float]) -> Callable[..., Value]:
    return lambda f, r: r.op("rms_norm", fuse_rms_norm._input(f), f["weight"], eps=eps(f.number("eps")))


def _unscaled(op: Op, known: dict[Value, Any]) -> list[Any]:
    if op.opcode == "select":
        return [known[op.operands[2]]]
    return _EVALUATE(op, known)


def _coarse(op: Op, known: dict[Value, Any]) -> list[Any]:
    found = _EVALUATE(op, known)
    return [round_to(np.asarray(v, np.float32), BF16) if op.opcode == "pow" else v for v in found]


_EVALUATE = fold_constants._evaluate


def _residual_twice(rewriter: Rewriter, add: Op) -> str | None:
    product, residual = add.operands[::-1]
    if product.producer is None or not product.producer.opcode.startswith("linear") or residual.type != product.type:
        return "no product"
    linear = product.producer
    if len(linear.operands) in (3, 5):
        return "has one already"
    rewriter.at(add)
    made = rewriter.op(linear.opcode, *linear.operands, residual, **linear.attributes)
    add.set_operand(list(add.operands).index(product), made)
    rewriter.replace(product, made)
    return None


def _exchange_angles(module: Module) -> None:
    for _, op in m.ops(module, "qkv_dense"):
        cos, sin = op.operands[-2:]
        op.set_operand(len(op.operands) - 2, sin)
        op.set_operand(len(op.operands) - 1, cos)


def _drop_residuals(module: Module) -> None:
    for opcode, without in (("linear_dense", 2), ("linear_grouped", 4)):
        for graph, op in m.ops(module, opcode):
            if len(op.operands) > without and op.location.endswith("mlp"):
                made = m.insert_before(graph, op, opcode, *op.operands[:without], **op.attributes)
                graph.replace(op.result, made.result)
        for graph in module.graphs.values():
            graph.remove_dead_ops()


def _tiled(self: Any, x: Value) -> Value:
    b, c = self.b, self.config
    group, (_, length, h) = c.heads // c.kv_heads, x.tensor.shape
    wide = b.op("broadcast", b.reshape(x, 1, c.kv_heads, length, h), shape=(group, c.kv_heads, length, h))
    return b.reshape(wide, c.heads, length, h)  # type: ignore[no-any-return]


def _any_repeat(value: Value) -> Value | None:
    op = value.producer
    if op is not None and op.opcode == "reshape" and op.operands[0].producer is not None:
        wide = op.operands[0].producer
        if wide.opcode == "broadcast" and wide.operands[0].producer is not None:
            return wide.operands[0].producer.operands[0]
    return value


def _late_mask(self: Any) -> Value:
    """A mask that also shows the key behind the query's own."""
    b, c, tokens, past = self.b, self, self.positions.tensor.shape[0], None
    from llamac.models.llama.graph import PAST

    past = PAST
    keys = b.reshape(b.op("iota", length=past + tokens, dtype=c.positions.tensor.dtype), 1, past + tokens)
    one = b.constant(1.0, c.positions.tensor.dtype)
    queries = b.reshape(b.op("add", c.positions, one), tokens, 1)
    visible = b.op("less_equal", keys, queries)
    return b.op("select", visible, b.constant(0.0, c.dtype), b.constant(-np.inf, c.dtype))  # type: ignore[no-any-return]


def _through_add(mask: Value) -> tuple[Value, int] | None:
    found = fuse_gqa.match(fuse_gqa._CAUSAL, mask.producer) if mask.producer is not None else None
    if found is None:
        return None
    positions = found["positions"]
    return (positions.producer.operands[0] if positions.producer is not None else positions), 0


def _dedupe_blindly(graph: Any) -> int:
    seen: dict[Any, Op] = {}
    for op in graph.ops:
        first = seen.setdefault((op.opcode, op.operands, tuple(str(r.type) for r in op.results)), op)
        if first is not op:
            for old, new in zip(op.results, first.results, strict=True):
                graph.replace(old, new)
    return int(graph.remove_dead_ops())


def _unscaled_weights(module: Module) -> None:
    for weight in module.weights.values():
        if weight.name.endswith("inverse_frequencies") and isinstance(weight.source, DataSource):
            values = np.frombuffer(weight.source.data, "<f4") * np.float32(1 + 2.0**-20)
            weight.source = DataSource(values.tobytes())


def _first_layer(name: str) -> str:
    return name.replace("layers.1.", "layers.0.")


def _call_first(module: Module) -> None:
    for _, op in m.ops(module, "call"):
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Weight):
                op.set_operand(index, module.weights[_first_layer(operand.name)])


def _signature_of_opcodes(number: int, ops: list[Op], inside: Any, inputs: Any, weights: Any, outputs: Any) -> object:
    return tuple(op.opcode for op in ops)


def _other_eps(self: Any, layer: int, hidden: Value) -> Any:
    self.config = replace(self.config, rms_norm_eps=BASE.rms_norm_eps * (1 + layer))
    return _LAYER(self, layer, hidden)


_LAYER = LlamaBuilder.layer


def _shift_slices(module: Module) -> None:
    for _, op in m.ops(module, "slice"):
        if op.attributes["start"]:
            op.attributes["start"] -= 1  # type: ignore[operator]
            op.attributes["stop"] -= 1  # type: ignore[operator]


def _wrong_group(module: Module, context: Any, role: str, dtype: Any, group: int, asymmetric: bool) -> int:
    return _QUANTIZE(module, context, role, dtype, 2 * group, asymmetric)


_QUANTIZE = integers.quantize_matrices


def _scales_of_i8(module: Module, name: str, opcode: str, *operands: Value, **attributes: Any) -> Weight:
    if opcode == "group_scale":
        attributes["dtype"] = I8
    return weight_rows.define_weight(module, name, opcode, *operands, **attributes)


def _without_min(module: Module, weight: Weight, dtype: Any, group: int, asymmetric: bool) -> Weight:
    return _QUANTIZED(module, weight, U4, group, False)


_QUANTIZED = integers._quantized


def _tensor_scale(e: Any) -> Any:
    amax = np.abs(e.inputs[0].astype(np.float32)).max()
    return [np.full((len(e.inputs[0]), 1), amax / np.float32(448), np.float32)]


def _floored_quants(e: Any) -> Any:
    rint = np.rint
    np.rint = np.floor  # type: ignore[assignment]
    try:
        return weight_ops._evaluate_group_quants(e)
    finally:
        np.rint = rint


def _drop_minimum(module: Module, name: str, opcode: str, weights: Any, **attributes: Any) -> Weight:
    found = weight_rows.over_rows(module, name, opcode, weights, **attributes)
    if found.producer is not None and found.producer.opcode == "dequantize":
        quants, scales, *_ = found.producer.operands
        group = found.producer.attributes["group"]
        return weight_rows.define_weight(module, f"{name}.short", "dequantize", quants, scales, group=group)
    return found


def _freed_early(self: Any, index: int) -> None:
    for offset in [o for o, (_, last) in self.live.items() if last <= index]:
        del self.live[offset]


def _taken_always(self: Any, op: Op, result: Value, index: int) -> Value | None:
    if op.opcode in ("rms_norm", "swiglu") and self.place[op.operands[0]] >= 0:
        return op.operands[0]
    return _IN_PLACE(self, op, result, index)


_IN_PLACE = plan_memory._Planner._in_place
_RUN = plan_memory._Planner.run


def _frame_at_start(self: Any) -> int:
    self.base = 0
    return _RUN(self)


def _remove_one(module: Module) -> None:
    graph = module.step
    graph.ops.remove(next(op for op in graph.ops if op.opcode == "swiglu"))


def _narrow_once(module: Module) -> None:
    for graph, op in m.ops(module, "swiglu"):
        narrow = m.insert_before(graph, op, "cast", op.operands[0], dtype=BF16)
        op.set_operand(0, m.insert_before(graph, op, "cast", narrow.result, dtype=F32).result)


def _silent(module: Module, rules: Any) -> Any:
    counts, refusals = fuse_rms_norm_apply(module, rules)
    return dict.fromkeys(counts, 0), refusals


fuse_rms_norm_apply = fuse_rms_norm.apply_in_turn

_BF16 = SmallModel(replace(BASE, dtype="bf16"), "bf16")
_HALF_SPLIT = with_config(rope_style="half_split")
_MIXED = SmallModel(replace(BASE, hidden_size=64, intermediate_size=96), "q4_1")
_UNJOINED = replace(_MIXED, special=(("v", "q8_0"), ("up", "q8_0")))
_NO_WEIGHT_CAST = Node("mul", fuse_rms_norm._NORMAL, fuse_rms_norm.AnyWeight("weight"))

BUGS = (
    # Raising and fusing.
    Bug(
        "head uses the embedding",
        LOGITS,
        edit=m.after("raise-linear", m.use_weight("linear", 1, {"head": "embed"}.get)),
    ),
    Bug(
        "linear uses the weight of layer 0",
        LOGITS,
        edit=m.after("raise-linear", m.use_weight("linear", 1, _first_layer)),
    ),
    Bug("eps lost", LOGITS, rewrite(fuse_rms_norm, _norm(lambda eps: 0.0))),
    Bug("eps ten times too small", LOGITS, rewrite(fuse_rms_norm, _norm(lambda eps: eps / 10))),
    Bug(
        "norm pattern does not know the casts of bf16",
        COUNT,
        put(fuse_rms_norm, "RULES", (replace(fuse_rms_norm.RULES[0], pattern=_NO_WEIGHT_CAST),)),
        model=_BF16,
    ),
    Bug(
        "MLP norm uses the attention norm's weight",
        LOGITS,
        edit=m.after("fuse-rms-norm", m.use_weight("rms_norm", 1, lambda n: n.replace("mlp_norm", "attn_norm"))),
    ),
    Bug("sign of sin", LOGITS, edit=m.after("fuse-rope", m.wrap_operand("rope", 2, "neg"))),
    Bug("cos and sin swapped", LOGITS, edit=m.after("fuse-rope", m.swap_operands("rope", 1, 2))),
    Bug(
        "wrong rotation style",
        LOGITS,
        edit=m.after("fuse-rope", m.set_attribute("rope", "style", "interleaved")),
        model=_HALF_SPLIT,
    ),
    Bug("attention scale lost", LOGITS, rewrite(fuse_gqa, _attention(lambda scale: 1.0))),
    Bug("attention scale twice", LOGITS, rewrite(fuse_gqa, _attention(lambda scale: scale * scale))),
    Bug(
        "KV heads tiled instead of repeated",
        LOGITS,
        both(put(LlamaBuilder, "repeat_kv", _tiled), put(fuse_gqa, "unrepeated", _any_repeat)),
    ),
    Bug(
        "mask that shows the next key taken for causal",
        LOGITS,
        both(put(LlamaBuilder, "causal_mask", _late_mask), put(fuse_gqa, "_visible", _through_add)),
    ),
    Bug("k and v swapped in attention", LOGITS, edit=m.after("fuse-gqa", m.swap_operands("attention", 1, 2))),
    Bug("gate and up swapped in swiglu", LOGITS, rewrite(fuse_swiglu, lambda f, r: r.op("swiglu", f["up"], f["gate"]))),
    Bug(
        "pass reports no change",
        REPORT,
        put(fuse_rms_norm, "apply_in_turn", _silent),
        edit=lambda steps: [replace(s, expected={}) for s in steps],
    ),
    # Folding.
    Bug("rope scaling not folded", LOGITS, put(fold_constants, "_evaluate", _unscaled)),
    Bug("rope powers rounded to bf16", LOGITS, put(fold_constants, "_evaluate", _coarse)),
    Bug("frequencies a millionth off", LOGITS, edit=m.after("fold-constants", _unscaled_weights)),
    Bug("dedupe ignores attributes", LOGITS, put(dedupe_ops, "_dedupe", _dedupe_blindly)),
    Bug("eliminate-dead removes a live op", VERIFIER, edit=m.after("eliminate-dead", _remove_one)),
    Bug("rope style flipped, rows not permuted", LOGITS, rows_by(fold_rope, lambda n, w, a: w[0])),
    Bug("rope rows permuted in half heads", LOGITS, rows_by(fold_rope, _half_heads)),
    Bug(
        "rope rows of k not permuted",
        LOGITS,
        rows_by(fold_rope, lambda n, w, a: w[0] if ".attn.k" in n else (w, a)),
    ),
    Bug("activations narrowed on the way", DTYPE, edit=m.after("fuse-gate-up", _narrow_once)),
    # Joining.
    Bug("q, k, v joined in another order", LOGITS, rows_by(fuse_qkv, lambda n, w, a: ([w[1], w[0], w[2]], a))),
    Bug("q, k, v cut one row early", LOGITS, edit=m.after("fuse-qkv", _shift_slices)),
    Bug("gate and up joined in another order", LOGITS, rows_by(fuse_gate_up, lambda n, w, a: (w[::-1], a))),
    Bug("minimum lost when joining", LOGITS, put(fuse_gate_up, "over_rows", _drop_minimum), model=_MIXED),
    # Quantizing.
    Bug(
        "groups twice as wide as asked for",
        WEIGHTS,
        put(quantize_int4, "quantize_matrices", _wrong_group),
        model=SmallModel(quantize="int4"),
    ),
    Bug(
        "scales of i8 with quants of i4",
        WEIGHTS,
        put(integers, "define_weight", _scales_of_i8),
        model=SmallModel(quantize="int4"),
    ),
    Bug(
        "unsigned quants without a minimum",
        WEIGHTS,
        put(integers, "_quantized", _without_min),
        model=SmallModel(quantize="int4:asym"),
    ),
    Bug(
        "fp8 scale of the tensor, not the row",
        WEIGHTS,
        meaning("row_scale", _tensor_scale),
        model=SmallModel(quantize="fp8"),
    ),
    Bug("quants rounded down", WEIGHTS, meaning("group_quants", _floored_quants), model=SmallModel(quantize="int8")),
    Bug(
        "f16 weights rounded through bf16",
        WEIGHTS,
        put(
            cast_weights,
            "define_weight",
            lambda module, name, opcode, w, dtype: weight_rows.define_weight(
                module, name, opcode, w, dtype=BF16 if dtype.name == "f16" else dtype
            ),
        ),
        model=SmallModel(quantize="f16"),
    ),
    Bug(
        "fp8 scales of other rows",
        WEIGHTS,
        put(quantize_fp8, "_quantized", lambda module, weight: _scales_of_other_rows(module, weight)),
        model=SmallModel(quantize="fp8"),
    ),
    # Lowering.
    Bug(
        "attend reads the cache of layer 0",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("attend", "layer", 0)),
    ),
    Bug(
        "append writes the cache of layer 0",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("rope_append", "layer", 0)),
    ),
    Bug("append one slot further", LOGITS, edit=m.after("lower-kv-cache", m.shift_integers("rope_append", 4, 1))),
    Bug("attend sees one key too many", LOGITS, edit=m.after("lower-kv-cache", m.shift_integers("attend", 2, 1))),
    Bug("logit rows off by one", LOGITS, edit=m.after("lower-kv-cache", m.shift_integers("select_rows", 1, -1))),
    Bug(
        "scale dropped while lowering",
        LOGITS,
        edit=m.after("lower-kv-cache", m.set_attribute("attend", "scale", 1.0)),
    ),
    Bug(
        "u4 weights packed as i4",
        VERIFIER,
        put(select_kernels, "grouped_name", lambda q, g, s, mn: f"i4g{g}s{s.bits}"),
        model=_MIXED,
    ),
    Bug("residual added twice", LOGITS, put(fuse_residual, "_fuse", _residual_twice)),
    Bug("residual dropped", LOGITS, edit=m.after("fuse-residual", _drop_residuals)),
    Bug(
        "wrong eps in the fused norm",
        LOGITS,
        edit=m.after("fuse-quantize-rows", m.set_attribute("rms_norm_quantized", "eps", 1e-4)),
        model=_MIXED,
    ),
    Bug(
        "the fused append writes one slot further",
        LOGITS,
        edit=m.after("fuse-qkv-append", m.shift_integers("qkv_dense", 3, 1)),
    ),
    Bug("angles exchanged in the fused rotation", LOGITS, edit=m.after("fuse-qkv-append", _exchange_angles)),
    Bug(
        "the fused append writes layer 0",
        LOGITS,
        edit=m.after("fuse-qkv-append", m.set_attribute("qkv_dense", "layer", 0)),
    ),
    # Rolling and placing.
    Bug("every layer called with the weights of layer 0", LOGITS, edit=m.after("roll-layers", _call_first)),
    Bug("every layer called as layer 0", LOGITS, edit=m.after("roll-layers", m.set_attribute("call", "layer", 0))),
    Bug(
        "layers with different attributes rolled as one",
        LOGITS,
        both(put(LlamaBuilder, "layer", _other_eps), put(roll_layers, "_signature", _signature_of_opcodes)),
    ),
    Bug("buffers freed one op early", ARENA, put(plan_memory._Planner, "_free_before", _freed_early)),
    Bug("buffers all at the start", ARENA, put(plan_memory._Planner, "_find", lambda self, size: self.base)),
    Bug("result over an input that is still read", ARENA, put(plan_memory._Planner, "_in_place", _taken_always)),
    Bug("layer's buffers over those of the step", ARENA, put(plan_memory._Planner, "run", _frame_at_start)),
    Bug(
        "strips of a concat freed too early",
        ARENA,
        put(plan_memory._Planner, "_strips", lambda self: {}),
        model=_UNJOINED,
    ),
)


def _scales_of_other_rows(module: Module, weight: Weight) -> Weight:
    base = f"{weight.name}.e4m3fn"
    columns = weight.tensor.shape[1]
    assert isinstance(columns, int)
    scale = weight_rows.define_weight(module, f"{base}.scales", "row_scale", weight)
    turned = weight_rows.define_weight(module, f"{base}.turned", "rows_to_half_split", scale, head_dim=4)
    quants = weight_rows.define_weight(module, f"{base}.quants", "row_quants", weight, scale)
    return weight_rows.define_weight(module, base, "dequantize", quants, turned, group=columns)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    check_caught(bug, monkeypatch)


@pytest.mark.parametrize("model", dict.fromkeys(bug.model for bug in BUGS), ids=lambda model: model.name)
def test_models_of_the_table_are_right_without_the_bugs(model: SmallModel) -> None:
    assert all(verdict.passed for verdict in model.run())

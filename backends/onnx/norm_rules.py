"""Rules for norms, rotation, temperature and the gated activation, in standard operators."""

from __future__ import annotations

from llamac.ir.graph import Op, Weight

from .emitter import POSITIONS, Emitter, Rule


def _number(op: Op, name: str) -> float:
    value = op.attributes[name]
    assert isinstance(value, float)
    return value


def normalized(e: Emitter, x: str, eps: float) -> str:
    """x / sqrt(mean(x^2) + eps), in the form that ONNX Runtime and OpenVINO know how to fuse."""
    w = e.writer
    mean = w.op("ReduceMean", w.op("Pow", x, w.number(2.0)), w.constant([-1]), keepdims=1)
    return w.op("Div", x, w.op("Sqrt", w.op("Add", mean, w.number(eps))))


def rms_norm(e: Emitter, op: Op) -> None:
    """Normalized, times the weight."""
    normal = normalized(e, e.name(op.operands[0]), _number(op, "eps"))
    e.node("Mul", normal, e.weights.vector(op.operands[1]), of=op.result)


def add_rms_norm(e: Emitter, op: Op) -> None:
    """The sum, and the norm of it."""
    e.node("Add", e.name(op.operands[0]), e.name(op.operands[1]), of=op.results[0])
    normal = normalized(e, e.name(op.results[0]), _number(op, "eps"))
    e.node("Mul", normal, e.weights.vector(op.operands[2]), of=op.results[1])


def unit_rms_norm(e: Emitter, op: Op) -> None:
    """Normalized, without a weight."""
    e.bind(op.result, normalized(e, e.name(op.operands[0]), _number(op, "eps")))


def rope_angles(e: Emitter, op: Op) -> None:
    """cos and sin of position times frequency, formed as one f32 product: [batch, tokens, head_dim / 2]."""
    w, frequencies = e.writer, op.operands[1]
    assert isinstance(frequencies, Weight)
    angles = w.op("Mul", positions_column(e), e.weights.vector(frequencies))
    e.node("Cos", angles, of=op.results[0])
    e.node("Sin", angles, of=op.results[1])


def positions_column(e: Emitter) -> str:
    """The positions as f32, [batch, tokens, 1]."""
    w = e.writer
    return w.once("positions", lambda: w.op("Unsqueeze", w.op("Cast", POSITIONS, to=1), w.constant([2])))


def rope(e: Emitter, op: Op) -> None:
    """Pairs of x [batch, heads, tokens, head_dim] rotated."""
    w = e.writer
    x, cos, sin = (e.name(v) for v in op.operands)
    cos, sin = (w.once(("for heads", t), lambda t=t: w.op("Unsqueeze", t, w.constant([1]))) for t in (cos, sin))
    first, second = _pairs(e, op, x)
    turned = (
        w.op("Sub", w.op("Mul", first, cos), w.op("Mul", second, sin)),
        w.op("Add", w.op("Mul", second, cos), w.op("Mul", first, sin)),
    )
    if op.attributes["style"] == "half_split":
        e.node("Concat", *turned, of=op.result, axis=-1)
        return
    columns = [w.op("Unsqueeze", part, w.constant([-1])) for part in turned]
    shape = w.constant([0, 0, -1, _width(op)])
    e.node("Reshape", w.op("Concat", *columns, axis=-1), shape, of=op.result)


def _pairs(e: Emitter, op: Op, x: str) -> tuple[str, ...]:
    """The first and the second element of every pair."""
    w, width = e.writer, _width(op)
    if op.attributes["style"] == "half_split":
        return w.ops("Split", (x,), ("", ""), axis=-1, num_outputs=2)
    steps = (w.constant([width]), w.constant([-1]), w.constant([2]))
    return tuple(w.op("Slice", x, w.constant([start]), *steps) for start in (0, 1))


def _width(op: Op) -> int:
    width = op.result.tensor.shape[-1]
    assert isinstance(width, int)
    return width


def temper(e: Emitter, op: Op) -> None:
    """q times 1 + scale * ln(1 + floor((position + 1) / floor))."""
    w, floor, scale = e.writer, _number(op, "floor"), _number(op, "scale")

    def factors() -> str:
        later = w.op("Add", positions_column(e), w.number(1.0))
        blocks = w.op("Floor", w.op("Div", later, w.number(floor)))
        grown = w.op("Mul", w.op("Log", w.op("Add", blocks, w.number(1.0))), w.number(scale))
        return w.op("Unsqueeze", w.op("Add", grown, w.number(1.0)), w.constant([1]))

    e.node("Mul", e.name(op.operands[0]), w.once(("temperatures", floor, scale), factors), of=op.result)


def swiglu(e: Emitter, op: Op) -> None:
    """silu(gate) * up; one operand holds gate, then up."""
    w = e.writer
    names = e.operands(op)
    gate, up = names if len(names) == 2 else w.ops("Split", names, ("", ""), axis=-1, num_outputs=2)
    e.node("Mul", w.op("Mul", gate, w.op("Sigmoid", gate)), up, of=op.result)


NORM_RULES: dict[str, Rule] = {
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "unit_rms_norm": unit_rms_norm,
    "rope_angles": rope_angles,
    "rope": rope,
    "temper": temper,
    "swiglu": swiglu,
}

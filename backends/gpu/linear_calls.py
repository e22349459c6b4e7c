"""Calls for products over packed rows, embedding, norms and the head: which kernels a step of so many tokens takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.artifact.launch_plan import Expression, Pointer
from llamac.ir.dtypes import F16, DType
from llamac.ir.graph import Op, Value
from llamac.ir.ops.row_kernels import E4M3_ABOVE, given_names, layout_of
from llamac.ir.row_layouts import RowLayout, between_type

from . import linear_requests, step_requests
from .architectures import Architecture
from .calls import Passed, Slot, StepCalls, constant, tiles, times
from .cost_model import NARROW
from .linear_requests import few_tokens
from .request import KernelRequest

TRITON_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i32": "i32"}
MOST_NARROW = 64
"""Tokens of a decoding bucket that narrow tiles are used for: wide ones would leave most units without work."""


class Given:
    """The operands of an op by name, and its layout."""

    def __init__(self, op: Op, experts: int = 1, joined: int = 1) -> None:
        self.op = op
        names = given_names(op.opcode, op.attributes, len(op.operands))
        self.named = dict(zip(names, op.operands, strict=True))
        self.layout = layout_of(op.attributes, experts, joined)

    def __getitem__(self, name: str) -> Value:
        return self.named[name]

    def has(self, name: str) -> bool:
        """Whether the operand is there."""
        return name in self.named

    @property
    def eps(self) -> float:
        """eps of the norm, 0 without one."""
        found = self.op.attributes.get("eps", 0.0)
        assert isinstance(found, float)
        return found

    @property
    def slots_of_token(self) -> int:
        """Rows of x for each token: the way back of experts has one for each that it chose."""
        return self.integer("top_k") if self.op.opcode == "expert_down_rows16" else 1

    def integer(self, name: str) -> int:
        """An integer attribute."""
        found = self.op.attributes[name]
        assert isinstance(found, int)
        return found


def type_of(value: Value) -> str:
    """Triton's name of a value's type."""
    return TRITON_TYPES[value.tensor.dtype.name]


def is_few(step: StepCalls, layout: RowLayout, count: int) -> bool:
    """Whether products of `count` rows are made element by element."""
    return step.shape.is_replayed and count <= few_tokens(step.machine, layout)


def tile_tokens(step: StepCalls, count: int) -> int:
    """The number of tokens that the tiles of a product with matrix units are made for."""
    return NARROW if step.shape.is_short and count <= MOST_NARROW else max(count, NARROW + 1)


@dataclass(frozen=True)
class Input:
    """x of a product with matrix units: rows, their type, and what else the product is told of them.

    That is the weight of a norm that is left to it, or the scales of rows in 8-bit floats.
    """

    x: Passed
    kind: str
    others: dict[str, Passed] = field(default_factory=dict)

    @property
    def norm(self) -> bool:
        """Whether the product makes the norm."""
        return "norm_ptr" in self.others

    def taken(self, request: KernelRequest, machine: Architecture) -> KernelRequest:
        """The product as it takes these rows."""
        return linear_requests.eight_bit(request, machine) if "x_scale_ptr" in self.others else request


def input_of(step: StepCalls, given: Given, tokens: int) -> Input:
    """x of a product with matrix units.

    Narrow tiles make the norm themselves, in bf16 and f32 alone: unscaled activations can exceed f16. Else the rows are
    normed once, for all products of them.
    """
    x = given["x"]
    if takes_eight_bits(step, given):
        rows, scales = eight_bit_rows(step, given)
        return Input(rows, step_requests.EIGHT_BITS[step.machine.e4m3], {"x_scale_ptr": scales})
    if not given.has("norm"):
        return Input(step.at(x), type_of(x))
    kind = between_type(given.layout.format)
    if tokens <= NARROW and kind is not F16 and (x, given["norm"], kind.name) not in step.normed:
        return Input(step.at(x), type_of(x), {"norm_ptr": step.at(given["norm"])})
    return Input(norm_rows(step, given, kind), TRITON_TYPES[kind.name])


def takes_eight_bits(step: StepCalls, given: Given) -> bool:
    """Whether activations are 8-bit floats: a step of fewer tokens than it takes for that has a smaller bucket."""
    above = given.op.attributes.get(E4M3_ABOVE)
    return isinstance(above, int) and not step.shape.is_replayed and step.shape.tokens > above


def eight_bit_rows(step: StepCalls, given: Given) -> tuple[Slot, Slot]:
    """The [normed] rows of x as 8-bit floats and their scales, made once."""
    x, norm = given["x"], given["norm"] if given.has("norm") else None
    key = (x, norm, "e4m3fn")
    if key not in step.normed:
        columns, each = given.layout.columns, given.slots_of_token
        count = step.shape.tokens * each
        rows, scales = step.scratch(count * columns, "8-bit rows"), step.scratch(4 * count, "scales of rows")
        kind = step_requests.EIGHT_BITS[step.machine.e4m3]
        request = step_requests.norm_rows(step.machine, columns, kind, given.eps, x=type_of(x), norm=norm is not None)
        others: dict[str, Passed] = {"norm_ptr": step.at(norm)} if norm is not None else {}
        step.call(
            request, (times(step.shape.token_count(), each),), given.op.location, x_ptr=step.at(x), y_ptr=rows,
            scale_ptr=scales, **others,
        )  # fmt: skip
        step.normed[key], step.normed[(x, norm, "scales")] = rows, scales
    return step.normed[key], step.normed[(x, norm, "scales")]


def norm_rows(step: StepCalls, given: Given, kind: DType) -> Slot:
    """The normed rows of x as `kind`, made once."""
    key = (given["x"], given["norm"], kind.name)
    if key not in step.normed:
        columns = given.layout.columns
        slot = step.scratch(step.shape.tokens * columns * kind.bits // 8, "normed rows")
        request = step_requests.norm_rows(step.machine, columns, TRITON_TYPES[kind.name], given.eps)
        step.call(
            request, (step.shape.token_count(),), given.op.location, x_ptr=step.at(key[0]), norm_ptr=step.at(key[1]),
            y_ptr=slot,
        )  # fmt: skip
        step.normed[key] = slot
    return step.normed[key]


def embed(step: StepCalls, op: Op) -> None:
    """Rows of the table."""
    given = Given(op)
    request = step_requests.embed_rows(step.machine, given.layout)
    blocks = tiles(given.layout.columns, constant(request, "BK"))
    step.call(
        request, (step.shape.token_count(), blocks), op.location, ids_ptr=step.at(given["ids"]),
        y_ptr=step.slot(op.result, "embedded rows"), **step.matrix(given["weight"], given.layout),
    )  # fmt: skip


def angles(step: StepCalls, op: Op) -> None:
    """cos and sin of the step's positions."""
    half = op.results[0].tensor.shape[1]
    assert isinstance(half, int)
    positions, frequencies = map(step.at, op.operands)
    step.call(
        step_requests.rope_angles(half), (step.shape.token_count(),), op.location, positions_ptr=positions,
        frequency_ptr=frequencies, cos_ptr=step.slot(op.results[0], "cos"), sin_ptr=step.slot(op.results[1], "sin"),
    )  # fmt: skip


def linear(step: StepCalls, op: Op, to: Passed | None = None) -> None:
    """A product, onto a residual, of all rows or of those of a list; the result goes to `to` where it is given."""
    given = Given(op)
    listed = given.has("rows")
    count, bound = (
        (step.shape.row_count(), step.shape.rows) if listed else (step.shape.token_count(), step.shape.tokens)
    )
    few = is_few(step, given.layout, bound)
    width = bound if few else tile_tokens(step, bound)
    rows = whole_input(step, given) if few else input_of(step, given, width)
    make = linear_requests.decode_linear if few else linear_requests.prefill_linear
    request = make(
        step.machine, given.layout, width, x=rows.kind, norm=rows.norm, residual=given.has("residual"), listed=listed,
        eps=given.eps,
    )  # fmt: skip
    request = rows.taken(request, step.machine)
    others: dict[str, Passed] = {
        **({"row_ptr": step.at(given["rows"])} if listed else {}),
        **({"residual_ptr": step.at(given["residual"])} if given.has("residual") else {}),
    }
    if to is not None:
        step.memory[op.result] = to
    y = to if to is not None else step.slot(op.result, "product")
    step.call(
        request, product_grid(request, given.layout.rows, count), op.location, x_ptr=rows.x, y_ptr=y,
        tokens=count, **rows.others, **others, **step.matrix(given["weight"], given.layout),
    )  # fmt: skip


def whole_input(step: StepCalls, given: Given) -> Input:
    """x of a product of few rows, which makes the norm itself."""
    others: dict[str, Passed] = {"norm_ptr": step.at(given["norm"])} if given.has("norm") else {}
    return Input(step.at(given["x"]), type_of(given["x"]), others)


def product_grid(request: KernelRequest, rows: int, count: Expression) -> tuple[Expression, ...]:
    """Blocks of a product: tiles of weight rows, times tiles of tokens with matrix units."""
    blocks = -(-rows // constant(request, "BN"))
    if "BM" in request.constants:
        return (times(tiles(count, constant(request, "BM")), blocks),)
    return (blocks,)


def gate_up(step: StepCalls, op: Op) -> None:
    """swiglu of gate and up."""
    given = Given(op, joined=2)
    count, tokens = step.shape.token_count(), step.shape.tokens
    few = is_few(step, given.layout, tokens)
    if few:
        rows = whole_input(step, given)
        request = linear_requests.decode_gate_up(step.machine, given.layout, tokens, given.eps)
    else:
        width = tile_tokens(step, tokens)
        rows = input_of(step, given, width)
        request = linear_requests.prefill_gate_up(
            step.machine, given.layout, width, x=rows.kind, norm=rows.norm, eps=given.eps
        )
        request = rows.taken(request, step.machine)
    step.call(
        request, product_grid(request, given.layout.rows // 2, count), op.location, x_ptr=rows.x,
        y_ptr=step.slot(op.result, "gated rows"), tokens=count, **rows.others,
        **step.matrix(given["weight"], given.layout),
    )  # fmt: skip


def best(step: StepCalls, head: Op, logits: Pointer, ids: Pointer) -> None:
    """The best token of each wanted row, without its logits leaving the GPU where the rows are few."""
    given = Given(head)
    rows = step.shape.rows
    if not is_few(step, given.layout, rows):
        linear(step, head, to=logits)
        request = step_requests.best_of_logits(given.layout.rows)
        step.call(request, (step.shape.row_count(),), head.location, logits_ptr=logits, id_ptr=ids)
        return
    request = linear_requests.decode_best(step.machine, given.layout, rows, given.eps)
    count = -(-given.layout.rows // constant(request, "BN"))
    found, index = (step.scratch(4 * rows * count, name) for name in ("best of tiles", "index of best"))
    step.call(
        request, (count,), head.location, x_ptr=step.at(given["x"]), row_ptr=step.at(given["rows"]),
        norm_ptr=step.at(given["norm"]), best_ptr=found, index_ptr=index, tokens=rows,
        **step.matrix(given["weight"], given.layout),
    )  # fmt: skip
    last = step_requests.best_of_tiles(step.machine, count)
    step.call(last, (rows,), head.location, best_ptr=found, index_ptr=index, id_ptr=ids)

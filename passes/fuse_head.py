"""Adds a second entry to the module, `@step_top`: the step whose head ranks the logits while it computes them.

Before: `graph @step(...)`: `%l = linear_grouped %q, %s, %t, @head`, `return %l, %cache`
After:  the same, and `graph @step_top(..., %inverse_temperature: tensor<R x f32>)`: the ops of `@step`, then
        `%l, %ids, %values, %sums = head_grouped %q, %s, %t, @head, %inverse_temperature {count = 64}`,
        `return %l, %ids, %values, %sums, %cache`

Greedy decoding needs one id of a row, sampling a few, and neither has to write a vocabulary of logits and read it
again. Layers are calls by now, so the second entry is a few ops. Must not fire when the logits are not the product of a
linear kernel alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.builder import make_op
from llamac.ir.dtypes import F32
from llamac.ir.graph import STEP_TOP, Graph, Module, Op, Value, Weight
from llamac.ir.levels import KERNEL
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

_HEADS = {"linear_dense": ("head_dense", 2), "linear_grouped": ("head_grouped", 4)}
"""Kernel of the product -> that of the ranking head, and the operands of the former without a residual."""


@dataclass(frozen=True)
class FuseHead(Pass):
    """@step -> @step and @step_top, whose head also gives the `count` best logits of each row."""

    name = "fuse-head"
    requires = (KERNEL,)
    count: int = 64

    def run(self, module: Module, context: PassContext) -> PassResult:
        if "step" not in module.graphs or STEP_TOP in module.graphs:
            return PassResult()
        reason = _refusal(module.step)
        if reason is not None:
            return PassResult({"head": 0}, (Refusal("head", reason),))
        module.add_graph(_with_ranking_head(module.step, self.count))
        return PassResult({"head": 1})


def _refusal(step: Graph) -> str | None:
    head = step.outputs[0].producer if step.outputs else None
    if head is None or len(head.operands) != _HEADS.get(head.opcode, ("", 0))[1]:
        return "the logits are not the product of a linear kernel"
    if step.outputs[0].users:
        return "the logits have another use"
    return None


def _with_ranking_head(step: Graph, count: int) -> Graph:
    logits = step.outputs[0]
    head = logits.producer
    assert head is not None
    rows, vocabulary = logits.tensor.shape
    assert isinstance(vocabulary, int)
    given = ("inverse_temperature", tensor(rows, F32))
    new = Graph(STEP_TOP, [*((a.name, a.type) for a in step.arguments), given])
    mapped: dict[Value, Value] = dict(zip(step.arguments, new.arguments, strict=False))
    for op in step.ops:
        operands = tuple(v if isinstance(v, Weight) else mapped[v] for v in op.operands)
        made = _ranking(head, operands, new, min(count, vocabulary)) if op is head else _copy(op, operands)
        new.ops.append(made)
        mapped.update(zip(op.results, made.results, strict=False))
    ranked = mapped[logits].producer
    assert ranked is not None
    new.outputs = [*ranked.results, *(mapped[v] for v in step.outputs[1:])]
    return new


def _copy(op: Op, operands: tuple[Value, ...]) -> Op:
    return make_op(op.opcode, operands, op.attributes, op.location)


def _ranking(head: Op, operands: tuple[Value, ...], new: Graph, count: int) -> Op:
    opcode, _ = _HEADS[head.opcode]
    inverse = new.argument("inverse_temperature")
    return make_op(opcode, (*operands, inverse), {**head.attributes, "count": count}, head.location)

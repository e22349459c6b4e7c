"""Deliberate bugs: small wrong versions of passes, the pipelines that hold them, and which check finds each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.builder import make_op
from llamac.ir.graph import Attribute, Graph, Module, Op, Value
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.outside import Edit
from llamac.transform.pipeline import Step

Mutation = Callable[[Module], None]

VERIFIER = "verifier"
COUNT = "expected count"
CONTRACT = "contract of a later pass"
LOGITS = "logits, exact"
WEIGHTS = "weights, rounding"
ARENA = "logits, arena"
DTYPE = "logits, dtype mode"
REPORT = "report of change"

_BY_CODE = {"LLC0504": VERIFIER, "LLC0402": VERIFIER, "LLC0403": VERIFIER, "LLC0501": COUNT, "LLC0505": CONTRACT}
_BY_WORDS = {
    "from memory without reuse": ARENA,
    "as its format explains": WEIGHTS,
    "logits differ by": LOGITS,
    "does not run": LOGITS,
    "as coarsely as": DTYPE,
    "reports that nothing changed": REPORT,
}


def caught_by(error: LlamacError) -> str:
    """The check that raised `error`."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    assert error.code == "LLC0507", error.message()
    return next(check for words, check in _BY_WORDS.items() if words in error.reason)


def after(name: str, mutate: Mutation) -> Edit:
    """A pipeline whose pass `name` also does `mutate`, each time it runs."""

    def edit(steps: list[Step]) -> list[Step]:
        assert any(step.run.name == name for step in steps)
        return [Step(_mutant(s.run, mutate), s.expected) if s.run.name == name else s for s in steps]

    return edit


def _mutant(inner: Pass, mutate: Mutation) -> Pass:
    @dataclass(frozen=True)
    class Mutant(Pass):
        name = inner.name
        requires = inner.requires
        produces = inner.produces

        def run(self, module: Module, context: PassContext) -> PassResult:
            result = inner.run(module, context)
            mutate(module)
            return result

    return Mutant()


# Small changes to a module.


def ops(module: Module, opcode: str) -> Iterator[tuple[Graph, Op]]:
    """Every op of this kind."""
    yield from [(graph, op) for graph, op in module.ops() if op.opcode == opcode]


def insert_before(graph: Graph, at: Op, opcode: str, *operands: Value, **attributes: Attribute) -> Op:
    """A new op in front of `at`."""
    made = make_op(opcode, operands, attributes, at.location)
    graph.ops.insert(graph.ops.index(at), made)
    return made


def set_attribute(opcode: str, name: str, value: Attribute | Callable[[Op], Attribute]) -> Mutation:
    """Every op of this kind gets another attribute."""

    def mutate(module: Module) -> None:
        for _, op in ops(module, opcode):
            op.attributes[name] = value(op) if callable(value) else value

    return mutate


def use_weight(opcode: str, index: int, rename: Callable[[str], str]) -> Mutation:
    """Every op of this kind uses the weight of another name as operand `index`."""

    def mutate(module: Module) -> None:
        for _, op in ops(module, opcode):
            wanted = rename(op.operands[index].name)
            if wanted in module.weights:
                op.set_operand(index, module.weights[wanted])

    return mutate


def shift_integers(opcode: str, index: int, by: int) -> Mutation:
    """Every op of this kind gets its i32 operand `index` moved by `by`."""

    def mutate(module: Module) -> None:
        for graph, op in ops(module, opcode):
            operand = op.operands[index]
            amount = insert_before(graph, op, "constant", value=float(by), dtype=operand.tensor.dtype)
            op.set_operand(index, insert_before(graph, op, "add", operand, amount.result).result)

    return mutate


def wrap_operand(opcode: str, index: int, unary: str, **attributes: Attribute) -> Mutation:
    """Every op of this kind gets `unary` of its operand `index`."""

    def mutate(module: Module) -> None:
        for graph, op in ops(module, opcode):
            made = insert_before(graph, op, unary, op.operands[index], **attributes)
            op.set_operand(index, made.result)

    return mutate


def swap_operands(opcode: str, first: int, second: int) -> Mutation:
    """Two operands of every op of this kind change places."""

    def mutate(module: Module) -> None:
        for _, op in ops(module, opcode):
            a, b = op.operands[first], op.operands[second]
            op.set_operand(first, b)
            op.set_operand(second, a)

    return mutate

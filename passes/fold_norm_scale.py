"""Folds the weight of an RMS norm into the columns of the products that read it.

Before: `%n = rms_norm %x, @g`, `linear %n, @w`
After:  `%n = rms_norm %x, @ones.4096`, `@w.scaled = scale_columns @w, @g`, `linear %n, @w.scaled`

Only f32 weights take any factor, and round the product as any f32 product is; bf16 weights take powers of two, which
round nothing anew. Must not fire on integers or fp8, which would be quantized again, nor when something else than a
product reads the norm (experts, an output), nor when a weight has another use (a tied embedding). The norm keeps a
weight, of ones, for its kernels: one for each width.

In no pipeline: the kernels multiply the weight while they quantize the activations, where it is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import BF16, F32, widen
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import DataSource, Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.matrices import stored_as


@dataclass(frozen=True)
class FoldNormScale(Pass):
    """rms_norm with a weight, linear -> rms_norm with ones, linear over scaled columns."""

    name = "fold-norm-scale"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded, refusals = 0, []
        evaluator = WeightEvaluator(context.read_rows)
        for graph in module.graphs.values():
            for norm in [op for op in graph.ops if op.opcode == "rms_norm" and not _is_ones(op.operands[1])]:
                reason = _reader_reason(graph, norm) or _weight_reason(norm, evaluator)
                if reason is not None:
                    refusals.append(Refusal(norm.location, reason))
                    continue
                _fold(module, norm)
                folded += 1
        return PassResult({"norm": folded}, tuple(refusals))


def _is_ones(weight: Value) -> bool:
    if not isinstance(weight, Weight) or not isinstance(weight.source, DataSource):
        return False
    return bool((widen(np.frombuffer(weight.source.data, weight.tensor.dtype.storage)) == 1).all())


def _reader_reason(graph: Graph, norm: Op) -> str | None:
    """Why the readers of `norm` cannot do without its weight; None when they are products alone."""
    if norm.result in graph.outputs:
        return "the norm is an output of the graph"
    others = [op for op in norm.result.users if op.opcode != "linear"]
    if others:
        return f"{others[0].opcode} reads the norm too: it needs the weight"
    return None if norm.result.users else "nothing reads the norm"


def _weight_reason(norm: Op, evaluator: WeightEvaluator) -> str | None:
    """Why a matrix that multiplies `norm` cannot take its factors exactly; None when all can."""
    factors = norm.operands[1]
    if not isinstance(factors, Weight):
        return f"the factors %{factors.name} are computed, not a weight"
    matrices = dict.fromkeys(linear.operands[1] for linear in norm.result.users)
    reasons = (_unfit(matrix, norm) or _rounded(matrix, factors, evaluator) for matrix in matrices)
    return next((reason for reason in reasons if reason is not None), None)


def _unfit(matrix: Value, norm: Op) -> str | None:
    """Why `matrix` cannot be replaced by floats of its own dtype for the products of `norm`."""
    if not isinstance(matrix, Weight):
        return f"it is multiplied by %{matrix.name}, which is computed"
    others = [op for op in matrix.users if op not in norm.result.users]
    if others:
        return f"@{matrix.name} has another use, in {others[0].opcode}"
    if _is_quantized(matrix):
        return f"@{matrix.name} is stored as {stored_as(matrix)}: with scaled columns it would be quantized again"
    if matrix.tensor.dtype not in (F32, BF16):
        return f"@{matrix.name} is {matrix.tensor.dtype}, whose small values lose bits"
    return None


def _is_quantized(weight: Value) -> bool:
    """Whether quants are stored for `weight`; a cast of them is stored as the floats that it gives."""
    producer = weight.producer
    if producer is None or producer.opcode == "cast":
        return False
    return producer.opcode == "dequantize" or any(_is_quantized(v) for v in producer.operands)


def _rounded(matrix: Value, factors: Weight, evaluator: WeightEvaluator) -> str | None:
    """Why the narrow values of `matrix` would be rounded anew."""
    if matrix.tensor.dtype is F32:
        return None
    try:
        mantissas, _ = np.frexp(widen(evaluator.whole(factors)))
    except LlamacError as error:
        if error.code != "LLC0405":
            raise
        return f"@{matrix.name} is {matrix.tensor.dtype} and the values of @{factors.name} are not at hand"
    if (np.abs(mantissas) == 0.5).all():
        return None
    return f"@{matrix.name} is {matrix.tensor.dtype} and not all factors of @{factors.name} are powers of two"


def _fold(module: Module, norm: Op) -> None:
    factors = norm.operands[1]
    for linear in norm.result.users:
        matrix = linear.operands[1]
        linear.set_operand(1, define_weight(module, f"{matrix.name}.scaled", "scale_columns", matrix, factors))
    norm.set_operand(1, _ones(module, norm))


def _ones(module: Module, norm: Op) -> Weight:
    """The weight of ones as wide as `norm`; there is one for each width."""
    (width,) = norm.operands[1].tensor.shape
    assert isinstance(width, int)
    type, source, name = tensor(width, F32), DataSource(np.ones(width, "<f4").tobytes()), f"ones.{width}"
    while name in module.weights:
        existing = module.weights[name]
        if (existing.type, existing.source) == (type, source):
            return existing
        name += ".norm"
    return module.add_weight(Weight(name, type, source))

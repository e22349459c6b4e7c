"""Quantizes activations where they arise: in the norm, or in the gated activation.

Before: `%n = rms_norm %x, @w`, `%q, %s, %t = quantize_rows %n`
After:  `%q, %s, %t = rms_norm_quantized %x, @w`

One kernel and one barrier less, and the f32 values are never written. Must not fire when the values have another use,
such as a second linear whose weights need another block size.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import F32
from llamac.ir.graph import Graph, Module, Op
from llamac.ir.levels import KERNEL, LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

_FUSED = {"rms_norm": "rms_norm_quantized", "swiglu": "swiglu_quantized"}


@dataclass(frozen=True)
class FuseQuantizeRows(Pass):
    """rms_norm or swiglu, then quantize_rows -> one kernel."""

    name = "fuse-quantize-rows"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts = dict.fromkeys(_FUSED, 0)
        refusals: list[Refusal] = []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "quantize_rows"]:
                source = op.operands[0].producer
                if source is None or source.opcode not in _FUSED:
                    continue
                reason = _why_not(graph, source)
                if reason is not None:
                    refusals.append(Refusal(op.location, reason))
                    continue
                _fuse(rewriter, op, source)
                counts[source.opcode] += 1
            rewriter.finish()
        return PassResult(counts, tuple(refusals))


def _why_not(graph: Graph, source: Op) -> str | None:
    if len(source.result.users) != 1 or source.result in graph.outputs:
        return f"the result of {source.opcode} has another use"
    if source.opcode == "swiglu" and len(source.operands) != 1:
        return "gate and up are not joined"
    if source.opcode == "rms_norm" and source.operands[1].tensor.dtype is not F32:
        return "the norm weight is not f32"
    return None


def _fuse(rewriter: Rewriter, op: Op, source: Op) -> None:
    rewriter.at(op)
    made = rewriter.multi(_FUSED[source.opcode], *source.operands, **source.attributes, **op.attributes)
    for old, new in zip(op.results, made.results, strict=True):
        rewriter.replace(old, new)

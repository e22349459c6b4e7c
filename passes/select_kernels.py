"""Chooses the packed format, and with it the kernel, of every weight matrix.

Before: `linear %x, @w`, `expert_linear %x, @w, %offsets`, `embedding @w, %ids`
After:  `linear %x, @w {format = "u4g32s16m16"}`, `embedding @w, %ids {format = ...}`

The scheme of the weight decides: integers with scales keep exactly those, in integer dot products with int8
activations; bf16 and fp8 weights are multiplied with activations rounded to bf16, two products at a time; f32 and f16
weights with f32 activations. A table that is also the head is packed once, for both uses. Must not fire on a weight
that no kernel can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.definition import OpError
from llamac.ir.dtypes import E4M3FN
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.graph import Module, Value
from llamac.ir.layouts import IN_PAIRS, format_of, grouped_name
from llamac.ir.levels import LOWERING
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult
from llamac.transform.matrices import stored_as

_WEIGHT = {"linear": 1, "expert_linear": 1, "embedding": 0}
"""Opcode -> which operand is the weight."""


@dataclass(frozen=True)
class SelectKernels(Pass):
    """Every linear and embedding -> with a weight format; `pairs`: in pairs, where a format has that form."""

    name = "select-kernels"
    requires = (LOWERING,)
    pairs: bool = True

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts: dict[str, int] = {}
        widened: dict[str, list[str]] = {}
        for _, op in module.ops():
            if op.opcode in _WEIGHT and "format" not in op.attributes:
                weight = op.operands[_WEIGHT[op.opcode]]
                chosen = choose_format(weight, self.pairs)
                op.attributes["format"] = chosen
                for block in sorted(block_formats(weight)):
                    widened.setdefault(block, []).append(weight.name)
                counts[chosen] = counts.get(chosen, 0) + 1
        context.ledger += [_held(block, names) for block, names in widened.items() if not BLOCKS[block].as_stored]
        return PassResult(counts)


def choose_format(weight: Value, pairs: bool = True) -> str:
    """The packed format that holds exactly the values of `weight`."""
    producer = weight.producer
    if producer is None or producer.opcode != "dequantize":
        # e4m3fn without scales is no format of its own; its values need not fit any other.
        name = weight.tensor.dtype.name if weight.tensor.dtype is not E4M3FN else "e4m3fn without row scales"
    else:
        quants, scale, *minimum = (v.tensor for v in producer.operands)
        if quants.dtype is E4M3FN:
            name = "e4m3fn" if scale.shape[1] == 1 else "e4m3fn with several scales a row"
        else:
            group = producer.attributes["group"]
            assert isinstance(group, int)
            name = grouped_name(quants.dtype, group, scale.dtype, minimum[0].dtype if minimum else None)
    try:
        return format_of(IN_PAIRS.get(name, name) if pairs else name).name
    except OpError as error:
        reason = f"no CPU kernel for weights stored as {stored_as(weight)}: {error}"
        raise LlamacError("LLC0506", weight.name, reason, "choose another --quantize") from None


def block_formats(value: Value) -> set[str]:
    """The GGUF block formats whose integers `value` is made of, unless it was quantized again."""
    producer = value.producer
    if producer is None or producer.opcode in ("group_quants", "row_quants", "cast"):
        return set()
    if producer.opcode == "block_quants":
        return {str(producer.attributes["format"])}
    parts = producer.operands[:1] if producer.opcode == "dequantize" else producer.operands
    return {found for part in parts for found in block_formats(part)}


def _held(block: str, names: list[str]) -> LedgerEntry:
    fmt = BLOCKS[block]
    minimum = f" and {fmt.minimum} minima" if fmt.minimum else ""
    what = f"{block} blocks are held as {fmt.quants} in groups of {fmt.group} with {fmt.scale} scales{minimum}"
    where = names[0] if len(set(names)) == 1 else f"{names[0]} and {len(set(names)) - 1} more"
    return LedgerEntry("widened", where, what, "every value is exactly that of its block; the weights take more room")

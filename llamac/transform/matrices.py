"""The weight matrices of a model-level module, by role, and replacing them in every place that uses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.graph import Module, Op, Value, Weight

from .base import LedgerEntry, PassContext
from .rewriter import Rewriter

USERS = ("linear", "expert_linear", "embedding")
ROLES = ("all", "blocks", "tables")
"""`tables` are the embedding and the head, `blocks` everything else."""


def matrices(module: Module, role: str) -> Iterator[Weight]:
    """Weights that a product or an embedding uses, in definition order, restricted to `role`."""
    if role not in ROLES:
        raise LlamacError("LLC0502", "weights", f"must be {', '.join(ROLES)}, not '{role}'{did_you_mean(role, ROLES)}")
    for weight in list(module.weights.values()):
        users = [op for op in weight.users if op.opcode in USERS and op.results[0] is not weight]
        if users and role in ("all", "blocks" if weight.name.startswith("layers.") else "tables"):
            yield weight


def is_router(weight: Weight) -> bool:
    """Whether a product with this weight chooses experts."""
    products = [op.results[0] for op in weight.users if op.opcode == "linear"]
    return any(user.opcode in ("route", "moe") for product in products for user in product.users)


def without_routers(weights: Iterable[Weight], context: PassContext) -> list[Weight]:
    """`weights` but those that choose experts, which the ledger names: rounding would send tokens to other experts."""
    kept = []
    for weight in weights:
        if is_router(weight):
            reason = "it chooses experts: rounded, it would choose others; the releases of Meta keep it too"
            context.ledger.append(LedgerEntry("kept", weight.name, f"stays {stored_as(weight)}", reason))
        else:
            kept.append(weight)
    return kept


def replace_weights(module: Module, replacements: Mapping[Weight, Weight]) -> None:
    """Every linear and embedding uses the replacement of its weight, in one walk over the ops.

    An embedding's result is cast to the dtype it had.
    """
    if not replacements:
        return
    for graph in module.graphs.values():
        rewriter = Rewriter(module, graph)
        for op in list(graph.ops):
            if op.opcode in USERS and any(v in replacements for v in op.operands):
                _use(rewriter, op, replacements)
        rewriter.finish()


def _use(rewriter: Rewriter, op: Op, replacements: Mapping[Weight, Weight]) -> None:
    rewriter.at(op)
    operands = [replacements.get(v, v) if isinstance(v, Weight) else v for v in op.operands]
    result = rewriter.op(op.opcode, *operands, **op.attributes)
    if result.type != op.result.type:
        # What casts the lookup anyway casts the new one: the old table's dtype would only round it.
        for user in [u for u in op.result.users if u.opcode == "cast"]:
            dtype = user.result.tensor.dtype
            same = dtype is result.tensor.dtype
            rewriter.replace(user.result, result if same else rewriter.op("cast", result, dtype=dtype))
        result = rewriter.op("cast", result, dtype=op.result.tensor.dtype)
    rewriter.replace(op.result, result)


def stored_as(weight: Value) -> str:
    """A short name for how a weight is held: `bf16`, or `u4 g32` for a dequantized one."""
    producer = weight.producer
    if producer is not None and producer.opcode == "dequantize":
        return f"{producer.operands[0].tensor.dtype} g{producer.attributes['group']}"
    return str(weight.tensor.dtype)

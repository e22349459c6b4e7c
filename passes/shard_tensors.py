"""Divides a model among ranks: each holds whole heads, and a part of every MLP, and of the head.

Before: `%q = linear %x, @q`, ..., `%y = linear %a, @o`, `add %r, %y`
After:  `%q = linear %x, @q.part`, ..., `%p = linear %a, @o.part`, `%y = all_reduce %p {ranks}`, `add %r, %y`

* q, k and v by output rows, in whole heads, a query head where its KV head is. With fewer KV heads than ranks, ranks
  share one. Each rank has its own part of the cache.
* gate and up by output rows, experts too: a part of every expert, so that ranks have the same work whatever is chosen.
* o and down by input columns: what comes out is a sum over ranks, which `all_reduce` makes.
* the head by output rows, where the ranks divide the vocabulary; `all_gather` joins the logits.
* the embedding, norms and routers are held by all: a lookup reads one row, and would cost a sum over ranks.

Quantized weights are taken apart with their scales, so that no number changes: a group must not lie on two ranks
(LLC0616). Must not fire twice, and needs float activations; runs after the weights have been quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dims import Dim
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.ir.registry import infer_types
from llamac.ir.types import TensorType
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter
from llamac.transform.weight_rows import over_rows

from .fuse_qkv import projection

PRODUCTS = ("linear", "expert_linear")
_KEPT = frozenset({"reshape", "transpose", "rope", "unit_rms_norm", "temper", "concat", "attention", "swiglu"})
"""Ops that give a part of the heads or columns for a part of them."""


@dataclass(frozen=True)
class ShardTensors(Pass):
    """A model -> what rank number `rank` of `ranks` holds and computes of it."""

    name = "shard-tensors"
    requires = (MODEL,)
    ranks: int = 2
    rank: int = 0

    def run(self, module: Module, context: PassContext) -> PassResult:
        if not 0 <= self.rank < self.ranks:
            raise LlamacError("LLC0502", self.name, f"there is no rank {self.rank} of {self.ranks}", "count from 0")
        if self.ranks == 1 or any(op.opcode == "all_reduce" for _, op in module.ops()):
            return PassResult()
        graph = module.step
        shards = _Shards(module, graph, self.ranks, self.rank)
        counts = {
            "attention": sum([shards.attention(op) for op in graph.ops if op.opcode == "attention"]),
            "mlp": sum([shards.gated(op) for op in graph.ops if op.opcode == "swiglu"]),
            "head": shards.head(),
        }
        counts["all_reduce"] = shards.spread()
        return PassResult(counts)


@dataclass
class _Shards:
    """cut: values of which this rank has a part. partial: values that are a sum over ranks once they are added."""

    module: Module
    graph: Graph
    ranks: int
    rank: int
    rows: dict[Op, list[tuple[int, int]]] = field(default_factory=dict)
    cut: set[Value] = field(default_factory=set)
    partial: set[Value] = field(default_factory=set)

    def refuse(self, where: str, reason: str, hint: str = "") -> LlamacError:
        """LLC0616 with what would do."""
        return LlamacError("LLC0616", where, f"for {self.ranks} ranks {reason}", hint or "use fewer of them")

    def attention(self, op: Op) -> int:
        """Note which rows of q, k and v this rank has."""
        heads, width = (_fixed(op.operands[0].tensor.shape[axis]) for axis in (0, 2))
        kv_heads = _fixed(op.operands[1].tensor.shape[0])
        if heads % self.ranks or (kv_heads % self.ranks and self.ranks % kv_heads):
            reason = f"{heads} query heads and {kv_heads} key heads cannot be divided"
            raise self.refuse(op.location, reason)
        own = max(kv_heads // self.ranks, 1)
        first = self.rank * kv_heads // self.ranks
        places = [(self.rank * heads // self.ranks, heads // self.ranks), (first, own), (first, own)]
        for value, (start, count) in zip(op.operands[:3], places, strict=True):
            product = projection(value)
            if product is None:
                raise self.refuse(op.location, "q, k and v must be products with weights")
            self.rows[product] = [(start * width, (start + count) * width)]
        return 1

    def gated(self, op: Op) -> int:
        """Note which rows of gate and up this rank has, of each expert where there are several."""
        for value in op.operands:
            product = value.producer
            if product is None or product.opcode not in PRODUCTS or len(op.operands) != 2:
                raise self.refuse(op.location, "gate and up must be products with weights of their own")
            width, rows = _fixed(value.tensor.shape[1]), _fixed(product.operands[1].tensor.shape[0])
            if width % self.ranks:
                raise self.refuse(op.location, f"{width} columns of gate and up cannot be divided")
            part = width // self.ranks
            begun = [start + self.rank * part for start in range(0, rows, width)]
            self.rows[product] = [(start, start + part) for start in begun]
        return 1

    def head(self) -> int:
        """Note which rows of the head this rank has; all of them where the vocabulary cannot be divided."""
        logits = self.graph.outputs[0]
        product = logits.producer
        if product is None or product.opcode != "linear" or _fixed(logits.tensor.shape[1]) % self.ranks:
            return 0
        part = _fixed(logits.tensor.shape[1]) // self.ranks
        self.rows[product] = [(self.rank * part, (self.rank + 1) * part)]
        return 1

    def spread(self) -> int:
        """Give every op its part, in order, and bring the ranks together where all is needed; how many sums that is."""
        rewriter, sums, logits = Rewriter(self.module, self.graph), 0, self.graph.outputs[0]
        for op in list(self.graph.ops):
            rewriter.at(op)
            for value in dict.fromkeys(v for v in op.operands if v in self.partial):
                if not self._goes_on(op):
                    users = list(value.users)
                    _replace(users, value, rewriter.op("all_reduce", value, ranks=self.ranks))
                    sums += 1
            self._divide(op)
            self._retype(op)
        if logits in self.cut:
            rewriter.at(self.graph.ops[-1], logits.producer.location if logits.producer else "head")
            gathered = rewriter.op("all_gather", logits, ranks=self.ranks)
            last = gathered.producer
            self.graph.outputs = [gathered if v is logits else v for v in self.graph.outputs]
            rewriter.finish()
            assert last is not None  # behind the head, wherever that stands
            self.graph.ops.remove(last)
            self.graph.ops.append(last)
        rewriter.finish()
        if self.partial & set(self.graph.outputs) or any(v in self.cut for v in self.graph.outputs[:1]):
            raise self.refuse("step", "a result would be a part of itself")
        return sums

    def _goes_on(self, op: Op) -> bool:
        """Whether what an op makes of sums that are not added yet is one as well."""
        if op.opcode == "scatter_routed":
            return op.operands[0] in self.partial and op.operands[2] in self.partial
        return op.opcode == "add" and all(v in self.partial for v in op.operands)

    def _divide(self, op: Op) -> None:
        divided = [v for v in op.operands if v in self.cut]
        if op in self.rows:
            if divided:
                raise self.refuse(op.location, "a product of a part would be divided again")
            op.set_operand(1, self._part_of_rows(op, self.rows[op]))
            self.cut.add(op.result)
        elif op.opcode in PRODUCTS and op.operands[0] in self.cut:
            op.set_operand(1, self._part_of_columns(op))
            self.partial.add(op.result)
        elif divided:
            if op.opcode not in _KEPT:
                raise self.refuse(op.location, f"{op.opcode} needs all of what it works on")
            self._cut_others(op)
            self.cut.update(op.results)
        elif self._goes_on(op):
            self.partial.update(op.results)

    def _part_of_rows(self, op: Op, ranges: list[tuple[int, int]]) -> Weight:
        weight = op.operands[1]
        names = [f"{weight.name}.part{f'.{i}' if len(ranges) > 1 else ''}" for i in range(len(ranges))]
        parts: list[Value] = [
            over_rows(self.module, name, "part", [weight], axis=0, start=start, stop=stop)
            for name, (start, stop) in zip(names, ranges, strict=True)
        ]
        if len(parts) == 1:
            assert isinstance(parts[0], Weight)
            return parts[0]
        return over_rows(self.module, f"{weight.name}.part", "concat", parts, axis=0)

    def _part_of_columns(self, op: Op) -> Weight:
        weight, x = op.operands[1], op.operands[0]
        columns, part = _fixed(weight.tensor.shape[1]), _fixed(x.tensor.shape[1])
        start = self.rank * part
        producer, name = weight.producer, f"{weight.name}.part"
        if producer is None or producer.opcode != "dequantize":
            return define_weight(self.module, name, "part", weight, axis=1, start=start, stop=start + part)
        group = _fixed(producer.attributes["group"])
        parts: list[Value] = []
        for value, role in zip(producer.operands, ("quants", "scales", "mins"), strict=False):
            each = 1 if role == "quants" else group
            if _fixed(value.tensor.shape[1]) == 1 and role != "quants" and group >= columns:
                parts.append(value)  # a scale a row, whatever of it there is
                continue
            if part % each:
                reason = f"a group of {group} columns would lie on two of them ({part} columns each)"
                raise self.refuse(weight.name, reason, "use fewer ranks, or smaller groups (--quantize int4:g32)")
            low, high = start // each, (start + part) // each
            parts.append(define_weight(self.module, f"{name}.{role}", "part", value, axis=1, start=low, stop=high))
        return define_weight(self.module, name, "dequantize", *parts, group=min(group, part))

    def _cut_others(self, op: Op) -> None:
        """What is joined with a part is a part too: the keys and values of the past."""
        if op.opcode != "concat":
            return
        (found,) = [v for v in op.operands if v in self.cut]
        for other in op.operands:
            if other not in self.cut:
                if other not in self.graph.arguments:
                    raise self.refuse(op.location, "a part would be joined with the whole of something else")
                shape = (found.tensor.shape[0], *other.tensor.shape[1:])
                other.type = other.tensor.with_shape(*shape)
                self.cut.add(other)

    def _retype(self, op: Op) -> None:
        """The types of an op's results on what its operands are now."""
        if op.opcode == "reshape" and op.operands[0] in self.cut:
            before, now = op.result.tensor, op.operands[0].tensor
            op.attributes["shape"] = _reshaped(before, now)
        types = infer_types(op.opcode, [v.type for v in op.operands], op.attributes)
        for result, found in zip(op.results, types, strict=True):
            result.type = found


def _replace(users: list[Op], old: Value, new: Value) -> None:
    for user in users:
        for index, operand in enumerate(user.operands):
            if operand is old:
                user.set_operand(index, new)


def _reshaped(result: TensorType, operand: TensorType) -> tuple[int | Dim, ...]:
    """The shape of a reshape of fewer heads: the first fixed dimension is that of the heads."""
    shape = list(result.shape)
    place = next(i for i, d in enumerate(shape) if isinstance(d, int))
    others = 1
    for i, d in enumerate(shape):
        others *= d if isinstance(d, int) and i != place else 1
    held = 1
    for d in operand.shape:
        held *= d if isinstance(d, int) else 1
    shape[place] = held // others
    return tuple(shape)


def _fixed(size: object) -> int:
    if not isinstance(size, int):
        raise LlamacError("LLC0505", "shard-tensors", f"needs a fixed size, got {size}")
    return size

"""Stores keys and values in 8 bits: as integers with a scale for each head and position, or as e4m3fn.

Before: `%c, %q = rope_append %cache, ... : kv_cache<..., page = 256, f16>, ...`
After:  `%c, %q = rope_append %cache, ... : kv_cache<..., page = 256, i8, scale = f16>, ...`

The type says it all: what appends to such a cache quantizes each key and each value of a head by its largest element,
what attends reads integers times scales. With `dtype=e4m3fn` values are rounded as they are, and cut at 448; where the
checkpoint brought scales of a layer's keys and values (`PassContext.cache_scales`), they are divided by those before,
and multiplied when they are read: `attend %q, %c, ..., @layers.0.attn.kv_scales`. Must not fire on a cache of vision
tokens, which the image encoder writes as it was told to, nor twice on one cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight, make_op
from llamac.ir.dtypes import DTYPES, F16
from llamac.ir.graph import Graph, Module, Op, Value
from llamac.ir.levels import KERNEL, LOWERING
from llamac.ir.types import CacheType
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult, Refusal

QUANTIZED_KV = {"int8": "i8", "fp8": "e4m3fn"}
"""What `--kv` calls a cache that this pass has been over -> what it then holds."""


def float_kv(kv_dtype: str) -> str:
    """The dtype of the caches that `--kv kv_dtype` leaves as floats."""
    return "f16" if kv_dtype in QUANTIZED_KV else kv_dtype


@dataclass(frozen=True)
class QuantizeKv(Pass):
    """Caches of floats -> caches of `dtype`: i8 with f16 scales, or e4m3fn."""

    name = "quantize-kv"
    requires = (LOWERING, KERNEL)
    dtype: str = "i8"

    def run(self, module: Module, context: PassContext) -> PassResult:
        if self.dtype not in QUANTIZED_KV.values():
            raise LlamacError("LLC0502", "dtype", f"a quantized cache can be i8 or e4m3fn, not '{self.dtype}'")
        caches, refusals = 0, []
        for graph in module.graphs.values():
            for value in graph.values():
                found = value.type
                if not isinstance(found, CacheType) or found.dtype.bits == 8:
                    continue
                if not found.cross:
                    self._check(value, found)
                    value.type = replace(found, dtype=DTYPES[self.dtype], scale=F16 if self.dtype == "i8" else None)
                    caches += value.producer is None and graph is module.main
                elif value.producer is None and graph is module.main:
                    refusals.append(Refusal(value.reference, _WRITTEN))
                    context.ledger.append(_entry(value, found))
        if caches and self.dtype == "e4m3fn":
            for layer, scales in context.cache_scales.items():
                _scale(module, layer, *scales)
        return PassResult({"cache": caches}, tuple(refusals))

    def _check(self, cache: Value, type: CacheType) -> None:
        if self.dtype == "i8" and type.head_dim % 2:
            reason = f"head_dim {type.head_dim} is odd, and int8 keys are multiplied two elements at a time"
            raise LlamacError("LLC0505", cache.reference, reason, "choose another --kv")


def _scale(module: Module, layer: int, key: float, value: float) -> None:
    """Have what writes and reads the keys and values of a layer divide by its scales, and multiply with them."""
    place, scaled = f"layers.{layer}.", 0
    for graph in module.graphs.values():
        for op in [op for op in graph.ops if f"{op.location}.".startswith(place)]:
            cache = _own_cache(op)
            if cache is None:
                continue
            if op.opcode not in _OVER_CACHE:
                reason = f"{op.opcode} cannot divide by the scales of a cache, nor multiply with them"
                raise LlamacError("LLC0505", op.location, reason, "quantize-kv goes right behind lower-kv-cache")
            scaled += 1
            name = f"{place}attn.kv_scales"
            scales = define_weight(module, name, "cache_scales", key=key, value=value, heads=cache.kv_heads)
            _replace(graph, op, make_op(op.opcode, (*op.operands, scales), op.attributes, op.location))
    if not scaled:
        raise LlamacError("LLC0505", place.rstrip("."), "has scales of keys and values, and no cache of its own")


def _own_cache(op: Op) -> CacheType | None:
    """The cache of keys and values of the text that an op reads or writes; None for other ops."""
    found = (v.type for v in op.operands if isinstance(v.type, CacheType) and not v.type.cross)
    return next(found, None)


def _replace(graph: Graph, old: Op, new: Op) -> None:
    graph.ops.insert(graph.ops.index(old), new)
    for before, after in zip(old.results, new.results, strict=True):
        graph.replace(before, after)
    old.drop_operands()
    graph.ops.remove(old)


_OVER_CACHE = ("rope_append", "append", "attend")

_WRITTEN = "holds vision tokens, which the image encoder writes"


def _entry(cache: Value, type: CacheType) -> LedgerEntry:
    return LedgerEntry("unquantized", cache.reference, f"stays {type.dtype}", _WRITTEN)

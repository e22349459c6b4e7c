"""Stores keys and values as 8-bit integers with a scale for each head and position.

Before: `%c, %q = rope_append %cache, ... : kv_cache<..., page = 256, f16>, ...`
After:  `%c, %q = rope_append %cache, ... : kv_cache<..., page = 256, i8, scale = f16>, ...`

The type says it all: what appends to such a cache quantizes each key and each value of a head by its largest element,
what attends reads integers times scales. Must not fire on a cache of vision tokens, which the image encoder writes as
it was told to, nor twice on one cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES, F16
from llamac.ir.graph import Module, Value
from llamac.ir.levels import KERNEL, LOWERING
from llamac.ir.types import CacheType
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult, Refusal

QUANTIZED_KV = "int8"
"""What `--kv` calls a cache that this pass has been over."""


def float_kv(kv_dtype: str) -> str:
    """The dtype of the caches that `--kv kv_dtype` leaves as floats."""
    return "f16" if kv_dtype == QUANTIZED_KV else kv_dtype


@dataclass(frozen=True)
class QuantizeKv(Pass):
    """Caches of floats -> caches of `dtype` with f16 scales."""

    name = "quantize-kv"
    requires = (LOWERING, KERNEL)
    dtype: str = "i8"

    def run(self, module: Module, context: PassContext) -> PassResult:
        if self.dtype != "i8":
            raise LlamacError("LLC0502", "dtype", f"a quantized cache can be i8, not '{self.dtype}'")
        caches, refusals = 0, []
        for graph in module.graphs.values():
            for value in graph.values():
                found = value.type
                if not isinstance(found, CacheType) or found.scale is not None:
                    continue
                if not found.cross:
                    value.type = replace(found, dtype=DTYPES[self.dtype], scale=F16)
                    caches += value.producer is None and graph is module.main
                elif value.producer is None and graph is module.main:
                    refusals.append(Refusal(value.reference, _WRITTEN))
                    context.ledger.append(_entry(value, found))
        return PassResult({"cache": caches}, tuple(refusals))


_WRITTEN = "holds vision tokens, which the image encoder writes"


def _entry(cache: Value, type: CacheType) -> LedgerEntry:
    return LedgerEntry("unquantized", cache.reference, f"stays {type.dtype}", _WRITTEN)

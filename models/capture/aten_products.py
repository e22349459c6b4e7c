"""ATen's products, lookups, norms and attention as captured ops, fused ones taken apart into their textbook form."""

from __future__ import annotations

import math

from llamac.ir.dtypes import F32, I1, I32
from llamac.ir.graph import Value

from .call import Call, Importer


def _linear(call: Call) -> Value:
    if call.optional("bias") is not None:
        raise call.unsupported("the linear has a bias, and a Llama has none")
    return _product(call, call.tensor("input"), call.b.transpose(call.tensor("weight"), 1, 0))


def _matmul(first: str, second: str) -> Importer:
    return lambda call: _product(call, call.tensor(first), call.tensor(second))


def _product(call: Call, a: Value, b: Value) -> Value:
    """matmul; a product with a vector is one with a matrix of one row or column."""
    a = call.reshape(a, (1, *a.tensor.shape)) if a.tensor.rank == 1 else a
    b = call.reshape(b, (*b.tensor.shape, 1)) if b.tensor.rank == 1 else b
    return call.reshape(call.op("matmul", a, b), call.shape())


def _embedding(call: Call) -> Value:
    """Lookups take one axis of row numbers; others are put back by a reshape."""
    ids = call.cast(call.tensor("indices"), I32)
    count: object = math.prod(ids.tensor.shape)
    flat = call.op("embedding", call.tensor("weight"), call.reshape(ids, (count,)))  # type: ignore[arg-type]
    return call.reshape(flat, call.shape())


def _rms_norm(call: Call) -> Value:
    x, weight = call.tensor("input"), call.optional("weight")
    if len(call.raw["normalized_shape"]) != 1 or weight is None:
        raise call.unsupported("only the norm over the last axis, with a weight, is that of a Llama")
    eps = 2.0**-23 if call.raw["eps"] is None else call.number("eps")
    wide = call.cast(x, F32)
    mean = call.op("reduce_mean", call.op("mul", wide, wide), axis=x.tensor.rank - 1)
    inverse = call.op("rsqrt", call.op("add", mean, call.b.constant(eps, F32)))
    normal = call.cast(call.op("mul", wide, inverse), x.tensor.dtype)
    return call.op("mul", normal, call.cast(weight, x.tensor.dtype))


def _attention(call: Call) -> Value:
    """softmax(q k^T scale + mask) v, the softmax in f32 (torch's own order for each dtype is not defined)."""
    if call.number("dropout_p"):
        raise call.unsupported("dropout is on: call module.eval() first")
    q, k, v = (call.tensor(name) for name in ("query", "key", "value"))
    if call.raw["enable_gqa"]:
        k, v = _shared_heads(call, k, q), _shared_heads(call, v, q)
    dtype, rank = q.tensor.dtype, q.tensor.rank
    width = q.tensor.shape[-1]
    scale = float(width) ** -0.5 if call.raw["scale"] is None else call.number("scale")  # type: ignore[arg-type]
    turned = call.b.transpose(k, *range(rank - 2), rank - 1, rank - 2)
    scores = call.op("mul", call.op("matmul", q, turned), call.b.constant(scale, dtype))
    mask = _mask(call, q, k)
    scores = scores if mask is None else call.op("add", scores, mask)
    weights = call.cast(call.op("softmax", call.cast(scores, F32), axis=rank - 1), dtype)
    return call.op("matmul", weights, v)


def _shared_heads(call: Call, x: Value, q: Value) -> Value:
    """Each KV head repeated for the query heads that share it."""
    *batch, heads, length, width = x.tensor.shape
    count = q.tensor.shape[-3]
    assert isinstance(heads, int) and isinstance(count, int)
    narrow = call.reshape(x, (*batch, heads, 1, length, width))
    wide = call.broadcast(narrow, (*batch, heads, count // heads, length, width))
    return call.reshape(wide, (*batch, count, length, width))


def _mask(call: Call, q: Value, k: Value) -> Value | None:
    """What is added to the scores: the mask itself, or 0 and -inf for one of truth values, or torch's causal one."""
    dtype, mask = q.tensor.dtype, call.optional("attn_mask")
    if call.raw["is_causal"]:
        rows, columns = (call.op("iota", length=x.tensor.shape[-2], dtype=I32) for x in (q, k))
        rows, columns = call.reshape(rows, (*rows.tensor.shape, 1)), call.reshape(columns, (1, *columns.tensor.shape))
        mask = call.op("less_equal", columns, rows)
    if mask is None or mask.tensor.dtype is not I1:
        return None if mask is None else call.cast(mask, dtype)
    return call.op("select", mask, call.b.constant(0.0, dtype), call.b.constant(-math.inf, dtype))


PRODUCTS: dict[str, Importer] = {
    "linear": _linear,
    "matmul": _matmul("self", "other"),
    "mm": _matmul("self", "mat2"),
    "bmm": _matmul("self", "mat2"),
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "scaled_dot_product_attention": _attention,
}
"""ATen name -> what imports it."""

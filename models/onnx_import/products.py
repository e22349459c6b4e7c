"""ONNX's products, norms and attention as captured ops, fused ones taken apart into their textbook form."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llamac.ir.dims import DimLike
from llamac.ir.dtypes import F32
from llamac.ir.graph import Value

from .call import PAST, TOKENS, Call, Found, Grouped, GroupSums, Importer, Product
from .dequantized import DEQUANTIZED
from .grouped import grouped_product
from .known import the_number
from .minima import product_with_minima
from .packed import Packed
from .scaled_product import product
from .stored import Stored


def _matmul(call: Call) -> Found:
    a, b = call.raw(0), call.raw(1)
    if isinstance(a, GroupSums):
        return product_with_minima(call, a, b)
    if isinstance(b, Packed) or (isinstance(b, Stored) and len(b.shape) == 2 and b.count > 1):
        return call.product(a, b.turned())
    if isinstance(a, Grouped):
        found = grouped_product(call, a, call.value(b))
        if found is not None:
            return found
    return product(call, call.value(a), call.value(b))


def _general_product(call: Call) -> Found:
    call.expect("alpha", 1.0)
    call.expect("transA", 0)
    if call.has(2):
        raise call.unsupported("the linear has a bias, and a Llama has none")
    b = call.raw(1)
    if not isinstance(b, Stored | Packed):
        raise call.unsupported("a product of two computed matrices")
    return call.product(call.raw(0), b if call.attribute("transB", 0) else b.turned())


def rms_norm(call: Call, x: Value, weight: Value, eps: float) -> Value:
    """The norm in its textbook form."""
    wide = call.cast(x, F32)
    mean = call.op("reduce_mean", call.op("mul", wide, wide), axis=x.tensor.rank - 1)
    inverse = call.op("rsqrt", call.op("add", mean, call.b.constant(eps, F32)))
    normal = call.cast(call.op("mul", wide, inverse), x.tensor.dtype)
    return call.op("mul", normal, call.cast(weight, x.tensor.dtype))


def _norm(call: Call) -> Found:
    x = call.tensor(0)
    if call.axis(x.tensor.rank, -1) != x.tensor.rank - 1 or call.has(2):
        raise call.unsupported("a norm over another axis than the last, or with a bias")
    return rms_norm(call, x, call.tensor(1), call.number("epsilon", 1e-5))


def _skip_norm(call: Call) -> Sequence[Found]:
    """x + skip and its norm; the two outputs between are for training."""
    if call.has(3):
        raise call.unsupported("a bias")
    total = call.op("add", call.tensor(0), call.tensor(1))
    normal = rms_norm(call, total, call.tensor(2), call.number("epsilon", 1e-5))
    return [normal, normal, normal, total][: len(call.node.outputs)]


def _grouped_attention(call: Call) -> Sequence[Found]:
    """GroupQueryAttention for one sequence: split, rotate, append, repeat, and the textbook's scores."""
    _check_attention(call)
    heads, kv_heads = call.attribute("num_heads", 0), call.attribute("kv_num_heads", 0)
    q, k, v = _projections(call, heads, kv_heads)
    if call.attribute("do_rotary", 0):
        rotate = call.around.rotation(call, 7, call.attribute("rotary_interleaved", 0))
        q, k = rotate(q), rotate(k)
    width = q.tensor.shape[-1]
    pasts = [call.reshape(call.tensor(index), (kv_heads, PAST, width)) for index in (3, 4)]
    keys, values = (call.op("concat", past, new, axis=1) for past, new in zip(pasts, (k, v), strict=True))
    pieces = call.around.pieces
    turned = call.b.transpose(pieces.repeat_kv(keys), 0, 2, 1)
    scale = call.number("scale", 0.0) or float(width) ** -0.5  # type: ignore[arg-type]
    usual = float(width) ** -0.5  # type: ignore[arg-type]
    scale = usual if math.isclose(scale, usual, rel_tol=1e-6) else scale
    scores = call.op("mul", call.op("matmul", q, turned), call.b.constant(scale, q.tensor.dtype))
    scores = call.op("add", scores, call.around.causal_mask())
    weights = call.cast(call.op("softmax", call.cast(scores, F32), axis=2), q.tensor.dtype)
    mixed = call.b.transpose(call.op("matmul", weights, pieces.repeat_kv(values)), 1, 0, 2)
    out = call.reshape(mixed, (1, TOKENS, heads * width))
    shape: tuple[DimLike, ...] = (1, kv_heads, PAST + TOKENS, width)
    return [out, call.reshape(keys, shape), call.reshape(values, shape)]


def _check_attention(call: Call) -> None:
    call.expect("local_window_size", -1)
    call.expect("softcap", 0.0)
    call.expect("smooth_softmax", 0, -1)
    call.expect("qk_output", 0)
    call.expect("k_quant_type", "NONE", "")
    call.expect("v_quant_type", "NONE", "")
    if any(call.has(index) for index in range(10, len(call.node.inputs))):
        raise call.unsupported("an attention bias, sinks or quantized caches")
    for index, wanted in ((5, PAST + TOKENS - 1), (6, PAST + TOKENS)):
        known = call.known(index)
        if known is None or the_number(known) != wanted:
            raise call.unsupported(f"input {index} is not {wanted}, the length that a full mask gives")


def _projections(call: Call, heads: int, kv_heads: int) -> tuple[Value, Value, Value]:
    """q, k and v as [heads, T, head size]; a product that makes all three is three products."""
    config = call.around.config
    if heads != config.heads or kv_heads != config.kv_heads:
        raise call.unsupported(
            f"{heads} heads and {kv_heads} KV heads, the model has {config.heads}, {config.kv_heads}"
        )
    found = [call.raw(0), *(call.raw(index) for index in (1, 2) if call.has(index))]
    if len(found) == 1:
        (packed,) = found
        ends = [heads * config.head_dim, (heads + kv_heads) * config.head_dim, (heads + 2 * kv_heads) * config.head_dim]
        if not isinstance(packed, Product) or packed.matrix.shape[0] != ends[-1]:
            raise call.unsupported("q, k and v in one tensor that is no product with one weight")
        found = [Product(packed.x, packed.matrix.part(lo, hi)) for lo, hi in zip([0, *ends], ends, strict=False)]
    return tuple(  # type: ignore[return-value]
        call.b.transpose(call.reshape(call.value(part), (TOKENS, count, config.head_dim)), 1, 0, 2)
        for part, count in zip(found, (heads, kv_heads, kv_heads), strict=True)
    )


def _rotary(call: Call) -> Found:
    """com.microsoft.RotaryEmbedding: x [1, heads, T, h] or [1, T, heads * h], positions, cos and sin tables."""
    config, x = call.around.config, call.tensor(0)
    call.expect("is_packed_batching", 0)
    call.expect("rotary_embedding_dim", 0, config.head_dim)
    call.expect("scale", 1.0)
    rotate = call.around.rotation(call, 2, call.attribute("interleaved", 0))
    if x.tensor.rank == 4:
        shape = x.tensor.shape
        return call.reshape(rotate(call.reshape(x, shape[1:])), shape)
    width = x.tensor.shape[-1]
    assert isinstance(width, int)
    split = call.reshape(x, (TOKENS, width // config.head_dim, config.head_dim))
    turned = call.b.transpose(rotate(call.b.transpose(split, 1, 0, 2)), 1, 0, 2)
    return call.reshape(turned, x.tensor.shape)


PRODUCTS: dict[str, Importer] = {
    "MatMul": _matmul,
    "Gemm": _general_product,
    "RMSNormalization": _norm,
    "SimplifiedLayerNormalization": _norm,
    **DEQUANTIZED,
    "com.microsoft.SimplifiedLayerNormalization": _norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_norm,
    "com.microsoft.GroupQueryAttention": _grouped_attention,
    "com.microsoft.RotaryEmbedding": _rotary,
}
"""Op -> what imports it."""

"""The C function of a fused projection: q, k and v, what is done to their heads, and the cache append."""

from __future__ import annotations

from llamac.ir.graph import Op
from llamac.ir.layouts import format_of

from .literals import C_TYPES, c_float, c_format


def qkv_function(op: Op, group: int) -> str:
    """The definition of function `NAME` for qkv_dense or qkv_grouped `op`, whose cache has number `group`."""
    fmt, cache = format_of(str(op.attributes["format"])), op.operands[0].cache
    x, given = ("const float *x, size_t ldx", "x, ldx") if fmt.is_dense else ("llamac_quantized x", "x")
    numbers = [_number(op, "qk_eps", -1.0), _number(op, "floor", 0.0), _number(op, "scale", 0.0)]
    return (
        "static __attribute__((noinline)) void NAME(const llamac_thread *th, const step_args *s, float *q, size_t ldq, "
        f"{x},\n    const uint8_t *w, const float *cosines, const float *sines, uint32_t layer)\n{{\n"
        f"  const llamac_qkv to = {{q, ldq, cache_of(s, {group}), layer, {op.attributes['heads']}, {cache.kv_heads}, "
        f"{cache.head_dim}, {C_TYPES[cache.dtype.name]},\n      {', '.join(map(c_float, numbers))}, "
        f"{_tables(op)}, s->positions, s->sequence_of_token}};\n"
        f"  llamac_qkv_{'dense' if fmt.is_dense else 'grouped'}(th, to, {given}, s->tokens, w, "
        f"{op.attributes['columns']}, {c_format(fmt)});\n}}\n"
    )


def _number(op: Op, name: str, otherwise: float) -> float:
    """An attribute, or what the kernel takes for its absence."""
    value = op.attributes.get(name, otherwise)
    assert isinstance(value, float)
    return value


def _tables(op: Op) -> str:
    """The angles, where the op has any: a literal NULL leaves the rotation out."""
    has_angles = len(op.operands) == (10 if op.opcode == "qkv_grouped" else 8)
    return "cosines, sines" if has_angles else "NULL, NULL"

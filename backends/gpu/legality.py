"""What an instruction set can be asked to compute: checked on the whole module before anything is compiled."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.dtypes import E4M3FN
from llamac.ir.graph import Module, Op
from llamac.ir.layouts import format_of
from llamac.ir.types import CacheType

from .architectures import ARCHITECTURES, Architecture
from .cost_model import TILES

WEIGHT_TYPES: dict[str, frozenset[str]] = {
    name: frozenset({"f32", "f16", "bf16", "i8", "u8", "i4", "u4"}) | ({"e4m3fn"} if row.e4m3 else frozenset())
    for name, row in ARCHITECTURES.items()
}
"""Instruction set -> types of weights that a target of it takes. 8-bit floats where its matrix units multiply them: the
portable build decodes them in software, but nobody should choose them for a GPU on which int8 is as small."""


LEAST_KEYS = 16
"""Keys that matrix units take at once."""

CACHE_TYPES = {"f16": "f16", "bf16": "bf16", "f32": "f32", "e4m3fn": "fp8"}
"""Types of key and value caches, on every instruction set -> what `--kv` calls them. 8-bit floats are converted in
software where the hardware does not: half the bytes are worth it, and there is no other cache of 8 bits."""


def check_legal(module: Module, machine: Architecture, target: str) -> None:
    """LLC0611 for a weight type that the target does not take, LLC0605 for a shape that no kernel has."""
    for _, op in module.ops():
        if "format" in op.attributes:
            _check_type(op, machine, target)
        if op.opcode in ("attend", "attend_vision_rows"):
            _check_heads(op, machine, target)


def _check_type(op: Op, machine: Architecture, target: str) -> None:
    quants = format_of(str(op.attributes["format"])).quants
    if quants.name in WEIGHT_TYPES[machine.name]:
        return
    what = "8-bit floats" if quants is E4M3FN else quants.name
    able = [
        name for name, row in ARCHITECTURES.items() if row.kind == machine.kind and quants.name in WEIGHT_TYPES[name]
    ]
    reason = f"{target} ({machine.name}) does not multiply {what}; {', '.join(able)} do"
    raise LlamacError("LLC0611", op.location or op.opcode, reason, "--quantize int8 takes as little memory there")


def _check_heads(op: Op, machine: Architecture, target: str) -> None:
    kind, heads = next(v.type for v in op.operands if isinstance(v.type, CacheType)), op.attributes["heads"]
    assert isinstance(kind, CacheType) and isinstance(heads, int)
    if kind.dtype.name not in CACHE_TYPES:
        reason = f"no GPU kernel reads a cache of {kind.dtype.name}"
        raise LlamacError("LLC0611", op.location, f"{target}: {reason}", f"--kv {', '.join(CACHE_TYPES.values())}")
    width, shared, tiles = kind.head_dim, heads // kind.kv_heads, TILES[machine.name]
    if width & (width - 1) or not 16 <= width <= 256:
        reason = f"heads of {width} are no power of two from 16 to 256, which the attention kernels are made for"
    elif shared > tiles.query_rows:
        reason = f"{shared} query heads share a kv head, at most {tiles.query_rows} can on {machine.name}"
    elif kind.chunk % LEAST_KEYS:
        reason = f"chunks of {kind.chunk} positions are no multiple of {LEAST_KEYS}, the fewest keys of a tile"
    else:
        return
    raise LlamacError("LLC0605", op.location, f"{target}: {reason}", "compile for a CPU target, which takes any")

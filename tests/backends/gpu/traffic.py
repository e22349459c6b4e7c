"""Bytes that the launches of a plan move, from the sizes that their kernels were specialised to, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamac.artifact.launch_plan import Kernel, Launch, LaunchPlan

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "i32": 4, "u32": 4, "u8": 1, "fp8e4nv": 1, "fp8e4b8": 1}


@dataclass(frozen=True)
class Step:
    """A step of `tokens` rows at `context` cached positions each, which chooses other experts for every row."""

    tokens: int
    context: int


def moved(plan: LaunchPlan, launches: Iterable[Launch], step: Step) -> int:
    """What a step moves to and from memory when each launch reads what it needs once."""
    return sum(moved_by(plan.kernels[launch.kernel], step) for launch in launches)


def moved_by(kernel: Kernel, step: Step) -> int:
    """Weights, cache, activations and scratch of one launch."""
    name = kernel.source.split(".")[1]
    total = _weights(kernel, name, step) + _cache(kernel, name, step)
    return total + _activations(kernel, name, step) + _scratch(kernel, name, step)


def _size(kernel: Kernel, parameter: str) -> int:
    found = [p.type for p in kernel.parameters if p.name == parameter]
    return BYTES[found[0].removeprefix("*")] if found else 0


def _number(kernel: Kernel, name: str) -> int:
    value = kernel.constants[name]
    assert isinstance(value, int)
    return value


def _weights(kernel: Kernel, name: str, step: Step) -> int:
    if not _size(kernel, "w_ptr"):
        return 0
    rows = step.tokens if name == "embed_rows" else _number(kernel, "N") if "N" in kernel.constants else _heads(kernel)
    rows *= 2 if name.endswith("gate_up") else 1
    if "expert" in name:
        rows *= min(step.tokens * int(kernel.constants.get("TOP") or 1), _number(kernel, "EXPERTS"))
    columns, group = _number(kernel, "KP"), _number(kernel, "GROUP")
    bits = {"int4": 4, "int8": 8}.get(str(kernel.constants["WEIGHT"]), 8 * _size(kernel, "w_ptr"))
    scales = columns // group if group else 1
    each = columns * bits // 8 + scales * (_size(kernel, "scale_ptr") + _size(kernel, "min_ptr"))
    return rows * each + _size(kernel, "norm_ptr") * _number(kernel, "K")


def _heads(kernel: Kernel) -> int:
    return (_number(kernel, "HEADS") + 2 * _number(kernel, "KV_HEADS")) * _number(kernel, "HEAD")


def _cache(kernel: Kernel, name: str, step: Step) -> int:
    seen = min(step.context, int(kernel.constants.get("CHUNK") or step.context))
    positions = {"decode_attention": seen, "decode_qkv": 1, "prefill_qkv": 1}.get(name)
    if positions is None:
        return 0
    token = 2 * _number(kernel, "KV_HEADS") * _number(kernel, "HEAD") * _size(kernel, "cache_ptr")
    return step.tokens * positions * token


def _activations(kernel: Kernel, name: str, step: Step) -> int:
    """Rows that come in and go out; of results as many as the kernel has columns."""
    width = _number(kernel, "N") if "N" in kernel.constants else int(kernel.constants.get("K") or 0)
    reads = _size(kernel, "x_ptr") * int(kernel.constants.get("K") or 0)
    writes = (_size(kernel, "y_ptr") + _size(kernel, "residual_ptr") + _size(kernel, "base_ptr")) * width
    heads = 0
    if "HEADS" in kernel.constants:
        queries = _number(kernel, "HEADS") * _number(kernel, "HEAD")
        heads = queries * (_size(kernel, "q_ptr") + _size(kernel, "out_ptr"))
    return step.tokens * (reads + writes + heads)


def _scratch(kernel: Kernel, name: str, step: Step) -> int:
    """Parts of split work, which are written and read again, and what is drawn from."""
    if name in ("tile_bests", "draw"):
        listed = _number(kernel, "TILES") * _number(kernel, "LISTED")
        return step.tokens * (4 * _number(kernel, "N") * (name == "tile_bests") + 8 * listed)
    if not _size(kernel, "partial_ptr"):
        return 0
    splits = _number(kernel, "SPLITS")
    if name == "decode_attention":
        rows = step.tokens * _number(kernel, "KV_HEADS") * _number(kernel, "ROWS")
        return 2 * 4 * rows * splits * (_number(kernel, "HEAD") + 1)
    return 2 * 4 * splits * _number(kernel, "M") * _heads(kernel)

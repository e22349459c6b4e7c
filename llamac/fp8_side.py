"""What a checkpoint and its targets say about activations and caches in 8-bit floats."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError
from llamac.models.cache_scales import cache_scales
from llamac.models.checkpoint import Checkpoint
from llamac.passes.pipelines import EIGHT, Quantization
from llamac.transform.base import LedgerEntry

FP8_KV = "fp8"


def check_activations(quantization: Quantization, kind: str) -> None:
    """Refuse activations in 8-bit floats on a CPU (LLC0605), which multiplies none."""
    if quantization.eight and kind == "cpu":
        reason = "no CPU kernel multiplies activations in 8-bit floats"
        raise LlamacError("LLC0605", f"--quantize {quantization}", reason, f"leave {EIGHT} out, or choose int8")


def scales_of_cache(
    checkpoint: Checkpoint, kv_dtype: str, kind: str, ledger: list[LedgerEntry]
) -> Mapping[int, tuple[float, float]]:
    """Layer -> the scales of keys and values that the checkpoint brings for `--kv fp8`; none for another cache.

    LLC0605 where the target has no such cache, LLC0953 for scales that are no positive numbers. The ledger says where
    the scales come from, and no longer that those of the checkpoint are ignored.
    """
    if kv_dtype != FP8_KV:
        return {}
    if kind == "cpu":
        reason = "no CPU kernel reads a cache of e4m3fn"
        raise LlamacError("LLC0605", "--kv fp8", reason, "--kv int8 takes as little memory there")
    found = cache_scales(checkpoint)
    if found:
        ledger[:] = [e for e in ledger if not (e.kind == "ignored" and e.reason.endswith("; see --kv"))]
        said = LedgerEntry("note", "cache", "keys and values are stored as e4m3fn", "over the checkpoint's own scales")
    else:
        reason = "the checkpoint brings no scales of them; beyond 448 they are cut"
        said = LedgerEntry("default", "cache", "keys and values are stored as e4m3fn as they are", reason)
    if said not in ledger:
        ledger.append(said)
    return {layer: (scales.key, scales.value) for layer, scales in found.items()}

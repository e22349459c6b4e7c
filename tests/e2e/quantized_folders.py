"""Quantized checkpoints in every layout that is read, packed here from the formats' documentation, with their values.

Each function takes a matrix [outputs, inputs] and gives the stored tensors of its module and the matrix that they
stand for, computed from integers and scales and never from the packed words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
Parts = dict[str, NDArray[Any]]
Packer = Callable[[Floats], tuple[Parts, Floats]]

FP8 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16


def _groups(values: Floats, group: int) -> Floats:
    return values.reshape(values.shape[0], -1, group)


def _words(values: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Unsigned integers along the last axis, lowest bits first, in 32-bit words; the last may be short."""
    each = 32 // bits
    padded = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, -values.shape[-1] % each)]).astype(np.uint32)
    lanes = padded.reshape(*padded.shape[:-1], -1, each) << (np.arange(each, dtype=np.uint32) * np.uint32(bits))
    return np.bitwise_or.reduce(lanes, axis=-1).view(np.int32)


def fp8_rows(scale_type: Any) -> Packer:
    """fbgemm_fp8 and compressed-tensors float-quantized: one scale a row."""

    def pack(w: Floats) -> tuple[Parts, Floats]:
        scale = (np.abs(w).max(axis=1, keepdims=True) / 448).astype(scale_type)
        quants = np.clip(w / scale.astype(np.float32), -448, 448).astype(FP8)
        return {"weight": quants, "weight_scale": scale}, quants.astype(np.float32) * scale.astype(np.float32)

    return pack


def fp8_tensor(shape: tuple[int, ...]) -> Packer:
    """ModelOpt and compressed-tensors: one scale for the matrix, and one of the activations, which is not read."""

    def pack(w: Floats) -> tuple[Parts, Floats]:
        scale = np.full(shape, np.abs(w).max() / 448, np.float32)
        quants = (w / scale.reshape(1, 1)).astype(FP8)
        parts = {"weight": quants, "weight_scale": scale, "input_scale": scale}
        return parts, quants.astype(np.float32) * scale.reshape(1, 1)

    return pack


def int8_rows(symmetric: bool) -> Packer:
    """compressed-tensors int-quantized."""

    def pack(w: Floats) -> tuple[Parts, Floats]:
        low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
        if symmetric:
            scale = (np.maximum(-low, high) / 127).astype(np.float32)
            quants = np.rint(w / scale).astype(np.int8)
            return {"weight": quants, "weight_scale": scale}, quants * scale
        scale = ((high - low) / 255).astype(np.float32)
        zeros = (-128 - np.rint(low / scale)).clip(-128, 127).astype(np.int8)
        quants = (np.rint(w / scale) + zeros).clip(-128, 127).astype(np.int8)
        parts = {"weight": quants, "weight_scale": scale, "weight_zero_point": zeros}
        return parts, (quants.astype(np.float32) - zeros) * scale

    return pack


def compressed_words(bits: int, group: int, symmetric: bool, scale_type: Any = BF16) -> Packer:
    """compressed-tensors pack-quantized; group 0 is one scale a row."""

    def pack(w: Floats) -> tuple[Parts, Floats]:
        x = _groups(w, group or w.shape[1])
        top = 2 ** (bits - 1)
        low, high = x.min(axis=2, keepdims=True), x.max(axis=2, keepdims=True)
        scale = (np.maximum(-low, high) / (top - 1) if symmetric else (high - low) / (2 * top - 1)).astype(scale_type)
        s = scale.astype(np.float32)
        zeros = np.zeros_like(s) if symmetric else np.rint(-top - low / s).clip(-top, top - 1)
        quants = np.clip(np.rint(x / s) + zeros, -top, top - 1)
        flat = quants.reshape(w.shape)
        parts: Parts = {
            "weight_packed": _words(flat + top, bits),
            "weight_scale": scale[:, :, 0],
            "weight_shape": np.array(w.shape, np.int64),
        }
        if not symmetric:
            parts["weight_zero_point"] = np.ascontiguousarray(_words((zeros[:, :, 0] + top).T, bits).T)
        return parts, ((quants - zeros) * s).reshape(w.shape)

    return pack


def gptq(bits: int, group: int, symmetric: bool, first_version: bool = True) -> Packer:
    """GPTQ: words along the inputs, zero points (less one in the first version) along the outputs, all transposed."""

    def pack(w: Floats) -> tuple[Parts, Floats]:
        x, top = _groups(w, group or w.shape[1]), 2**bits - 1
        low, high = np.minimum(x.min(axis=2, keepdims=True), -1e-6), x.max(axis=2, keepdims=True)
        middle = 2 ** (bits - 1)
        scale = (np.maximum(-low, high) / (middle - 1) if symmetric else (high - low) / top).astype(np.float16)
        s = scale.astype(np.float32)
        zeros = np.full_like(s, middle) if symmetric else np.rint(-low / s).clip(1, top)
        quants = np.clip(np.rint(x / s) + zeros, 0, top)
        stored = zeros[:, :, 0] - (1 if first_version else 0)
        parts: Parts = {
            "qweight": np.ascontiguousarray(_words(quants.reshape(w.shape), bits).T),
            "qzeros": _words(stored.T, bits),
            "scales": np.ascontiguousarray(scale[:, :, 0].T),
            "g_idx": (np.arange(w.shape[1]) // (group or w.shape[1])).astype(np.int32),
            "bias": np.zeros(w.shape[0], np.float16),
        }
        return parts, ((quants - zeros) * s).reshape(w.shape)

    return pack


def awq(group: int) -> Packer:
    """AWQ's gemm layout: words along the outputs, in the order 0 2 4 6 1 3 5 7."""

    def words(values: NDArray[Any]) -> NDArray[np.int32]:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return _words(values.reshape(values.shape[0], -1, 8)[:, :, order].reshape(values.shape), 4)

    def pack(w: Floats) -> tuple[Parts, Floats]:
        x = _groups(w, group)
        low, high = np.minimum(x.min(axis=2, keepdims=True), 0), np.maximum(x.max(axis=2, keepdims=True), 1e-3)
        scale = ((high - low) / 15).astype(np.float16)
        s = scale.astype(np.float32)
        zeros = np.rint(-low / s).clip(0, 15)
        quants = np.clip(np.rint(x / s) + zeros, 0, 15)
        parts: Parts = {
            "qweight": words(np.ascontiguousarray(quants.reshape(w.shape).T)),
            "qzeros": words(np.ascontiguousarray(zeros[:, :, 0].T)),
            "scales": np.ascontiguousarray(scale[:, :, 0].T),
        }
        return parts, ((quants - zeros) * s).reshape(w.shape)

    return pack


def quantize_folder(
    folder: Path,
    quantization: dict[str, Any],
    pack: Packer,
    skipped: str = "lm_head",
    edit: Callable[[Parts], Parts] = lambda stored: stored,
) -> Parts:
    """Replace the linear layers of a saved model by packed ones; returns all its values as they are now.

    `edit` changes the tensors before they are saved.
    """
    weights = load_file(folder / "model.safetensors")
    stored: Parts = {}
    values: Parts = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or "embed" in name or skipped in name:
            stored[name] = values[name] = weight
            continue
        parts, values[name] = pack(weight.astype(np.float32))
        stored |= {f"{module}.{part}": array for part, array in parts.items()}
    stored = edit(stored)
    save_file({k: np.ascontiguousarray(v) for k, v in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return values

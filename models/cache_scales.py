"""The scales of a quantized key-value cache that a source's files hold beside its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES, widen

from .checkpoint import BLOCKS, Checkpoint, FileRows, StoredTensor
from .hf_weights import ENCODINGS
from .safetensors_header import HeaderTensor, read_header

_SCALE = re.compile(r"(?:.*\.)?layers\.(\d{1,6})\.self_attn\.(?:[kv]_proj\.)?(k|v|kv)_scale")


@dataclass(frozen=True)
class CacheScales:
    """What keys and values of one layer are divided by before they are stored as e4m3fn."""

    key: float
    value: float


def cache_scales(checkpoint: Checkpoint) -> dict[int, CacheScales]:
    """Layer -> scales; empty where the source has none. LLC0953 when some layers lack theirs."""
    found: dict[int, dict[str, float]] = {}
    for path, header in source_headers(checkpoint):
        match = _SCALE.fullmatch(header.name)
        if match is not None:
            number = stored_scale(path, header)
            found.setdefault(int(match.group(1)), {}).update(dict.fromkeys(match.group(2), number))
    wanted = [n for n in range(checkpoint.config.layers) if n not in checkpoint.config.cross_layers]
    lacking = [n for n in wanted if set(found.get(n, {})) != {"k", "v"}]
    if found and lacking:
        reason = f"the source has scales of the cache for {len(found)} layers, and not both for this one"
        raise LlamacError("LLC0953", f"layers.{lacking[0]}.attn", reason, "take a whole checkpoint")
    return {layer: CacheScales(found[layer]["k"], found[layer]["v"]) for layer in wanted} if found else {}


def source_headers(checkpoint: Checkpoint) -> Iterator[tuple[Path, HeaderTensor]]:
    """Every tensor in the files of a Hugging Face folder, weights or not; nothing for another source."""
    if checkpoint.format != "hf":
        return
    folders = {tensor.file.parent for tensor in checkpoint.tensors.values()}
    for path in sorted(path for folder in folders for path in folder.glob("model*.safetensors")):
        for header in read_header(path):
            yield path, header


def stored_scale(path: Path, header: HeaderTensor) -> float:
    """One positive number, LLC0953 for anything else: scales for each head are not read."""
    encoding = ENCODINGS.get(header.dtype, "")
    if encoding in ("f32", "f16", "bf16") and header.nbytes == BLOCKS[encoding][1]:
        stored = StoredTensor(header.name, header.name, (1,), encoding, path, header.offset, header.nbytes)
        (value,) = widen(FileRows().read(stored, 0, 1).view(DTYPES[encoding].storage)).tolist()
        if math.isfinite(value) and value > 0:
            return float(value)
    reason = f"the scale is {header.dtype} {list(header.shape)}, expected one positive number"
    raise LlamacError("LLC0953", header.name, reason, "take a checkpoint with one scale for a layer")

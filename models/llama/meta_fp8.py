"""Meta's FP8 releases: e4m3fn matrices in the shards, their scales beside them in `fp8_scales_N.pt`, a file a rank.

A scale belongs to a row of one rank's matrix. Ranks split gate and up by rows, so these have one scale a row; they
split down by columns, so a row of it has one scale for the inputs of each rank (llama-models, llama3/quantization).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamac.errors import LlamacError

from ..checkpoint import StoredTensor
from ..ledger import LedgerEntry, entry
from ..matrix_view import Grid, MatrixView, joined, matrices_of
from ..packed_encoding import PackedEncoding, packed_tensor
from ..torch_file import ENCODINGS, TorchFile, TorchTensor, read_torch_file

MATRICES = {"gate": "w1", "down": "w2", "up": "w3"}
MLP = re.compile(r"layers\.(\d+)\.mlp\.(gate|up|down)")


def with_fp8_scales(
    directory: Path, ranks: int, tensors: Mapping[str, StoredTensor], ledger: list[LedgerEntry]
) -> dict[str, StoredTensor]:
    """The weights with every e4m3fn matrix joined to its scales; LLC0205, LLC0206 or LLC0208 when some do not fit."""
    quantized = [name for name, tensor in tensors.items() if tensor.encoding == "e4m3fn"]
    if not quantized:
        return dict(tensors)
    other = next((name for name in quantized if not MLP.fullmatch(name)), None)
    if other is not None:
        reason = f"{tensors[other].stored_name} is fp8 in Meta's own format, which is read for dense MLPs alone"
        raise LlamacError("LLC0222", other, reason, "use the Hugging Face form of the model")
    files = [_scales(directory, rank) for rank in range(ranks)]
    reason = "the weights are kept as they are; activations follow --quantize"
    ledger.append(entry("note", "layers.N.mlp", f"{len(quantized)} fp8 matrices; activations clipped at 1200", reason))
    return {**tensors, **{name: _joined(tensors[name], files) for name in quantized}}


def _scales(directory: Path, rank: int) -> TorchFile:
    path = directory / f"fp8_scales_{rank}.pt"
    if not path.is_file():
        raise LlamacError("LLC0205", path.name, "the scales of this rank's fp8 weights are missing", "download it too")
    return read_torch_file(path)


def _joined(weight: StoredTensor, files: Sequence[TorchFile]) -> StoredTensor:
    match = MLP.fullmatch(weight.name)
    assert match is not None
    layer, kind = match.groups()
    vectors = [_vector(weight.name, file, f"{layer}_feed_forward.{MATRICES[kind]}_{r}") for r, file in enumerate(files)]
    columns = [_column(vector) for vector in vectors]
    grid: Grid = [columns] if kind == "down" else [[column] for column in columns]
    scale = joined(f"{weight.name}.scale", vectors[0].name, ENCODINGS[vectors[0].dtype], grid)
    rows, inputs = weight.shape
    expected = (rows, len(files) if kind == "down" else 1)
    if scale.shape != expected:
        reason = f"expected scales of shape {list(expected)}, found {list(scale.shape)} in {vectors[0].file.name}"
        raise LlamacError("LLC0208", weight.name, reason, "take every file from one download")
    group = inputs // expected[1] if expected[1] > 1 else 0
    encoding = PackedEncoding("fp8", group, True, scale.encoding)
    nbytes, quants = weight.nbytes, f"{weight.name}.quants"
    values = StoredTensor(
        quants, weight.stored_name, weight.shape, "e4m3fn", weight.file, weight.offset, nbytes, weight.pieces
    )
    return packed_tensor(weight.name, weight.shape, encoding, {"quants": values, "scale": scale})


def _vector(name: str, file: TorchFile, key: str) -> TorchTensor:
    vector = file.tensors.get(key)
    if vector is None:
        raise LlamacError("LLC0206", name, f"its scales {key} are missing in {file.path.name}", "download it again")
    if ENCODINGS.get(vector.dtype) not in ("f32", "bf16", "f16"):
        raise LlamacError("LLC0209", name, f"its scales are stored as {vector.dtype}", "supported: float32, bfloat16")
    return vector


def _column(vector: TorchTensor) -> MatrixView:
    """A scale for each row: stored [rows] or [rows, 1]."""
    (view,) = matrices_of(vector.file, vector.offset, vector.shape, vector.strides, vector.item)
    return view.transposed if len(vector.shape) == 1 else view

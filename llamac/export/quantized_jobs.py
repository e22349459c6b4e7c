"""The weights of a quantized Hugging Face folder: which matrices are quantized, and the jobs that write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llamac.ir.dtypes import widen
from llamac.models.llama.config import LlamaConfig

from .hf_names import ROUTED, HfTensor, hf_tensors, module_name
from .hf_plain import Floats, MeantRows, meant_rows, plain_job
from .matrix_forms import MatrixForm
from .model_weights import ModelWeights
from .request import ExportRequest
from .safetensors_writer import Block, Job

_MATRIX = re.compile(r"layers\.\d+\.(attn\.[qkvo]|cross\.[qkvo]|mlp\.\w+|moe\.(gate|up|down)|moe\.shared\.\w+)")
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """Rows [first, end) of a model-level weight, which are the matrix of the module `module`."""

    weight: str
    module: str
    first: int
    end: int


FormOf = Callable[[Matrix], MatrixForm]


class QuantizedFolder:
    """What a folder of one scheme holds. `form_of` gives the form of a matrix, made when it is written."""

    def __init__(self, weights: ModelWeights, config: LlamaConfig, form_of: FormOf) -> None:
        self.weights = weights
        self.config = config
        self.form_of = form_of
        self._plain = meant_rows(weights, config, weights.float_dtype)

    def jobs(self) -> list[Job]:
        """A job for each module, in the order the model applies them; experts one by one."""
        found: list[Job] = []
        for tensor in hf_tensors(self.config, self.weights.names):
            if any(is_matrix(name) for name in tensor.weights):
                found += self.quantized_jobs(tensor)
            else:
                dtype = self.weights.float_dtype(tensor.weights[0])
                found.append(plain_job(self.weights, self.config, tensor, dtype))
        return found

    def quantized_jobs(self, tensor: HfTensor) -> list[Job]:
        """The jobs for the matrices of what a plain folder holds in `tensor`."""
        return [self._job(matrix) for name in tensor.weights for matrix in self.matrices(name)]

    def matrices(self, name: str) -> list[Matrix]:
        """The matrices of a weight: one, or that of each expert."""
        rows = self.weights.shape(name)[0]
        if ROUTED.fullmatch(name) is None:
            return [Matrix(name, module_name(self.config, name), 0, rows)]
        assert self.config.moe is not None
        each = rows // self.config.moe.experts
        return [
            Matrix(name, module_name(self.config, f"{name}.{expert}"), expert * each, (expert + 1) * each)
            for expert in range(self.config.moe.experts)
        ]

    def meant(self) -> MeantRows:
        """The values that the folder holds."""
        forms: dict[Matrix, MatrixForm] = {}

        def rows(name: str, lo: int, hi: int) -> Floats:
            if not is_matrix(name):
                return self._plain(name, lo, hi)
            parts = []
            for matrix in self.matrices(name):
                first, end = max(lo, matrix.first), min(hi, matrix.end)
                if first < end:
                    if matrix not in forms:
                        forms[matrix] = self.form_of(matrix)
                    parts.append(forms[matrix].quantized(self.weights.rows(name, first, end)).values())
            return np.concatenate(parts)

        return rows

    def _job(self, matrix: Matrix) -> Job:
        rows, columns = matrix.end - matrix.first, self.weights.shape(matrix.weight)[1]
        form = self.form_of(matrix)

        def blocks() -> Iterator[Block]:
            step = max(_BLOCK_ELEMENTS // columns, 1)
            multiple = form.row_multiple * self.config.head_dim
            step = max(step // multiple, 1) * multiple
            for lo in range(matrix.first, matrix.end, step):
                values = self.weights.rows(matrix.weight, lo, min(lo + step, matrix.end))
                yield form.stored(form.quantized(values), (rows, columns) if lo == matrix.first else None)

        return Job(form.tensors(matrix.module, rows, columns), blocks)


def is_matrix(name: str) -> bool:
    """Whether a weight is quantized: the products inside the layers, but for routers."""
    return _MATRIX.fullmatch(name) is not None


def note_kept(request: ExportRequest, weights: ModelWeights) -> None:
    """What the scheme leaves as it is, and what was quantized before, in the ledger."""
    names = weights.names
    tables = [name for name in ("embed", "head") if name in names]
    reason = "consumers of this form multiply with them as floats"
    request.note("kept", " and ".join(tables), f"stays {weights.float_dtype('embed')}", reason)
    routers = [name for name in names if name.endswith(".router")]
    if routers:
        reason = "they choose experts: rounded, they would choose others"
        request.note("kept", routers[0], f"{len(routers)} routers stay {weights.float_dtype(routers[0])}", reason)
    if any(name.startswith("vision.") for name in names):
        request.note("kept", "vision", "the image encoder stays as it is", "its products are not quantized")
    again = [name for name in names if is_matrix(name) and weights.stored(name).encoding not in ("f32", "f16", "bf16")]
    if again:
        what = f"{len(again)} matrices quantized again, from {weights.stored(again[0]).encoding}"
        request.note("requantized", again[0], what, "the source is already quantized")


def largest(weights: ModelWeights, matrix: Matrix) -> float:
    """The largest magnitude of a matrix, read by blocks."""
    columns, found = weights.shape(matrix.weight)[1], 0.0
    step = max(_BLOCK_ELEMENTS // columns, 1)
    for lo in range(matrix.first, matrix.end, step):
        values = weights.rows(matrix.weight, lo, min(lo + step, matrix.end))
        found = max(found, float(np.abs(widen(values)).max()))
    return found

"""Matrices of e4m3fn as ModelOpt stores them, and the experts of Llama 4, fused as transformers has them.

    experts.gate_up_proj               F8_E4M3 [experts, in, 2 * out]     experts.down_proj  [experts, in, out]
    experts.gate_up_proj_weight_scale  F32 []                             experts.down_proj_weight_scale
    experts.gate_up_proj_input_scale   F32 []                             experts.down_proj_input_scale

One scale is that of all experts of a layer. (ModelOpt: export/unified_export_hf.py; readers of it: TensorRT-LLM's
fused_moe/quantization.py, mode FUSED_GATE_UP_PROJ, and vLLM's mllama4.py.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import E4M3FN
from llamac.models.cache_scales import source_headers, stored_scale
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import LlamaConfig

from .hf_names import HfTensor, hf_tensors
from .hf_plain import Floats
from .matrix_forms import MatrixForm, Quantized, evaluated
from .model_weights import ModelWeights
from .quantized_jobs import Matrix, QuantizedFolder, largest
from .request import ExportRequest
from .safetensors_writer import Block, Job, PlannedTensor

UNSCALED = 1.0
"""The scale of activations that nobody has measured: e4m3fn holds magnitudes from 2^-9 to 448."""
_INPUT_SCALE = re.compile(r"(?:.*\.)?(layers\.\d{1,6}\.feed_forward\.experts\.(?:gate_up_proj|down_proj))_input_scale")


@dataclass
class Fp8Matrix:
    """e4m3fn with one f32 scale for all of some matrices, which are read once more for it."""

    weights: ModelWeights
    matrices: Sequence[Matrix]
    row_multiple: int = 1

    @cached_property
    def scale(self) -> np.float32:
        """What brings the largest value to 448, the largest of the type."""
        return np.float32(max(largest(self.weights, matrix) for matrix in self.matrices)) / np.float32(448)

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        weight = PlannedTensor(f"{module}.weight", "F8_E4M3", (rows, columns))
        return weight, PlannedTensor(f"{module}.weight_scale", "F32", ())

    def quantized(self, values: Floats) -> Quantized:
        scale = np.full((len(values), 1), self.scale, np.float32)
        return Quantized(evaluated("row_quants", values, scale, result=E4M3FN), scale)

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        return rows.quants, np.array([] if shape is None else [self.scale], np.float32)


class FusedExpertsFolder(QuantizedFolder):
    """Every matrix as e4m3fn, experts in fused tensors. inputs: fused tensor -> the scale of its activations."""

    def __init__(self, weights: ModelWeights, config: LlamaConfig, inputs: Mapping[str, float]) -> None:
        super().__init__(weights, config, self._form)
        self._inputs = inputs
        experts = [tensor for tensor in hf_tensors(config, weights.names) if tensor.layout == "experts"]
        self._fused = {name: tensor for tensor in experts for name in tensor.weights}
        self._forms: dict[str, Fp8Matrix] = {}

    def quantized_jobs(self, tensor: HfTensor) -> list[Job]:
        """One job for the experts of a layer, as every other matrix has."""
        return [self._experts_job(tensor)] if tensor.layout == "experts" else super().quantized_jobs(tensor)

    def matrices(self, name: str) -> list[Matrix]:
        """One for each weight: the experts of a layer share their scale."""
        if name not in self._fused:
            return super().matrices(name)
        return [Matrix(name, self._fused[name].name, 0, self.weights.shape(name)[0])]

    def _form(self, matrix: Matrix) -> MatrixForm:
        if matrix.weight not in self._fused:
            return Fp8Matrix(self.weights, (matrix,))
        return self._expert_form(self._fused[matrix.weight])

    def _expert_form(self, tensor: HfTensor) -> Fp8Matrix:
        if tensor.name not in self._forms:
            matrices = [matrix for name in tensor.weights for matrix in self.matrices(name)]
            self._forms[tensor.name] = Fp8Matrix(self.weights, matrices)
        return self._forms[tensor.name]

    def _experts_job(self, tensor: HfTensor) -> Job:
        form = self._expert_form(tensor)
        inputs = np.float32(self._inputs.get(_input_key(tensor.name), UNSCALED))

        def blocks() -> Iterator[Block]:
            for expert in range(tensor.shape[0]):
                scales = [np.array([number] if expert == 0 else [], np.float32) for number in (form.scale, inputs)]
                yield self._expert(form, tensor, expert), *scales

        scales = (PlannedTensor(f"{tensor.name}_{kind}_scale", "F32", ()) for kind in ("weight", "input"))
        return Job((PlannedTensor(tensor.name, "F8_E4M3", tensor.shape), *scales), blocks)

    def _expert(self, form: Fp8Matrix, tensor: HfTensor, expert: int) -> NDArray[Any]:
        """One expert in the file's orientation, [in, out], its matrices side by side, made of some rows at a time."""
        experts, *shape = tensor.shape
        found, column = np.empty(shape, E4M3FN.storage), 0
        for name in tensor.weights:
            rows, step = self.weights.shape(name)[0] // experts, self.weights.rows_at_once(name)
            for lo in range(expert * rows, (expert + 1) * rows, step):
                hi = min(lo + step, (expert + 1) * rows)
                found[:, column : column + hi - lo] = form.quantized(self.weights.rows(name, lo, hi)).quants.T
                column += hi - lo
        return found


def input_scales(checkpoint: Checkpoint) -> dict[str, float]:
    """Fused tensor, from `layers.` on -> the scale of its activations, where the source is such a folder."""
    found: dict[str, float] = {}
    for path, header in source_headers(checkpoint):
        match = _INPUT_SCALE.fullmatch(header.name)
        if match is not None:
            found[match.group(1)] = stored_scale(path, header)
    return found


def note_input_scales(request: ExportRequest) -> None:
    """What the experts' activations are divided by, in the ledger."""
    moe = request.checkpoint.config.moe
    if moe is None:
        return
    lacking = 2 * len(moe.layers) - len(input_scales(request.checkpoint))
    if lacking:
        what = f"{lacking} scales of the experts' activations are 1, which clips them at 448"
        reason = "TensorRT-LLM scales the activations of experts by stored numbers alone, and the source has none"
        request.note("default", "layers.N.moe", what, reason)


def _input_key(name: str) -> str:
    return name[name.index("layers.") :]

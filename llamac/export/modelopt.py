"""A Hugging Face folder in ModelOpt's form, `hf_quant_config.json` beside the weights: what TensorRT-LLM loads.

fp8: one scale for a matrix, activations scaled while it runs (no `input_scale` is made up); experts of Llama 4 are in
`modelopt_experts`. int4: ModelOpt's W4A16_AWQ with groups of 64 or 128, two outputs in a byte, and factors of one where
AWQ has scaled its activations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES
from llamac.models.cache_scales import CacheScales
from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import parse_quantization

from .compressed_tensors import wanted_cache_scales
from .folder_check import FolderCheck
from .hf_config import hf_model
from .hf_names import module_name
from .hf_plain import STORED, Floats
from .hf_writing import write_hf_folder
from .matrix_forms import MatrixForm, Quantized, check_group, symmetric_int4
from .modelopt_experts import Fp8Matrix, FusedExpertsFolder, input_scales, note_input_scales
from .quantized_jobs import Matrix, QuantizedFolder, note_kept
from .request import Check, ExportRequest
from .safetensors_writer import Block, Job, PlannedTensor

FILE = "hf_quant_config.json"


def write(request: ExportRequest, place: Path) -> None:
    """A Hugging Face folder whose matrices are quantized, and the file that says how."""
    folder, scales = _folder(request), wanted_cache_scales(request)
    jobs = folder.jobs() + [_scale_job(folder.config, layer, found) for layer, found in scales.items()]
    note_kept(request, folder.weights)
    note_input_scales(request)
    settings = quantization_settings(request.quantize, folder.config, bool(scales))
    (place / FILE).write_text(json.dumps(settings, indent=4) + "\n", "utf-8")
    write_hf_folder(request, place, folder.config, jobs)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read back: the config, every weight bit for bit, and logits."""
    folder = _folder(request)
    yield from FolderCheck(request, place, folder.config, folder.meant()).run()
    reason = "it needs an NVIDIA GPU; the folder's layout is compared with ModelOpt's published one"
    request.note("note", "check", "TensorRT-LLM was not run", reason)


def quantization_settings(scheme: str, config: LlamaConfig, cache: bool) -> dict[str, Any]:
    """What ModelOpt's own export writes (its `hf_quant_config.json`, version 0.19 and later)."""
    wanted = parse_quantization(scheme)
    found: dict[str, Any] = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8" if cache else None}
    if wanted.scheme == "int4":
        found |= {"quant_algo": "W4A16_AWQ", "group_size": wanted.group}
        found |= {"has_zero_point": False, "pre_quant_scale": True}
    found["exclude_modules"] = ["lm_head"] if config.vision is None else ["*lm_head"]
    if config.moe is not None:
        found["exclude_modules"].append("*router*")
    if config.vision is not None:
        found["exclude_modules"] += ["*vision_model*", "*multi_modal_projector*"]
    # TensorRT-LLM takes the file for what it is only when it names this producer.
    return {"producer": {"name": "modelopt", "version": f"llamac-{version('llamac')}"}, "quantization": found}


def _folder(request: ExportRequest) -> QuantizedFolder:
    source = request.checkpoint.config
    wanted = parse_quantization(request.quantize)
    if source.moe is not None and wanted.scheme != "fp8":
        reason = "no ModelOpt checkpoint of Llama 4 with experts of int4 is published, so their layout is not known"
        hint = "choose fp8, or export to compressed-tensors, which has experts of int4"
        raise LlamacError("LLC0951", "layers.N.moe", reason, hint)
    config = hf_model(source, source.dtype)
    weights = request.weights(config.rope_style)
    if source.moe is not None:
        return FusedExpertsFolder(weights, config, input_scales(request.checkpoint))

    def form_of(matrix: Matrix) -> MatrixForm:
        if wanted.scheme == "fp8":
            return Fp8Matrix(weights, (matrix,))
        fused = not matrix.weight.endswith((".o", ".down"))
        return PairedInt4(wanted.group, None if fused else STORED[config.dtype])

    return QuantizedFolder(weights, config, form_of)


@dataclass(frozen=True)
class PairedInt4:
    """4-bit integers, outputs 2r and 2r + 1 in byte r, the first in its low half, with an f16 scale for each group.

    factors: the element type of the factors of activations, where TensorRT-LLM wants them: o and down, which are not
    joined with others.
    """

    group: int
    factors: str | None
    row_multiple: int = 2

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        check_group(module, columns, self.group)
        if rows % 2:
            reason = f"{rows} outputs do not fill bytes of two"
            raise LlamacError("LLC0953", module, reason, "choose fp8")
        found = (
            PlannedTensor(f"{module}.weight", "U8", (rows // 2, columns)),
            PlannedTensor(f"{module}.weight_scale", "F16", (rows, columns // self.group)),
        )
        if self.factors is None:
            return found
        return *found, PlannedTensor(f"{module}.pre_quant_scale", self.factors, (columns,))

    def quantized(self, values: Floats) -> Quantized:
        return symmetric_int4(values, self.group)

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        nibbles = rows.quants.view(np.uint8) & 15
        found = (nibbles[0::2] | (nibbles[1::2] << 4), rows.scales)
        if self.factors is None:
            return found
        dtype = DTYPES[next(name for name, stored in STORED.items() if stored == self.factors)].storage
        return *found, np.ones(0 if shape is None else shape[1], dtype)


def _scale_job(config: LlamaConfig, layer: int, scales: CacheScales) -> Job:
    """The scales of the cache, at the products that make keys and values."""
    places = [module_name(config, f"layers.{layer}.attn.{kind}") for kind in "kv"]
    tensors = tuple(PlannedTensor(f"{place}.{kind}_scale", "F32", ()) for place, kind in zip(places, "kv", strict=True))

    def blocks() -> Iterator[Block]:
        yield tuple(np.array([number], np.float32) for number in (scales.key, scales.value))

    return Job(tensors, blocks)

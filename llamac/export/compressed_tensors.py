"""A Hugging Face folder in compressed-tensors form: what vLLM serves, and Transformers with that library loads.

fp8: a scale for each row, activations quantized for each token while it runs. int8: the same with integers. int4:
groups of inputs, activations stay floats. The embedding, the head, routers and image encoders stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamac.errors import LlamacError
from llamac.models.cache_scales import CacheScales, cache_scales
from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import parse_quantization

from .folder_check import FolderCheck
from .hf_config import hf_model
from .hf_names import module_name
from .hf_writing import write_hf_folder
from .matrix_forms import Fp8Rows, Int8Rows, MatrixForm, PackedInt4
from .quantized_jobs import QuantizedFolder, note_kept
from .request import Check, ExportRequest
from .safetensors_writer import Block, Job, PlannedTensor
from .transformers_check import transformers_checks

KV = "kv"
FORMATS = {"fp8": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}
"""Scheme -> what the library calls its files."""


def write(request: ExportRequest, place: Path) -> None:
    """A Hugging Face folder whose matrices are quantized, with its `quantization_config`."""
    folder, scales = _folder(request), wanted_cache_scales(request)
    jobs = folder.jobs() + [_scale_job(folder.config, layer, found) for layer, found in scales.items()]
    note_kept(request, folder.weights)
    if request.quantize.startswith("int4"):
        reason = "a consumer that computes in bf16 rounds them; in float16 they are exact"
        request.note("note", "layers.N", "scales are f16", reason)
    settings = quantization_config(request.quantize, folder.config, bool(scales))
    write_hf_folder(request, place, folder.config, jobs, settings)


def check(request: ExportRequest, place: Path) -> Iterator[Check]:
    """Read back: config, every weight against the compiler's own rounding, logits, and transformers on the folder."""
    folder = _folder(request)
    yield from FolderCheck(request, place, folder.config, folder.meant()).run()
    if folder.config.moe is not None:
        reason = "it has no form for quantized experts of Llama 4; vLLM takes them one by one, as they are written"
        request.note("note", "check", "transformers was not run", reason)
        return
    yield from transformers_checks(request, place, "compressed-tensors")


def _folder(request: ExportRequest) -> QuantizedFolder:
    config = hf_model(request.checkpoint.config, request.checkpoint.config.dtype)
    form = matrix_form(request.quantize)
    return QuantizedFolder(request.weights(config.rope_style), config, lambda matrix: form)


def matrix_form(scheme: str) -> MatrixForm:
    """How a matrix of a scheme is stored."""
    wanted = parse_quantization(scheme)
    if wanted.scheme == "fp8":
        return Fp8Rows()
    return Int8Rows() if wanted.scheme == "int8" else PackedInt4(wanted.group, not wanted.asymmetric)


def quantization_config(scheme: str, config: LlamaConfig, cache: bool) -> dict[str, Any]:
    """As compressed-tensors 0.20 writes it."""
    wanted = parse_quantization(scheme)
    kind = "float" if wanted.scheme == "fp8" else "int"
    bits, group = (4, wanted.group) if wanted.scheme == "int4" else (8, None)
    tokens = None if wanted.scheme == "int4" else _arguments(8, kind, True, None, "token", dynamic=True)
    weights = _arguments(bits, kind, not wanted.asymmetric, group, "group" if group else "channel")
    form = FORMATS[wanted.scheme]
    linear = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": tokens,
        "output_activations": None,
        "format": form,
    }
    return {
        "config_groups": {"group_0": linear},
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": _arguments(8, "float", True, None, "tensor") if cache else None,
        "format": form,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": left_out(config),
        "moe_sparsity_config": None,
    }


def left_out(config: LlamaConfig) -> list[str]:
    """The linear modules that are not quantized, by name or by pattern where a model has many."""
    found = ["lm_head"] if config.vision is None else ["re:.*lm_head"]
    if config.moe is not None:
        found.append("re:.*router")
    if config.vision is not None:
        found += ["re:.*vision_model.*", "re:.*multi_modal_projector.*"]
    return found


def _arguments(
    bits: int, kind: str, symmetric: bool, group: int | None, strategy: str, dynamic: bool = False
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "group_size": group,
        "strategy": strategy,
        "dynamic": dynamic,
    }


def wanted_cache_scales(request: ExportRequest) -> dict[int, CacheScales]:
    """The source's scales of the cache, which are never dropped; LLC0950 where some are asked for and it has none."""
    scales = cache_scales(request.checkpoint)
    kind = request.options.get(KV)
    if kind not in (None, "fp8"):
        raise LlamacError("LLC0950", f"--option {KV}", f"'{kind[:40]}' is no form of a cache", "write kv=fp8")
    if kind is not None and not scales:
        reason = "the source has no scales of a quantized cache, and none are made up"
        hint = f"leave {KV} out: consumers quantize a cache without scales by an option of their own"
        raise LlamacError("LLC0950", f"--option {KV}", reason, hint)
    return scales


def _scale_job(config: LlamaConfig, layer: int, scales: CacheScales) -> Job:
    place = module_name(config, f"layers.{layer}.attn.q").removesuffix(".q_proj")
    tensors = tuple(PlannedTensor(f"{place}.{kind}_scale", "F32", (1,)) for kind in "kv")

    def blocks() -> Iterator[Block]:
        yield tuple(np.array([number], np.float32) for number in (scales.key, scales.value))

    return Job(tensors, blocks)

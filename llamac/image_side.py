"""The image encoder of a model, from its config to a kernel-level module."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.ir.evaluator import RowReader
from llamac.ir.graph import Module
from llamac.models.checkpoint import StoredTensor
from llamac.models.image_graph import build_image_graphs
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.passes.image_pipeline import (
    CAST,
    EncoderCounts,
    cast_encoder,
    gpu_image_pipeline,
    image_pipeline,
    raise_encoder,
)
from llamac.passes.pipelines import Quantization
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.image_validation import ImageValidator, Pictures
from llamac.transform.pipeline import PassRecord, run_pipeline
from llamac.transform.validation import Verdict

FIRST = "vision.patch"
"""The weight that every encoder begins with: a checkpoint without it has text weights only."""


def has_encoder(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether there is an image encoder to compile."""
    return config.vision is not None and FIRST in tensors


def encoder_counts(config: LlamaConfig) -> EncoderCounts:
    """What the fusions must find in the encoder of `config`."""
    vision = config.vision
    if isinstance(vision, Llama4Vision):
        # Beside the blocks: patches, the adapter's two products and the projection; two norms; two activations.
        return EncoderCounts(vision.layers, vision.layers, adapter=4, gelus=2, norms=2)
    assert isinstance(vision, MllamaVision)
    layers = vision.layers + vision.global_layers
    return EncoderCounts(
        layers,
        rotated=0,
        adapter=2,
        gelus=0,
        norms=2,
        gated=vision.global_layers,
        places=4,
        interleaved=int(len(vision.taps) > 1),
        cross=len(config.cross_layers),
    )


def most_vision_rows(config: LlamaConfig) -> int:
    """The most vision tokens of one picture, where an encoder works on whole pictures; else 1."""
    vision = config.vision
    return vision.max_tiles * vision.tile_tokens if isinstance(vision, MllamaVision) else 1


def pictures_of(config: LlamaConfig, seed: int) -> Pictures:
    """What the encoder of a small model is validated on: for whole pictures, one tile, half of them, and all."""
    vision = config.vision
    if not isinstance(vision, MllamaVision):
        return Pictures(seed)
    tiles = {number: high * wide for number, (high, wide) in enumerate(vision.supported_aspect_ratios, 1)}
    by_count = {count: number for number, count in tiles.items()}
    return Pictures(seed, tuple((number, count) for count, number in by_count.items()), vision.tile_tokens)


def validate_encoder(
    config: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    quantization: Quantization,
    kv_dtype: str,
    read_rows: RowReader,
    seed: int,
    page: int,
    kind: str = "cpu",
) -> list[Verdict]:
    """Verdicts of the image pipeline on a small model (LLC0507 for a pass that is wrong); none without an encoder."""
    module = build_image_graphs(config, tensors) if has_encoder(config, tensors) else None
    if module is None:
        return []
    pipeline = image_pipeline if kind == "cpu" else gpu_image_pipeline
    steps = pipeline(encoder_counts(config), quantization, kv_dtype, most_vision_rows(config), page)
    return ImageValidator(read_rows, pictures_of(config, seed)).run(module, steps)


def compile_encoder(
    config: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    quantization: Quantization,
    kv_dtype: str,
    context: PassContext,
    kind: str = "cpu",
) -> tuple[Module, list[PassRecord]] | None:
    """The kernel-level module of the encoder and what its passes did; None for a model without one."""
    module = build_image_graphs(config, tensors) if has_encoder(config, tensors) else None
    if module is None:
        return None
    _note_kept(tensors, quantization, context)
    pipeline = image_pipeline if kind == "cpu" else gpu_image_pipeline
    steps = pipeline(encoder_counts(config), quantization, kv_dtype, most_vision_rows(config))
    return module, run_pipeline(module, steps, context)


def raised_encoder(
    config: LlamaConfig, tensors: Mapping[str, StoredTensor], quantization: Quantization, context: PassContext
) -> Module:
    """The model-level module of the encoder of a model that has one: what other systems' graphs are made of."""
    module = build_image_graphs(config, tensors)
    assert module is not None
    _note_kept(tensors, quantization, context)
    run_pipeline(module, [*raise_encoder(encoder_counts(config)), *cast_encoder(quantization)], context)
    return module


def _note_kept(tensors: Mapping[str, StoredTensor], quantization: Quantization, context: PassContext) -> None:
    """Say that integers are for the text model alone."""
    if quantization.scheme not in ("keep", *CAST):
        stored = tensors[FIRST].encoding
        reason = f"{quantization} is for the text model: pictures are encoded once, by products of many rows"
        context.ledger.append(LedgerEntry("kept", "vision", f"the image encoder stays {stored}", reason))

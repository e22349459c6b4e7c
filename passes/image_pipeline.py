"""The table of contents of the image side: which passes an image encoder goes through, in which order."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.transform.pipeline import Step

from .canonicalize import Canonicalize
from .cast_weights import CastWeights
from .dedupe_ops import DedupeOps
from .eliminate_dead import EliminateDead
from .enter_level import EnterKernel, EnterModel
from .fold_casts import FoldCasts
from .fold_constants import FoldConstants
from .fold_interleave import FoldInterleave
from .fuse_bias import FuseBias
from .fuse_fixed_rope import FuseFixedRope
from .fuse_full_attention import FuseFullAttention
from .fuse_gated_add import FuseGatedAdd
from .fuse_gelu import FuseGelu
from .fuse_layer_norm import FuseLayerNorm
from .fuse_rearrange import FuseRearrange
from .fuse_residual import FuseResidual
from .fuse_rms_norm import FuseRmsNorm
from .lower_encoder_attention import LowerEncoderAttention
from .lower_image_cache import LowerImageCache
from .lower_image_rows import LowerImageRows
from .lower_kv_cache import PAGE
from .pack_rows import PackRows
from .pack_weights import PackWeights
from .pipelines import Quantization
from .plan_memory import PlanMemory
from .quantize_kv import float_kv
from .raise_class_token import RaiseClassToken
from .raise_linear import RaiseLinear
from .raise_padding import RaisePadding
from .raise_places import RaisePlaces
from .roll_layers import RollLayers
from .select_kernels import SelectKernels
from .take_one_tile import TakeOneTile
from .widen_activations import WidenActivations

CAST = ("f32", "f16", "bf16")
"""The schemes that an encoder's matrices follow; with the others they stay as they are stored."""


@dataclass(frozen=True)
class EncoderCounts:
    """What the fusions must find in an image encoder.

    layers: all its blocks; rotated: those with rotation; gated: those whose terms have a gate. adapter: linears outside
    the blocks; gelus, norms: those outside the blocks. places: tables of what tiles add. interleaved: 1 where features
    are interleaved, else 0. cross: layers of the text model that attend to the tokens.
    """

    layers: int
    rotated: int
    adapter: int
    gelus: int
    norms: int
    gated: int = 0
    places: int = 0
    interleaved: int = 0
    cross: int = 0


def image_pipeline(model: EncoderCounts, q: Quantization, kv_dtype: str, rows: int, page: int = PAGE) -> list[Step]:
    """Everything between the captured encoder and C; `rows` is the most vision tokens of a picture."""
    return [*raise_encoder(model), *cast_encoder(q), *lower_encoder(model, kv_dtype, rows, page, q.wide)]


def raise_encoder(model: EncoderCounts) -> list[Step]:
    """Captured -> model: rows of one tile, and one op for each idea."""
    layers = model.layers
    return [
        Step(TakeOneTile()),
        Step(Canonicalize()),
        Step(DedupeOps()),
        Step(RaiseLinear(), {"linear": 6 * layers + model.adapter + 2 * model.cross}),
        Step(FuseLayerNorm(), {"layer_norm": 2 * layers + model.norms}),
        Step(FuseRmsNorm(), {"rms_norm": model.cross}),
        Step(FuseGelu(), {"gelu": layers + model.gelus}),
        Step(FuseGatedAdd(), {"gated_add": 2 * model.gated}),
        Step(FuseFixedRope(), {"rope": 2 * model.rotated}),
        Step(FuseFullAttention(), {"full_attention": layers}),
        Step(RaiseClassToken(), {"class_token": 1}),
        Step(RaisePlaces(), {"places": model.places}),
        Step(RaisePadding(), {"padded": model.places and 1, "padding": layers if model.places else 0}),
        Step(Canonicalize()),
        Step(DedupeOps()),
        Step(FoldConstants()),
        Step(EliminateDead()),
        Step(EnterModel()),
        Step(WidenActivations()),
        Step(FoldCasts()),
        Step(DedupeOps()),
        Step(FoldInterleave(), {"interleave": model.interleaved}),
    ]


def cast_encoder(q: Quantization) -> list[Step]:
    """Matrices -> the wanted scheme, where it is a float."""
    return [Step(CastWeights(q.scheme))] if q.scheme in CAST else []


def lower_encoder(model: EncoderCounts, kv_dtype: str, rows: int, page: int, wide: bool = False) -> list[Step]:
    """Model -> kernel, for the CPU backend."""
    layers = model.layers
    return [
        Step(LowerEncoderAttention(), {"attention": layers}),
        Step(LowerImageCache(float_kv(kv_dtype), page), {"layer": model.cross}),
        Step(FuseRearrange()),
        Step(SelectKernels(pairs=not wide)),
        Step(PackWeights()),
        Step(FuseBias()),
        Step(FuseResidual(), {"residual": 2 * (layers - model.gated)}),
        Step(DedupeOps()),
        Step(EliminateDead()),
        Step(EnterKernel()),
        Step(RollLayers()),
        Step(PlanMemory(rows)),
    ]


def gpu_image_pipeline(model: EncoderCounts, q: Quantization, kv_dtype: str, rows: int, page: int = PAGE) -> list[Step]:
    """Everything between the captured encoder and its launches on a GPU; arguments as in `image_pipeline`."""
    return [*raise_encoder(model), *cast_encoder(q), *lower_encoder_to_gpu(model, kv_dtype, page)]


def lower_encoder_to_gpu(model: EncoderCounts, kv_dtype: str, page: int) -> list[Step]:
    """Model -> kernel, for the GPU backend: eight kernels a block, seven without rotation, two more with gates."""
    norms = 2 * model.layers + model.norms
    return [
        Step(LowerEncoderAttention(), {"attention": model.layers}),
        Step(LowerImageCache(float_kv(kv_dtype), page), {"layer": model.cross}),
        Step(FuseRearrange()),
        Step(SelectKernels(pairs=False)),
        Step(PackRows()),
        Step(LowerImageRows(), {"attention": model.layers, "norm": norms}),
        Step(DedupeOps()),
        Step(EliminateDead()),
        Step(EnterKernel()),
    ]

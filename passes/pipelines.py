"""The compiler's table of contents: which passes run, in which order, for which target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean
from llamac.transform.base import Pass
from llamac.transform.pipeline import Step

from .canonicalize import Canonicalize
from .cast_weights import CastWeights
from .dedupe_ops import DedupeOps
from .eliminate_dead import EliminateDead
from .enter_level import EnterKernel, EnterModel
from .fold_constants import FoldConstants
from .fold_rope import FoldRope
from .fuse_cross_attention import FuseCrossAttention
from .fuse_gate_up import FuseGateUp
from .fuse_gated_add import FuseGatedAdd
from .fuse_gqa import FuseGqa
from .fuse_qkv import FuseQkv
from .fuse_quantize_rows import FuseQuantizeRows
from .fuse_residual import FuseResidual
from .fuse_rms_norm import FuseRmsNorm
from .fuse_rope import FuseRope
from .fuse_swiglu import FuseSwiglu
from .fuse_temperature import FuseTemperature
from .lower_kv_cache import PAGE, LowerKvCache
from .lower_moe_routing import LowerMoeRouting
from .pack_weights import PackWeights
from .plan_memory import PlanMemory
from .quantize_fp8 import QuantizeFp8
from .quantize_int4 import QuantizeInt4
from .quantize_int8 import QuantizeInt8
from .raise_linear import RaiseLinear
from .raise_merge_rows import RaiseMergeRows
from .raise_moe import RaiseMoe
from .roll_layers import RollLayers
from .select_kernels import SelectKernels
from .widen_activations import WidenActivations

SCHEMES = ("keep", "f32", "f16", "bf16", "fp8", "int8", "int4")


@dataclass(frozen=True)
class Quantization:
    """What `--quantize SCHEME[:gN][:asym]` asks for."""

    scheme: str = "keep"
    group: int = 32
    asymmetric: bool = False

    def __str__(self) -> str:
        group = f":g{self.group}" if self.group != 32 else ""
        return f"{self.scheme}{group}{':asym' if self.asymmetric else ''}"


def parse_quantization(text: str) -> Quantization:
    """The inverse of `str` (LLC0104 for anything else, with the near match)."""
    scheme, *options = text.split(":")
    if scheme not in SCHEMES:
        hint = f"choose {', '.join(SCHEMES)}"
        raise LlamacError("LLC0104", "--quantize", f"unknown scheme '{scheme}'{did_you_mean(scheme, SCHEMES)}", hint)
    group, asymmetric = 32, False
    for option in options:
        if option == "asym":
            asymmetric = True
        elif option in ("g32", "g64", "g128"):
            group = int(option[1:])
        else:
            raise LlamacError("LLC0104", "--quantize", f"unknown option '{option}'", "use :g32, :g64, :g128 or :asym")
    if options and scheme not in ("int8", "int4"):
        raise LlamacError("LLC0104", "--quantize", f"'{scheme}' takes no options", "only int8 and int4 have groups")
    return Quantization(scheme, group, asymmetric)


@dataclass(frozen=True)
class LayerCounts:
    """How many layers a model has, and how many of each kind: what the fusions must find.

    rotated: with RoPE. normed: with a norm of q and k. tempered: with attention temperature. mixtures: with experts.
    cross: those that attend to vision tokens instead of the text. merges: 1 when pictures come in among the embedded
    text, else 0.
    """

    layers: int
    rotated: int
    normed: int = 0
    tempered: int = 0
    mixtures: int = 0
    cross: int = 0
    merges: int = 0

    @property
    def own(self) -> int:
        """Layers that attend to the text."""
        return self.layers - self.cross


def plain_layers(layers: int) -> LayerCounts:
    """The counts of a dense Llama."""
    return LayerCounts(layers, layers)


def raise_and_fuse(model: LayerCounts) -> list[Step]:
    """Captured -> model: every idea of the paper found once where it must be."""
    layers, own, cross = model.layers, model.own, model.cross
    # A mixture has a router beside its shared expert's three products; k and v of a cross layer are made elsewhere.
    return [
        Step(Canonicalize()),
        Step(RaiseLinear(), {"linear": 7 * own + 5 * cross + model.mixtures + 1}),
        Step(FuseRmsNorm(), {"rms_norm": 2 * own + 3 * cross + 1, "unit_rms_norm": 2 * model.normed}),
        Step(FuseRope(), {"rope": 2 * model.rotated}),
        Step(FuseTemperature(), {"temper": model.tempered}),
        Step(FuseCrossAttention(), {"cross_attention": cross}),
        Step(FuseGatedAdd(), {"gated_add": 2 * cross}),
        Step(FuseGqa(), {"attention": own}),
        Step(FuseSwiglu(), {"swiglu": layers + model.mixtures}),
        Step(RaiseMoe(), {"moe": model.mixtures}),
        Step(RaiseMergeRows(), {"merge_rows": model.merges}),
        Step(DedupeOps()),
        Step(FoldConstants()),
        Step(EliminateDead()),
        Step(EnterModel()),
    ]


def optimize_model(model: LayerCounts) -> list[Step]:
    """Model level: activations in f32, conventions folded into weights, experts only where they are wanted."""
    return [
        Step(WidenActivations()),
        Step(FoldRope()),
        Step(LowerMoeRouting(), {"moe": model.mixtures}),
        Step(DedupeOps()),
    ]


def quantize(q: Quantization) -> list[Step]:
    """Weights -> the wanted scheme. Integer schemes hold the embedding and the head in at least 8 bits."""
    passes: Mapping[str, list[Pass]] = {
        "keep": [],
        "f32": [CastWeights("f32")],
        "f16": [CastWeights("f16")],
        "bf16": [CastWeights("bf16")],
        "fp8": [QuantizeFp8()],
        "int8": [QuantizeInt8(group=q.group, asymmetric=q.asymmetric)],
        "int4": [QuantizeInt4("blocks", q.group, q.asymmetric), QuantizeInt8("tables")],
    }
    return [Step(p) for p in passes[q.scheme]]


def join_projections(model: LayerCounts, uniform: bool) -> list[Step]:
    """q, k and v in one product, gate and up in one; `uniform` when no layer mixes schemes."""
    return [
        Step(FuseQkv(), {"qkv": model.own} if uniform else {}),
        Step(FuseGateUp(), {"gate_up": model.layers} if uniform else {}),
        Step(EliminateDead()),
    ]


def lower_to_cpu(model: LayerCounts, kv_dtype: str, max_tokens: int, page: int) -> list[Step]:
    """Model -> kernel, for the CPU backend."""
    return [
        Step(LowerKvCache(kv_dtype, page), {"attention": model.own, "cross_attention": model.cross}),
        Step(SelectKernels()),
        Step(PackWeights(), {}),
        Step(FuseResidual(), {"residual": 2 * model.own}),
        Step(DedupeOps()),
        Step(FuseQuantizeRows()),
        Step(EliminateDead()),
        Step(EnterKernel()),
        Step(RollLayers()),
        Step(PlanMemory(max_tokens)),
    ]


def cpu_pipeline(
    model: LayerCounts, q: Quantization, kv_dtype: str, max_tokens: int, uniform: bool = True, page: int = PAGE
) -> list[Step]:
    """Everything between capture and C. `uniform` says that no layer mixes schemes; `page` is the cache's page size."""
    return [
        *raise_and_fuse(model),
        *optimize_model(model),
        *quantize(q),
        *join_projections(model, uniform or q.scheme not in ("keep", "fp8")),
        *lower_to_cpu(model, kv_dtype, max_tokens, page),
    ]

"""The compiler's table of contents: which passes run, in which order, for which target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean
from llamac.target import SIDE_OF_KIND
from llamac.transform.base import Pass
from llamac.transform.pipeline import Step

from .canonicalize import Canonicalize
from .cast_weights import CastWeights
from .dedupe_ops import DedupeOps
from .eliminate_dead import EliminateDead
from .enter_level import EnterKernel, EnterModel
from .fold_constants import FoldConstants
from .fold_rope import FoldRope
from .fuse_add_rms_norm import FuseAddRmsNorm
from .fuse_cross_attention import FuseCrossAttention
from .fuse_gate_up import FuseGateUp
from .fuse_gated_add import FuseGatedAdd
from .fuse_gated_linear import FuseGatedLinear
from .fuse_gqa import FuseGqa
from .fuse_head import FuseHead
from .fuse_qkv import FuseQkv
from .fuse_qkv_append import FuseQkvAppend
from .fuse_quantize_rows import FuseQuantizeRows
from .fuse_residual import FuseResidual
from .fuse_rms_norm import FuseRmsNorm
from .fuse_rope import FuseRope
from .fuse_row_append import FuseRowAppend
from .fuse_row_norm import FuseRowNorm
from .fuse_row_residual import FuseRowResidual
from .fuse_row_swiglu import FuseRowSwiglu
from .fuse_swiglu import FuseSwiglu
from .fuse_temperature import FuseTemperature
from .fuse_vision_rows import FuseVisionRows
from .lower_kv_cache import PAGE, LowerKvCache
from .lower_moe_routing import LowerMoeRouting
from .pack_rows import PackRows
from .pack_weights import PackWeights
from .plan_memory import PlanMemory
from .quantize_fp8 import QuantizeFp8
from .quantize_int4 import QuantizeInt4
from .quantize_int8 import QuantizeInt8
from .quantize_kv import QUANTIZED_KV, QuantizeKv, float_kv
from .raise_linear import RaiseLinear
from .raise_merge_rows import RaiseMergeRows
from .raise_moe import RaiseMoe
from .roll_layers import RollLayers
from .round_activations import RoundActivations
from .select_kernels import SelectKernels
from .shard_tensors import ShardTensors
from .widen_activations import WidenActivations

SCHEMES = ("keep", "f32", "f16", "bf16", "fp8", "int8", "int4")
WIDE, EIGHT = ":f32-activations", ":fp8-activations"


@dataclass(frozen=True)
class Quantization:
    """What `--quantize SCHEME[:gN][:asym][:f32-activations|:fp8-activations]` asks for.

    wide: inputs of bf16 and fp8 weights stay in f32 on a CPU, instead of being rounded to bf16. eight: inputs of fp8
    weights are rounded to 8-bit floats in the large steps of a GPU.
    """

    scheme: str = "keep"
    group: int = 32
    asymmetric: bool = False
    wide: bool = False
    eight: bool = False

    def __str__(self) -> str:
        group = f":g{self.group}" if self.group != 32 else ""
        activations = WIDE if self.wide else EIGHT if self.eight else ""
        return f"{self.scheme}{group}{':asym' if self.asymmetric else ''}{activations}"


def parse_quantization(text: str) -> Quantization:
    """The inverse of `str` (LLC0104 for anything else, with the near match)."""
    scheme, *options = text.split(":")
    if scheme not in SCHEMES:
        hint = f"choose {', '.join(SCHEMES)}"
        raise LlamacError("LLC0104", "--quantize", f"unknown scheme '{scheme}'{did_you_mean(scheme, SCHEMES)}", hint)
    group, asymmetric, wide, eight = 32, False, False, False
    for option in options:
        if option == "asym":
            asymmetric = True
        elif f":{option}" == WIDE:
            wide = True
        elif f":{option}" == EIGHT:
            eight = True
        elif option in ("g32", "g64", "g128"):
            group = int(option[1:])
        else:
            raise LlamacError(
                "LLC0104",
                "--quantize",
                f"unknown option '{option}'",
                "use :g32, :g64, :g128, :asym, :f32-activations or :fp8-activations",
            )
    if len(options) > wide + eight and scheme not in ("int8", "int4"):
        raise LlamacError("LLC0104", "--quantize", f"'{scheme}' takes no groups", "only int8 and int4 have them")
    if wide and scheme not in ("keep", "bf16", "fp8"):
        reason = f"'{scheme}' weights are never multiplied with activations in bf16"
        raise LlamacError("LLC0104", "--quantize", reason, "leave :f32-activations out")
    if eight and (wide or scheme not in ("keep", "fp8")):
        reason = f"'{text[:60]}' asks for activations in 8-bit floats without weights in them, or for two types of them"
        raise LlamacError("LLC0104", "--quantize", reason, "fp8:fp8-activations is such a recipe")
    return Quantization(scheme, group, asymmetric, wide, eight)


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


@dataclass(frozen=True)
class Share:
    """What of a model a pipeline makes: rank number `rank` of `ranks`; all of it for one rank."""

    ranks: int = 1
    rank: int = 0


WHOLE = Share()


def shard(model: LayerCounts, share: Share) -> list[Step]:
    """A model -> a rank's share of it; nothing for one rank."""
    if share.ranks == 1:
        return []
    counts = {"attention": model.own, "mlp": model.layers + model.mixtures, "all_reduce": 2 * model.layers}
    return [Step(ShardTensors(share.ranks, share.rank), counts)]


def join_projections(model: LayerCounts, uniform: bool) -> list[Step]:
    """q, k and v in one product, gate and up in one; `uniform` when no layer mixes schemes."""
    return [
        Step(FuseQkv(), {"qkv": model.own} if uniform else {}),
        Step(FuseGateUp(), {"gate_up": model.layers} if uniform else {}),
        Step(EliminateDead()),
    ]


def to_kernels(model: LayerCounts, q: Quantization, uniform: bool, share: Share = WHOLE) -> list[Step]:
    """Captured -> model level, as every backend with kernels of its own takes it: weights in their scheme, what a rank
    has of them, projections joined. `uniform` says that no layer of the source mixes schemes.
    """
    return [
        *raise_and_fuse(model),
        *optimize_model(model),
        *quantize(q),
        *shard(model, share),
        *join_projections(model, uniform or q.scheme not in ("keep", "fp8")),
    ]


def lower_cache(model: LayerCounts, kv_dtype: str, page: int) -> list[Step]:
    """One sequence with past -> the ragged step over a cache of `kv_dtype`, of which int8 and fp8 are quantized."""
    counts = {"attention": model.own, "cross_attention": model.cross}
    lowered = Step(LowerKvCache(float_kv(kv_dtype), page), counts)
    return [lowered, Step(QuantizeKv(QUANTIZED_KV[kv_dtype]))] if kv_dtype in QUANTIZED_KV else [lowered]


def lower_to_cpu(
    model: LayerCounts, kv_dtype: str, max_tokens: int, page: int, wide: bool = False, share: Share = WHOLE
) -> list[Step]:
    """Model -> kernel, for the CPU backend. A rank of several cannot rank logits of which it has a part."""
    return [
        *lower_cache(model, kv_dtype, page),
        Step(SelectKernels(pairs=not wide)),
        Step(PackWeights(), {}),
        Step(FuseResidual(), {"residual": 2 * model.own}),
        Step(DedupeOps()),
        Step(FuseQuantizeRows()),
        Step(FuseGatedLinear()),
        Step(FuseQkvAppend()),
        Step(EliminateDead()),
        Step(EnterKernel()),
        Step(RollLayers()),
        *([Step(FuseHead(), {"head": 1})] if share == WHOLE else []),
        Step(PlanMemory(max_tokens)),
    ]


def cpu_pipeline(
    model: LayerCounts,
    q: Quantization,
    kv_dtype: str,
    max_tokens: int,
    uniform: bool = True,
    page: int = PAGE,
    share: Share = WHOLE,
) -> list[Step]:
    """Everything between capture and C. `uniform` says that no layer mixes schemes; `page` is the cache's page size."""
    return [
        *to_kernels(model, q, uniform, share),
        *lower_to_cpu(model, kv_dtype, max_tokens, page, q.wide, share),
    ]


def lower_to_gpu(model: LayerCounts, kv_dtype: str, page: int, share: Share = WHOLE, eight: bool = False) -> list[Step]:
    """Model -> kernel, for the GPU backend: five kernels a layer, nine with experts."""
    layers, mixtures = model.layers, model.mixtures
    return [
        *lower_cache(model, kv_dtype, page),
        Step(SelectKernels(pairs=False)),
        Step(PackRows(), {"experts": 2 * mixtures}),
        Step(FuseVisionRows(), {"attend": model.cross}),
        Step(FuseRowNorm(), {"norm": 2 * layers + 1}),
        Step(FuseRowSwiglu(), {"swiglu": layers}),
        Step(FuseRowAppend(), {"append": model.own}),
        Step(FuseRowResidual(share.rank), {"residual": 2 * model.own}),
        *([Step(RoundActivations())] if eight else []),
        Step(DedupeOps()),
        Step(EliminateDead()),
        Step(EnterKernel()),
    ]


def gpu_pipeline(
    model: LayerCounts,
    q: Quantization,
    kv_dtype: str,
    uniform: bool = True,
    page: int = PAGE,
    share: Share = WHOLE,
) -> list[Step]:
    """Everything between capture and the launch plan of a GPU; arguments as in `cpu_pipeline`."""
    return [
        *to_kernels(model, q, uniform, share),
        *lower_to_gpu(model, kv_dtype, page, share, q.eight),
    ]


def onnx_pipeline(model: LayerCounts, q: Quantization, uniform: bool = True, joined: bool = False) -> list[Step]:
    """Everything between capture and ONNX. `joined`: for kernels that take q, k and v at once, sums with norms."""
    if joined:
        return [*to_kernels(model, q, uniform), Step(FuseAddRmsNorm()), Step(EliminateDead())]
    return [*raise_and_fuse(model), *optimize_model(model), *quantize(q), Step(EliminateDead())]


def target_pipeline(
    kind: str,
    model: LayerCounts,
    q: Quantization,
    kv_dtype: str,
    max_tokens: int,
    uniform: bool = True,
    page: int = PAGE,
    share: Share = WHOLE,
) -> list[Step]:
    """The pipeline of a kind of target, or of a side of the compiler: "cpu", "gpu", "onnx"; TVM takes that of CPUs."""
    side = SIDE_OF_KIND.get(kind, kind)
    if side == "gpu":
        return gpu_pipeline(model, q, kv_dtype, uniform, page, share)
    if side == "onnx":
        return onnx_pipeline(model, q, uniform, joined=True)
    return cpu_pipeline(model, q, kv_dtype, max_tokens, uniform, page, share)

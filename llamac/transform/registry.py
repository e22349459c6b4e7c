"""Every pass by name, as `module:Class` so that listing them imports none of them.

Installed packages add theirs in the entry point group `llamac.passes`, as `fuse-something =
"pkg.module:FuseSomething"`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.graph import Attribute
from llamac.ir.levels import LEVELS
from llamac.ir.parser import parse_attribute

from .base import Pass

BUILT_IN: dict[str, str] = {
    "canonicalize": "llamac.passes.canonicalize:Canonicalize",
    "raise-linear": "llamac.passes.raise_linear:RaiseLinear",
    "fuse-rms-norm": "llamac.passes.fuse_rms_norm:FuseRmsNorm",
    "fuse-rope": "llamac.passes.fuse_rope:FuseRope",
    "fuse-temperature": "llamac.passes.fuse_temperature:FuseTemperature",
    "fuse-cross-attention": "llamac.passes.fuse_cross_attention:FuseCrossAttention",
    "fuse-gated-add": "llamac.passes.fuse_gated_add:FuseGatedAdd",
    "fuse-gqa": "llamac.passes.fuse_gqa:FuseGqa",
    "fuse-swiglu": "llamac.passes.fuse_swiglu:FuseSwiglu",
    "raise-moe": "llamac.passes.raise_moe:RaiseMoe",
    "raise-merge-rows": "llamac.passes.raise_merge_rows:RaiseMergeRows",
    "take-one-tile": "llamac.passes.take_one_tile:TakeOneTile",
    "fuse-layer-norm": "llamac.passes.fuse_layer_norm:FuseLayerNorm",
    "fuse-gelu": "llamac.passes.fuse_gelu:FuseGelu",
    "fuse-fixed-rope": "llamac.passes.fuse_fixed_rope:FuseFixedRope",
    "fuse-full-attention": "llamac.passes.fuse_full_attention:FuseFullAttention",
    "raise-class-token": "llamac.passes.raise_class_token:RaiseClassToken",
    "raise-places": "llamac.passes.raise_places:RaisePlaces",
    "raise-padding": "llamac.passes.raise_padding:RaisePadding",
    "fold-casts": "llamac.passes.fold_casts:FoldCasts",
    "fold-interleave": "llamac.passes.fold_interleave:FoldInterleave",
    "lower-encoder-attention": "llamac.passes.lower_encoder_attention:LowerEncoderAttention",
    "lower-image-cache": "llamac.passes.lower_image_cache:LowerImageCache",
    "fuse-rearrange": "llamac.passes.fuse_rearrange:FuseRearrange",
    "fuse-bias": "llamac.passes.fuse_bias:FuseBias",
    "fold-constants": "llamac.passes.fold_constants:FoldConstants",
    "enter-model": "llamac.passes.enter_level:EnterModel",
    "dedupe-ops": "llamac.passes.dedupe_ops:DedupeOps",
    "eliminate-dead": "llamac.passes.eliminate_dead:EliminateDead",
    "fold-rope": "llamac.passes.fold_rope:FoldRope",
    "fold-attention-scale": "llamac.passes.fold_attention_scale:FoldAttentionScale",
    "fold-norm-scale": "llamac.passes.fold_norm_scale:FoldNormScale",
    "widen-activations": "llamac.passes.widen_activations:WidenActivations",
    "lower-moe-routing": "llamac.passes.lower_moe_routing:LowerMoeRouting",
    "shard-tensors": "llamac.passes.shard_tensors:ShardTensors",
    "fuse-qkv": "llamac.passes.fuse_qkv:FuseQkv",
    "fuse-gate-up": "llamac.passes.fuse_gate_up:FuseGateUp",
    "quantize-int8": "llamac.passes.quantize_int8:QuantizeInt8",
    "quantize-int4": "llamac.passes.quantize_int4:QuantizeInt4",
    "quantize-fp8": "llamac.passes.quantize_fp8:QuantizeFp8",
    "cast-weights": "llamac.passes.cast_weights:CastWeights",
    "lower-kv-cache": "llamac.passes.lower_kv_cache:LowerKvCache",
    "quantize-kv": "llamac.passes.quantize_kv:QuantizeKv",
    "select-kernels": "llamac.passes.select_kernels:SelectKernels",
    "pack-weights": "llamac.passes.pack_weights:PackWeights",
    "pack-rows": "llamac.passes.pack_rows:PackRows",
    "fuse-residual": "llamac.passes.fuse_residual:FuseResidual",
    "fuse-quantize-rows": "llamac.passes.fuse_quantize_rows:FuseQuantizeRows",
    "fuse-gated-linear": "llamac.passes.fuse_gated_linear:FuseGatedLinear",
    "fuse-qkv-append": "llamac.passes.fuse_qkv_append:FuseQkvAppend",
    "fuse-row-norm": "llamac.passes.fuse_row_norm:FuseRowNorm",
    "fuse-row-swiglu": "llamac.passes.fuse_row_swiglu:FuseRowSwiglu",
    "fuse-row-append": "llamac.passes.fuse_row_append:FuseRowAppend",
    "fuse-row-residual": "llamac.passes.fuse_row_residual:FuseRowResidual",
    "fuse-vision-rows": "llamac.passes.fuse_vision_rows:FuseVisionRows",
    "lower-image-rows": "llamac.passes.lower_image_rows:LowerImageRows",
    "fuse-add-rms-norm": "llamac.passes.fuse_add_rms_norm:FuseAddRmsNorm",
    "enter-kernel": "llamac.passes.enter_level:EnterKernel",
    "round-activations": "llamac.passes.round_activations:RoundActivations",
    "roll-layers": "llamac.passes.roll_layers:RollLayers",
    "fuse-head": "llamac.passes.fuse_head:FuseHead",
    "plan-memory": "llamac.passes.plan_memory:PlanMemory",
}


ENTRY_POINTS = "llamac.passes"


@cache
def outside_passes() -> dict[str, str]:
    """The passes of installed packages, as in `BUILT_IN`; a built-in name cannot be taken (LLC0509)."""
    found: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in BUILT_IN or found.get(point.name, point.value) != point.value:
            owner = "llamac" if point.name in BUILT_IN else found[point.name]
            reason = f"{point.value} wants the pass name of {owner}"
            raise LlamacError("LLC0509", point.name, reason, "rename the entry point, or uninstall its package")
        found[point.name] = point.value
    return found


def contract_fault(found: type[Pass], made: bool = False) -> str | None:
    """What keeps a class of somebody else's from being a pass, or None: what would else fail where it is used.

    made: its options are given already, so they need no defaults.
    """
    name, requires = getattr(found, "name", None), getattr(found, "requires", None)
    levels = requires if isinstance(requires, tuple) else ()
    if not isinstance(name, str) or not name:
        return f"{found.__name__} has no name"
    if not levels or not set(levels) <= set(LEVELS) or found.produces not in (None, *LEVELS):
        return f"{name}: `requires` must be a tuple of levels, and `produces` one or None: {', '.join(LEVELS)}"
    if found.run is Pass.run:
        return f"{name} does not define run"
    if "__dataclass_fields__" not in vars(found) and vars(found).get("__annotations__"):
        return f"{name} is no dataclass, so its options are none: `@dataclass(frozen=True)`"
    lacking = [f.name for f in dataclasses.fields(found) if f.default is dataclasses.MISSING]
    return f"{name}: option '{lacking[0]}' has no default" if lacking and not made else None


@cache
def pass_class(name: str) -> type[Pass]:
    """The pass called `name` (LLC0502 with the near match when there is none)."""
    place = BUILT_IN.get(name) or outside_passes().get(name)
    if place is None:
        known = [*BUILT_IN, *outside_passes()]
        raise LlamacError("LLC0502", name, f"unknown pass{did_you_mean(name, known)}", "`llamac passes` lists them")
    module, _, attribute = place.partition(":")
    if name in BUILT_IN:
        found: type[Pass] = getattr(importlib.import_module(module), attribute)
    else:
        found = _outside_class(name, module, attribute)
    assert issubclass(found, Pass) and found.name == name
    return found


def _outside_class(name: str, module: str, attribute: str) -> type[Pass]:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the package's own code raises is a failure to load it
        reason = f"{module}:{attribute} cannot be loaded: {type(error).__name__}: {error}"
        raise LlamacError("LLC0509", name, reason, "the package that provides this pass is broken") from error
    if not (isinstance(found, type) and issubclass(found, Pass) and getattr(found, "name", None) == name):
        raise LlamacError(
            "LLC0509", name, f"{module}:{attribute} is not a pass of that name", "see docs/write-a-pass.md"
        )
    if (fault := contract_fault(found)) is not None:
        raise LlamacError("LLC0509", name, fault, "see docs/write-a-pass.md")
    return found


def parse_pass(text: str, also: Mapping[str, type[Pass]] | None = None) -> Pass:
    """A pass from its text form, `quantize-int4{group=64}`; `also` are passes by name that are not installed."""
    shape = re.fullmatch(r"([^{}]+)(?:\{([^{}]*)\})?", text.strip())
    if shape is None:
        raise LlamacError("LLC0502", text.strip(), "expected a pass name, with options as in {group=64,weights=all}")
    name, inside = shape.groups("")
    found = (also or {}).get(name) or pass_class(name)
    defaults = {f.name: f.default for f in dataclasses.fields(found)}
    options: dict[str, Attribute] = {}
    for part in filter(None, (p.strip() for p in inside.split(","))):
        key, value = (p.strip() for p in part.partition("=")[::2])
        if key not in defaults:
            raise LlamacError("LLC0502", name, f"has no option '{key}'{did_you_mean(key, defaults)}")
        if key in options:
            raise LlamacError("LLC0502", name, f"option '{key}' is given twice")
        options[key] = _option(name, key, value, defaults[key])
    return found(**options)


def _option(name: str, key: str, text: str, default: object) -> Attribute:
    try:
        value = _value(text)
    except LlamacError:
        value = None
    if type(value) is not type(default):
        raise LlamacError("LLC0502", name, f"option '{key}' is like {default}, not '{text}'")
    assert value is not None
    return value


def _value(text: str) -> Attribute:
    # Option values are attributes; a bare word that is no number or truth value is text.
    if text.replace("-", "_").isidentifier() and text not in ("true", "false"):
        return text
    return parse_attribute(text)

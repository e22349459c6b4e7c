"""Every pass by name, as `module:Class` so that listing them imports none of them."""

from __future__ import annotations

import dataclasses
import importlib
from functools import cache

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.graph import Attribute
from llamac.ir.parser import parse_attribute

from .base import Pass

BUILT_IN: dict[str, str] = {
    "raise-linear": "llamac.passes.raise_linear:RaiseLinear",
    "fuse-rms-norm": "llamac.passes.fuse_rms_norm:FuseRmsNorm",
    "fuse-rope": "llamac.passes.fuse_rope:FuseRope",
    "fuse-gqa": "llamac.passes.fuse_gqa:FuseGqa",
    "fuse-swiglu": "llamac.passes.fuse_swiglu:FuseSwiglu",
    "fold-constants": "llamac.passes.fold_constants:FoldConstants",
    "enter-model": "llamac.passes.enter_level:EnterModel",
    "dedupe-ops": "llamac.passes.dedupe_ops:DedupeOps",
    "eliminate-dead": "llamac.passes.eliminate_dead:EliminateDead",
    "fold-rope": "llamac.passes.fold_rope:FoldRope",
    "widen-activations": "llamac.passes.widen_activations:WidenActivations",
    "fuse-qkv": "llamac.passes.fuse_qkv:FuseQkv",
    "fuse-gate-up": "llamac.passes.fuse_gate_up:FuseGateUp",
    "quantize-int8": "llamac.passes.quantize_int8:QuantizeInt8",
    "quantize-int4": "llamac.passes.quantize_int4:QuantizeInt4",
    "quantize-fp8": "llamac.passes.quantize_fp8:QuantizeFp8",
    "cast-weights": "llamac.passes.cast_weights:CastWeights",
    "lower-kv-cache": "llamac.passes.lower_kv_cache:LowerKvCache",
    "select-kernels": "llamac.passes.select_kernels:SelectKernels",
    "pack-weights": "llamac.passes.pack_weights:PackWeights",
    "fuse-residual": "llamac.passes.fuse_residual:FuseResidual",
    "fuse-quantize-rows": "llamac.passes.fuse_quantize_rows:FuseQuantizeRows",
    "enter-kernel": "llamac.passes.enter_level:EnterKernel",
    "roll-layers": "llamac.passes.roll_layers:RollLayers",
    "plan-memory": "llamac.passes.plan_memory:PlanMemory",
}


@cache
def pass_class(name: str) -> type[Pass]:
    """The pass called `name` (LLC0502 with the near match when there is none)."""
    if name not in BUILT_IN:
        raise LlamacError(
            "LLC0502", name, f"unknown pass{did_you_mean(name, BUILT_IN)}", "`llamac passes` lists them"
        )
    module, _, attribute = BUILT_IN[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, Pass) and found.name == name
    return found


def parse_pass(text: str) -> Pass:
    """A pass from its text form, `quantize-int4{group=64}`."""
    name, brace, inside = text.strip().partition("{")
    found = pass_class(name)
    options: dict[str, Attribute] = {}
    if brace:
        for part in filter(None, (p.strip() for p in inside.rstrip("}").split(","))):
            key, _, value = part.partition("=")
            known = {f.name for f in dataclasses.fields(found)}
            if key.strip() not in known:
                hint = did_you_mean(key.strip(), known)
                raise LlamacError("LLC0502", name, f"has no option '{key.strip()}'{hint}")
            options[key.strip()] = _option(value.strip())
    return found(**options)


def _option(text: str) -> Attribute:
    # Option values are attributes; a bare word that is no number or truth value is text.
    if text.replace("-", "_").isidentifier() and text not in ("true", "false"):
        return text
    return parse_attribute(text)

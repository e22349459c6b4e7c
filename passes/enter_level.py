"""Seals a level: from here on only ops of that level are legal, and the verifier says which op was left behind."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module
from llamac.ir.levels import CAPTURED, KERNEL, LOWERING, MODEL, RAISING
from llamac.transform.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EnterModel(Pass):
    """Every captured op has been raised or is legal at model level."""

    name = "enter-model"
    requires = (CAPTURED, RAISING, MODEL)
    produces = MODEL

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult()


@dataclass(frozen=True)
class EnterKernel(Pass):
    """Every op is one that the backends generate code for."""

    name = "enter-kernel"
    requires = (LOWERING, KERNEL)
    produces = KERNEL

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult()

"""Code generation as the last step of a pipeline, so that its failures are reduced like those of passes.

The repro of such a failure is kernel-level IR that `llamac opt --passes generate-code --passes-from
llamac.generated_code` cannot make C of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamac.analysis.memory import arena_bytes
from llamac.analysis.weight_plan import member_bytes, plan_weights
from llamac.backends.cpu.codegen import Limits, generate
from llamac.ir.graph import Module
from llamac.ir.levels import KERNEL
from llamac.transform.base import Pass, PassContext, PassResult

from .certificate import MAX_TOKENS
from .reproduction import Recipe

CONTEXT = 1 << 17
"""Longest text of the code; nothing but a check of positions depends on it."""


@dataclass(frozen=True)
class GenerateCode(Pass):
    """Makes C of a module whose memory is planned, and throws it away; changes nothing."""

    name = "generate-code"
    requires = (KERNEL,)
    after = "plan-memory"

    def run(self, module: Module, context: PassContext) -> PassResult:
        placed = plan_weights(module)
        vocabulary = module.step.outputs[0].tensor.shape[-1]
        assert isinstance(vocabulary, int)
        limits = Limits(vocabulary, CONTEXT, MAX_TOKENS, arena_bytes(module, MAX_TOKENS), member_bytes(placed))
        generate(module, placed, limits, "generated")
        return PassResult()


def with_code(recipe: Recipe) -> Recipe:
    """The recipe with code generation behind its passes."""
    return replace(recipe, passes_from=(*recipe.passes_from, __name__))

"""The null backend: generates nothing and runs nothing; says how much work a step would be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llamac.analysis.cost import Cost, StepShape, module_cost, total
from llamac.ir.graph import Module


def report(module: Module, prompt_tokens: int, context: int) -> dict[str, Any]:
    """FLOPs and bytes of a prefill of `prompt_tokens` and of one decode step at `context` tokens, in all and by op."""
    # A prefill row sees on average half the prompt.
    prefill = StepShape(prompt_tokens, (prompt_tokens + 1) // 2)
    return {
        "prefill": {"tokens": prompt_tokens, **_entry(module, prefill)},
        "decode": {"context": context, **_entry(module, StepShape(1, context))},
    }


def _entry(module: Module, shape: StepShape) -> dict[str, Any]:
    costs = module_cost(module, shape)
    return {**_plain(total(costs)), "by_op": {name: _plain(cost) for name, cost in sorted(costs.items())}}


def _plain(cost: Cost) -> dict[str, int]:
    return {**asdict(cost), "bytes": cost.bytes}

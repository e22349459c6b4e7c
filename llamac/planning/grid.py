"""What-if: one model on one machine, over quantizations, contexts, batches and numbers of devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import Quantization, parse_quantization

from .machine import Machine
from .plan import Plan, Subject, make_plan
from .request import Request, check_request

LARGEST_GRID = 4096
"""Cells of a grid; beyond it a typing error is likelier than a wish."""


@dataclass(frozen=True)
class Axes:
    """The values of each axis, in the order of the rows."""

    quantizations: tuple[Quantization, ...]
    tps: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def cells(self) -> int:
        """How many plans the grid holds."""
        return len(self.quantizations) * len(self.tps) * len(self.contexts) * len(self.batches)


def default_axes(config: LlamaConfig, machine: Machine, request: Request) -> Axes:
    """What is worth comparing when nothing is said: usual schemes, a short and the full context, up to 8 devices."""
    schemes = ("keep", "fp8", "int8", "int4") if machine.is_gpu else ("keep", "int8", "int4")
    contexts = sorted({min(n, config.context_length) for n in (4096, 32768, config.context_length)})
    batches = tuple(n for n in (1, 16) if n <= request.max_step_tokens)
    tps = tuple(tp for tp in (1, 2, 4, 8) if _can_share(tp, config, machine, request))
    return Axes(tuple(map(parse_quantization, schemes)), tps, tuple(contexts), batches)


def _can_share(tp: int, config: LlamaConfig, machine: Machine, request: Request) -> bool:
    try:
        check_request(replace(request, tp=tp), config, machine)
    except LlamacError:
        return False
    return True


def plan_grid(subject: Subject, axes: Axes, request: Request, machine: Machine) -> Iterator[Plan]:
    """The plan of every cell; a prefill fills the cell's context. LLC0109 for a value that cannot be."""
    if axes.cells > LARGEST_GRID:
        raise LlamacError("LLC0109", "--what-if", f"{axes.cells} plans, at most {LARGEST_GRID}", "name fewer values")
    for quantization in axes.quantizations:
        for tp in axes.tps:
            for context in axes.contexts:
                for batch in axes.batches:
                    asked = replace(
                        request, quantization=quantization, tp=tp, context=context, batch=batch, prompt_tokens=context
                    )
                    yield make_plan(subject, asked, machine, limits=False)


def cell_to_json(plan: Plan) -> dict[str, Any]:
    """One row of the table."""
    request, memory = plan.request, plan.memory
    return {
        "quantization": str(request.quantization),
        "tp": request.tp,
        "context": request.context,
        "batch": request.batch,
        "weights": memory.weights,
        "kv": memory.kv,
        "total": memory.total,
        "free": memory.free,
        "fits": None if memory.free is None else memory.free >= 0,
        "decode_tokens_per_second": plan.decode.tokens_per_second,
        "decode_bound": plan.decode.floor.bound,
        "prefill_seconds": plan.prefill.floor.seconds,
        "prefill_bound": plan.prefill.floor.bound,
    }

"""Translation validation of a divided model: all its ranks together compute what the whole model does.

The modules of the ranks go through their pipelines step by step, side by side. From `shard-tensors` on, after every
pass that changes one of them, the interpreters of all ranks run the scenario together in exact mode and must give the
logits of the undivided module, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.definition import Array
from llamac.ir.evaluator import RowReader
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import kv_groups
from llamac.ir.printer import print_module
from llamac.ir.ranks import Ranks

from .base import PassContext
from .pipeline import Step, run_pipeline
from .scenario import Scenario
from .validation import EXACT_BOUND, Validator, Verdict, relative_difference


class _OneRank(Validator):
    """Runs the scenario on one rank's module, which meets the others at its collectives."""

    def logits_with(self, module: Module, exchange: Callable[[str, Array], list[Array]]) -> Array:
        """Exact logits of every token, [tokens, vocabulary]."""
        interpreter = Interpreter(module, self.read_rows, exact=True, exchange=exchange)
        if kv_groups(module.step):
            return np.concatenate([*self._ragged(interpreter), *self._far_ragged(interpreter)])
        near = [self._sequence(interpreter, n) for n in range(len(self.scenario.sequences))]
        return np.concatenate([*near, *self._far(interpreter)])


def rank_logits(modules: Sequence[Module], read_rows: RowReader, scenario: Scenario) -> list[Array]:
    """What each rank of a divided model computes, all of them run together."""
    ranks, views = Ranks(len(modules)), [_OneRank(read_rows, scenario) for _ in modules]
    work = [
        partial(view.logits_with, module, ranks.exchange(rank))
        for rank, (view, module) in enumerate(zip(views, modules, strict=True))
    ]
    return ranks.run(work)


def validate_ranks(
    modules: Sequence[Module], pipelines: Sequence[Sequence[Step]], read_rows: RowReader, scenario: Scenario
) -> list[Verdict]:
    """Run each rank's pipeline on its module and judge what all compute (LLC0507 for the first pass that is wrong).

    modules: the captured graph, once a rank. pipelines: one a rank, the same passes in the same order.
    """
    whole: Array | None = None
    verdicts: list[Verdict] = []
    for steps in zip(*pipelines, strict=True):
        name, before = steps[0].run.name, [print_module(module) for module in modules]
        if name == "shard-tensors":
            whole = Validator(read_rows, scenario).logits(modules[0], exact=True)
        for module, step in zip(modules, steps, strict=True):
            run_pipeline(module, [step], PassContext(read_rows))
        if whole is not None and [print_module(module) for module in modules] != before:
            verdicts.append(_judge(name, modules, read_rows, scenario, whole))
    return verdicts


def _judge(name: str, modules: Sequence[Module], read_rows: RowReader, scenario: Scenario, whole: Array) -> Verdict:
    try:
        found = rank_logits(modules, read_rows, scenario)
    except LlamacError:
        raise
    except Exception as error:
        reason = f"the ranks do not run any more: {type(error).__name__}: {error}"
        raise LlamacError("LLC0507", name, reason, "compare the modules of the ranks") from error
    difference = max(relative_difference(logits, whole) for logits in found)
    against = f"the whole model, on {len(modules)} ranks"
    if not difference <= EXACT_BOUND:
        amount = f"logits differ by {difference:.2e} from {against}, bound {EXACT_BOUND:.0e}"
        reason = f"changes what the model computes: {amount}"
        raise LlamacError("LLC0507", name, reason, "compare the modules of the ranks after the pass")
    return Verdict(name, difference, EXACT_BOUND, True, against)

"""The law of `shard-tensors`: ranks together compute what the whole module does, each with its part of the state."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.ranks import Ranks
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass
from llamac.transform.registry import parse_pass

Rows = Callable[[str, int, int], np.ndarray]


def divided(run: str, text: str, rows: Rows) -> list[Module]:
    """The modules of all ranks; `run` is the pass of one of them."""
    found = re.search(r"ranks=(\d+)", run)
    ranks, modules = int(found[1]) if found else 2, []
    for rank in range(ranks):
        module = parse_module(text)
        run_pass(module, parse_pass(f"shard-tensors{{ranks={ranks},rank={rank}}}"), PassContext(rows))
        modules.append(module)
    return modules


def check_ranks(run: str, text: str, inputs: dict[str, Any], rows: Rows) -> None:
    """Logits as of the whole module on every rank; keys and values are those of its heads."""
    before = parse_module(text)
    expected = Interpreter(before, rows, True).run(inputs)
    modules = divided(run, text, rows)
    ranks = Ranks(len(modules))
    work = []
    for rank, module in enumerate(modules):
        given = {
            a.name: of_rank(inputs[a.name], rank, len(modules), a.tensor.shape[0])
            if a.name.startswith("past")
            else inputs[a.name]
            for a in module.step.arguments
        }
        work.append(partial(Interpreter(module, rows, True, exchange=ranks.exchange(rank)).run, given))
    for rank, found in enumerate(ranks.run(work)):
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-10 * np.abs(expected[0]).max())
        for part, whole in zip(found[1:], expected[1:], strict=True):
            wanted = of_rank(whole, rank, len(modules), part.shape[0])
            np.testing.assert_allclose(part, wanted, rtol=0, atol=1e-10 * np.abs(whole).max())


def of_rank(whole: Any, rank: int, ranks: int, heads: object) -> np.ndarray:
    """The heads that a rank has; with fewer heads than ranks several have the same."""
    assert isinstance(heads, int)
    start = rank * len(whole) // ranks
    return np.asarray(whole)[start : start + heads]

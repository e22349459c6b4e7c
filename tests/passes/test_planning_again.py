"""A plan of memory is of the ops and the tokens that it was made for: asked again, it is made anew."""

from __future__ import annotations

from pathlib import Path

from ir_cases import read_cases

from llamac.analysis.memory import arena_bytes
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.passes.plan_memory import PlanMemory
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass

CASE = next(read_cases(Path(__file__).with_name("plan_memory.ir")))


def test_of_more_tokens() -> None:
    """Buffers of 4 tokens, left where they are, would lie on one another in steps of 64."""
    module, whole = parse_module(CASE.input), parse_module(CASE.input)
    run_pass(module, PlanMemory(4), PassContext())
    assert run_pass(module, PlanMemory(64), PassContext()).changed
    run_pass(whole, PlanMemory(64), PassContext())
    assert print_module(module) == print_module(whole) and arena_bytes(module, 64) == arena_bytes(whole, 64)
    assert not run_pass(module, PlanMemory(64), PassContext()).changed

"""What may watch a pipeline, and how long the result of an analysis lives."""

from __future__ import annotations

from dataclasses import dataclass

from small_models import BASE, encodings_of

from llamac.ir.graph import Module
from llamac.models.llama.graph import build_llama
from llamac.models.llama.shrink import small_tensors
from llamac.transform.analyses import AnalysisManager
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pipeline import Instrument, parse_pipeline, run_pass, run_pipeline


def captured() -> Module:
    return build_llama(BASE, small_tensors(BASE, encodings_of(BASE, "f32")))


def count_ops(module: Module) -> int:
    return sum(1 for _ in module.ops())


@dataclass
class Log(Instrument):
    """Writes down what it is told, with the number of ops at that time."""

    lines: list[tuple[str, str, int]]
    name: str

    def before(self, item: Pass, module: Module) -> None:
        self.lines.append((f"{self.name} before", item.name, count_ops(module)))

    def after(self, item: Pass, module: Module, result: PassResult) -> None:
        assert result.changed
        self.lines.append((f"{self.name} after", item.name, count_ops(module)))


def test_instruments_see_every_pass_before_and_after_in_order() -> None:
    lines: list[tuple[str, str, int]] = []
    module = captured()
    steps = parse_pipeline("raise-linear,fuse-rms-norm")
    run_pipeline(module, steps, PassContext(), instruments=[Log(lines, "a"), Log(lines, "b")])
    assert [line[:2] for line in lines] == [
        (f"{who} {when}", step.run.name) for step in steps for when in ("before", "after") for who in "ab"
    ]
    sizes = [line[2] for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2] > sizes[-1] == count_ops(module)


def test_instrument_without_methods_is_allowed() -> None:
    run_pipeline(captured(), parse_pipeline("raise-linear"), PassContext(), instruments=[Instrument()])


def test_analysis_runs_once_until_a_pass_changes_the_module() -> None:
    module, context, runs = captured(), PassContext(), []

    def analysis(found: Module) -> int:
        runs.append(found)
        return count_ops(found)

    before = context.analyses.get(analysis, module)
    assert context.analyses.get(analysis, module) == before
    run_pass(module, *parse_one("raise-linear"), context)
    after = context.analyses.get(analysis, module)
    assert after == count_ops(module) < before
    assert len(runs) == 2
    assert not run_pass(module, *parse_one("raise-linear"), context).changed
    context.analyses.get(analysis, module)
    assert len(runs) == 2, "a pass that changed nothing leaves results as they are"


def parse_one(text: str) -> tuple[Pass]:
    (step,) = parse_pipeline(text)
    return (step.run,)


def test_analyses_of_another_module_are_never_given() -> None:
    manager, module = AnalysisManager(), captured()
    assert manager.get(count_ops, module) > 0
    assert manager.get(count_ops, Module("empty", "captured")) == 0
    assert manager.get(count_ops, module) > 0

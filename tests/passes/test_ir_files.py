"""Runs the cases of tests/passes/*.ir; `pytest --bless` rewrites their expectations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ir_cases import Case, check_meaning, outcome, read_cases, reader, write_cases

from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass
from llamac.transform.registry import BUILT_IN, parse_pass

FILES = sorted(Path(__file__).parent.glob("*.ir"))
CASES = [case for path in FILES for case in read_cases(path)]


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_case(case: Case, request: pytest.FixtureRequest) -> None:
    text, module, result = outcome(case)
    if request.config.getoption("--bless") and text != case.expected:
        cases = list(read_cases(case.path))
        cases[case.number].expected = text
        write_cases(case.path, cases)
    else:
        assert text == case.expected, f"pytest {__file__} -k {case.id} --bless"
    if module is None or result is None:
        return
    printed = print_module(module)
    assert print_module(parse_module(printed)) == printed
    unchanged = printed.split("\n")[1:] == print_module(parse_module(case.input)).split("\n")[1:]
    assert result.changed != unchanged, "the counts must say whether the module changed"
    assert all(r.reason for r in result.refusals)
    check_meaning(case, module)
    item = parse_pass(case.run)
    if module.level in item.requires:
        again = run_pass(module, item, PassContext(reader(parse_module(case.input))))
        verify(module)
        assert not again.changed and print_module(module) == printed, "a second run changes something"


def test_every_pass_has_a_file_with_positive_and_negative_cases() -> None:
    tested = {path.stem.replace("_", "-"): list(read_cases(path)) for path in FILES}
    assert set(tested) == set(BUILT_IN)
    for name, cases in tested.items():
        assert all(c.run.partition("{")[0] == name for c in cases)
        if name.startswith("enter-"):
            continue
        reports = [c.expected.split("\n")[0] for c in cases]
        fired = [bool(re.search(r"= [1-9]", r)) for r in reports if r.startswith("// counts")]
        assert any(fired), f"{name} never fires"
        assert not all(fired) or len(fired) < len(reports), f"{name} always fires"

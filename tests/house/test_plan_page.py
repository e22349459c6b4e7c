"""docs/plan.md shows what its commands print today."""

from __future__ import annotations

import re
import shlex

import pytest
from source_tree import ROOT

from llamac.cli.main import main

PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^    llamac (plan [^\n]*)\n\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_outputs() -> None:
    assert len(SHOWN) == 3


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=["laptop", "eight", "table"])
def test_an_output_is_what_the_command_prints(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command, comments=True)) == 0
    assert capsys.readouterr().out == shown, "paste what the command prints into docs/plan.md"

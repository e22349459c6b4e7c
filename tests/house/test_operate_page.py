"""docs/operate.md: its program runs, and the names and codes that it tells of exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from source_tree import ROOT

from llamac.errors import CODES
from llamac.runtime.conversation import Conversation
from llamac.runtime.model import Model

PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


def test_the_program_runs(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "m.llamac").symlink_to(toy_artifact)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "operate.md", "exec"), names)
    out = capsys.readouterr().out
    assert " length " in out and "LLC" not in out
    assert [len(answer.token_ids) for answer in names["answers"]] == [8, 8]


def test_the_names_exist(toy_artifact: Path) -> None:
    import llamac

    rows = dict(re.findall(r"^\| (`llamac\.[^|]*) \| (.*) \|$", PAGE, re.MULTILINE))
    methods = {
        owner: re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`([^`]*)`", text))) for owner, text in rows.items()
    }
    with llamac.load(toy_artifact) as model:
        missing = [name for name in methods["`llamac.load`"] if not hasattr(model, name) and name != "Model"]
        assert not missing and isinstance(model, Model)
    owner = "`llamac.runtime.conversation.Conversation`"
    assert all(hasattr(Conversation, name) for name in methods[owner]) and len(methods[owner]) == 5
    public = {name for row in rows for name in re.findall(r"`llamac\.(\w+)`", row)}
    assert public == set(llamac.__all__) - {"__version__"}


def test_the_codes_exist() -> None:
    assert set(re.findall(r"LLC\d{4}", PAGE)) <= CODES.keys()

"""The documentation names files, verbs, passes and targets that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from source_tree import ROOT

from llamac.cli.main import VERBS, llamac_command
from llamac.target import TARGETS
from llamac.transform.registry import BUILT_IN

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^\s*(?:\$ )?llamac (.+)$", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


@every_page
def test_commands_use_verbs_and_options_that_exist(page: Path) -> None:
    for line in COMMAND.findall(page.read_text(encoding="utf-8")):
        words = line.split("#")[0].replace("\\", " ").split()
        verb = words[0]
        if verb.startswith("-"):
            continue
        assert verb in VERBS, f"{page.name}: llamac {verb}"
        context = llamac_command.make_context("llamac", [verb], resilient_parsing=True)
        command = llamac_command.get_command(context, verb)
        assert command is not None
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [word.split("=")[0] for word in words if word.startswith("-") and len(word) > 1]
        unknown = [word for word in unknown if word not in known | {"--help", "-h"}]
        assert not unknown, f"{page.name}: llamac {verb} has no {unknown}"


def test_the_readme_lists_the_targets_and_the_tour_every_pass() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in TARGETS)
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    missing = [name for name in BUILT_IN if f"`{name}`" not in tour]
    assert not missing, f"docs/tour.md does not say what {missing} do"

"""The documentation names files, verbs, passes and targets that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from source_tree import ROOT

from llamac.cli.main import VERBS, llamac_command
from llamac.passes.pipelines import cpu_pipeline, parse_quantization, plain_layers
from llamac.target import TARGETS
from llamac.transform.registry import BUILT_IN

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^\s*(?:\$ )?llamac (.+)$|`llamac ([^`]+)`", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


@every_page
def test_commands_use_verbs_and_options_that_exist(page: Path) -> None:
    for line in map("".join, COMMAND.findall(page.read_text(encoding="utf-8"))):
        words = re.sub(r'"[^"]*"', "TEXT", line).split("#")[0].replace("\\", " ").split()
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


def test_the_tour_has_the_passes_in_the_order_of_the_cpu_pipeline() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    table = tour.split("## The passes, in the order of the CPU pipeline")[1].split("\n\n")[1]
    rows = [name for row in table.splitlines() for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])]
    steps = cpu_pipeline(plain_layers(1), parse_quantization("int8"), "int8", 512)
    order = list(dict.fromkeys(step.run.name for step in steps))
    assert [name for name in rows if name in order] == order


def test_the_readme_says_what_every_extra_is_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(extras) <= {name for row in rows for name in re.findall(r"`([^`]*)`", row)}

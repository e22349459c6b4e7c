"""Error codes: the table, the page that shows it, and the code that raises them agree."""

from __future__ import annotations

import ast
import re
import runpy

import pytest
from source_tree import ROOT, SourceModule, source_modules

from llamac.errors import CODES, LlamacError

CODE = re.compile(r"LLC\d{4}")
PAGE = ROOT / "docs" / "error-codes.md"


def codes_named_in(module: SourceModule) -> dict[str, int]:
    """Every code that stands as a whole string in the module, with its line."""
    return {
        node.value: node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    }


def test_every_code_is_raised_somewhere() -> None:
    silent = ("llamac.errors", "llamac.cli.main")  # the table, and its list of the codes with exit code 1
    used = {code for module in source_modules() if module.name not in silent for code in codes_named_in(module)}
    used |= {"LLC0100", "LLC0101", "LLC0103"}  # what the command line itself makes of other exceptions
    unused = sorted(CODES.keys() - used)
    assert not unused, f"nothing raises {unused}: remove them from llamac/errors.py"


def test_only_known_codes_are_used() -> None:
    unknown = [
        f"{module.place}:{line}: {code}"
        for module in source_modules()
        for code, line in codes_named_in(module).items()
        if code not in CODES
    ]
    assert not unknown, "\n".join(unknown)


def test_docstrings_and_comments_name_known_codes() -> None:
    unknown = [
        f"{module.place}: {code}"
        for module in source_modules()
        for code in sorted(set(CODE.findall(module.path.read_text(encoding="utf-8"))) - CODES.keys())
    ]
    assert not unknown, "\n".join(unknown)


def test_the_table_is_sorted_and_its_titles_are_short() -> None:
    assert list(CODES) == sorted(CODES)
    assert all(re.fullmatch(r"LLC\d{4}", code) for code in CODES)
    assert all(len(title) < 90 and not title.endswith(".") for title in CODES.values())


def test_the_page_equals_the_table() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "write_error_codes.py"))["page"]
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"


def test_an_unknown_code_is_a_programming_error() -> None:
    with pytest.raises(KeyError, match="LLC9999"):
        LlamacError("LLC9999", "here", "reason")

"""Tests of random examples on a GPU: what was drawn when their kernels were compiled is kept, and done again there.

Sizes are compiled into kernels, and another release of hypothesis, or another set of loaded modules, draws others.
"""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

FILE = "examples.json"


def run_test(item: pytest.Function, words: str) -> None:
    """Run a test of hypothesis as `runners.runner_of` is told to: record its examples, or do the recorded ones."""
    what, _, folder = words.split(" ", 2)
    path, key = Path(folder) / FILE, f"{item.path.name}::{item.name}"
    fixtures = {name: item.funcargs[name] for name in inspect.signature(item.obj).parameters}
    if what == "record":
        record(item.obj, fixtures, path, key)
    else:
        repeat(item.obj.hypothesis.inner_test, fixtures, path, key)


def record(test: Any, fixtures: dict[str, Any], path: Path, key: str) -> None:
    """Run the test as always and keep what it was given beside its fixtures."""
    found: list[dict[str, Any]] = []
    inner = test.hypothesis.inner_test

    @functools.wraps(inner)
    def recording(**given: Any) -> None:
        found.append({name: value for name, value in given.items() if name not in fixtures})
        inner(**given)

    test.hypothesis.inner_test = recording
    try:
        test(**fixtures)
    finally:
        test.hypothesis.inner_test = inner
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | {key: found}, indent=0, sort_keys=True))


def repeat(inner: Any, fixtures: dict[str, Any], path: Path, key: str) -> None:
    """Run the function under test with every example that was recorded (LookupError: none was)."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if not kept.get(key):
        raise LookupError(f"no examples of {key} were recorded in {path}: make gpu-code where Triton is")
    for example in kept[key]:
        try:
            inner(**fixtures, **example)
        except BaseException as error:
            error.add_note(f"the example: {example}")
            raise

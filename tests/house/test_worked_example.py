"""The worked example of docs/write-a-pass.md is executed: its pieces, put together, do what the real pass does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llamac.ir.graph import Module
from llamac.ir.printer import print_module
from llamac.models.llama.graph import build_llama
from llamac.models.sources import open_source
from llamac.passes.fuse_swiglu import FuseSwiglu
from llamac.transform.base import Pass, PassContext
from llamac.transform.pipeline import parse_pipeline, run_pass, run_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "write-a-pass.md"


def _blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == kind]


def _raised() -> Module:
    checkpoint = open_source("tiny", random_weights=1)
    module = build_llama(checkpoint.config, checkpoint.tensors)
    run_pipeline(module, parse_pipeline("raise-linear"), PassContext())
    return module


def test_the_graph_shown_is_what_opt_prints() -> None:
    (shown, *_) = _blocks("")
    assert all(line in print_module(_raised()) for line in shown.splitlines())


def test_the_pieces_make_the_pass() -> None:
    names: dict[str, Any] = {"__name__": "worked_example"}
    # The first five pieces are the pass; what follows registers it and shows another package.
    exec(compile("\n".join(_blocks("python")[:5]), str(PAGE), "exec"), names)
    written: Pass = names["FuseSwiglu"]()
    ours, theirs = _raised(), _raised()
    result = run_pass(ours, written, PassContext())
    assert result.counts == run_pass(theirs, FuseSwiglu(), PassContext()).counts == {"swiglu": 2}
    assert print_module(ours) == print_module(theirs)
    assert not run_pass(ours, written, PassContext()).changed


def test_the_test_shown_passes() -> None:
    names: dict[str, Any] = {"__name__": "worked_example"}
    (shown,) = [block for block in _blocks("python") if "def test_" in block]
    exec(compile("\n".join([*_blocks("python")[:5], shown]), str(PAGE), "exec"), names)
    names["test_it_fires_once_a_layer_and_no_second_time"]()

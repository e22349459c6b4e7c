"""`llamac diff`: every difference is found, named and measured, and nothing from the files is run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llamac.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

from compiled_pairs import TAMPERED, compile_tampered, compile_tiny

Capture = pytest.CaptureFixture[str]


def _diff(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main(["diff", *(str(word) for word in words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _json(capsys: Capture, a: Path, b: Path) -> tuple[int, dict[str, Any]]:
    code, out, _ = _diff(capsys, a, b, "--json")
    return code, json.loads(out)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tiny(tmp_path_factory.mktemp("sound") / "sound.llamac")


@pytest.fixture(scope="module")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tampered(tmp_path_factory.mktemp("tampered") / "tampered.llamac")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tiny(tmp_path_factory.mktemp("quantized") / "quantized.llamac", quantize="int4")


def test_the_same_bytes(capsys: Capture, sound: Path, tmp_path: Path) -> None:
    copy = shutil.copy(sound, tmp_path / "copy.llamac")
    code, out, _ = _diff(capsys, sound, copy)
    assert (code, out.splitlines()[-1]) == (0, "the same, byte for byte")
    assert _json(capsys, sound, Path(copy))[1]["identical"] is True


def test_one_value_of_one_weight(capsys: Capture, sound: Path, tampered: Path) -> None:
    code, found = _json(capsys, sound, tampered)
    assert code == 1
    assert (found["manifest"], found["source"], found["machine_code"], found["ir"]) == ([], [], [], None)
    assert [row["name"] for row in found["members"]] == ["weights/cpu-panel16.bin", "manifest.json", "manifest.sha256"]
    (weight,) = found["weights"]
    assert (weight["name"], weight["changed"]) == (f"{TAMPERED}.packed", ["bytes"])
    assert 1 <= weight["bytes_different"] <= 4
    # Row 3, column 7 of a panel of 16 rows: element 7 * 16 + 3.
    assert weight["first_byte"] // 4 == 7 * 16 + 3
    assert (weight["difference"]["row"], weight["difference"]["column"]) == (3, 7)
    assert 1.4 < weight["difference"]["absolute"] < 1.6
    assert weight["readers"] == ["layers.1.mlp linear_dense"]


def test_one_value_of_one_weight_in_words(capsys: Capture, sound: Path, tampered: Path) -> None:
    code, out, err = _diff(capsys, sound, tampered)
    assert (code, err) == (1, "")
    assert "manifest: same keys and values" in out and "weights: 1 of 15 differ" in out
    assert "values by up to 1." in out and "row 3, column 7" in out and "read by layers.1.mlp linear_dense" in out


def test_another_quantization(capsys: Capture, sound: Path, quantized: Path) -> None:
    code, found = _json(capsys, sound, quantized)
    assert code == 1
    keys = {row["path"]: row for row in found["manifest"]}
    assert (keys["quantization"]["a"], keys["quantization"]["b"]) == ("keep", "int4")
    assert "a" not in keys["passes[quantize-int4]"] and keys["passes[quantize-int4]"]["b"]["changed"] is True
    weights = {row["a"]["name"]: row for row in found["weights"]}
    down = weights["layers.0.mlp.down.packed"]
    assert down["b"]["name"] == "layers.0.mlp.down.i4.packed"
    assert down["changed"] == ["format", "size"]
    # Rounding to one of 16 steps: half a step of at most amax / 7 is below a twelfth of the largest value.
    assert 0 < down["difference"]["relative"] < 0.2
    parts = {part["name"]: part for part in found["ir"]["changed"]}
    lines = parts["graph @layer"]["lines"]
    assert any(line.strip().startswith("- ") and "= qkv_dense" in line for line in lines)
    assert any(line.strip().startswith("+ ") and "= qkv_grouped" in line for line in lines)
    functions = {part["name"]: part for part in found["source"][0]["changed"]}
    assert functions["linear_f32_64x128"]["side"] == "a" and functions["layer"]["side"] == "both"
    assert "llamac_attention" not in functions
    assert ".text" in {section["name"] for section in found["machine_code"][0]["sections"]}


def test_the_summary_is_short_and_full_is_not(capsys: Capture, sound: Path, quantized: Path) -> None:
    short, full = (_diff(capsys, sound, quantized, *words)[1] for words in ([], ["--full"]))
    assert len(short.splitlines()) < 160 < len(full.splitlines())
    assert "--full shows all" in short and "--full shows all" not in full


def test_code_that_differs_alone_is_shown_by_section(capsys: Capture, toy: Any) -> None:
    code = bytearray(toy.code)
    code[-1] ^= 1
    found = _json(capsys, toy.make(), toy.make(code=bytes(code)))[1]
    assert found["members"][0]["name"] == "code/host.so"
    assert found["weights"] == [] and len(found["machine_code"]) == 1


@pytest.mark.parametrize(
    ("name", "change", "path"),
    [
        ("stop id", lambda m: m["generation"]["stop_ids"].append(5), "generation.stop_ids[1]"),
        ("memory plan", lambda m: m["memory"].update(arena_bytes=256), "memory.arena_bytes"),
        ("ledger", lambda m: m["ledger"].clear(), "ledger[0]"),
        ("pass option", lambda m: m["passes"][0]["options"].update(group=64), "passes[fuse-gqa].options.group"),
        ("pass count", lambda m: m["passes"][0]["counts"].update(fused=2), "passes[fuse-gqa].counts.fused"),
        ("target", lambda m: m["targets"][0].update(requires=["avx2"]), "targets[host].requires[0]"),
        ("tokenizer", lambda m: m["tokenizer"]["info"].update(add_bos=True), "tokenizer.info.add_bos"),
        ("model", lambda m: m["model"]["config"].update(layers=2), "model.config.layers"),
    ],
)
def test_every_key_of_the_manifest_is_compared(capsys: Capture, toy: Any, name: str, change: Any, path: str) -> None:
    code, found = _json(capsys, toy.make(), toy.make(change))
    assert (code, [row["path"] for row in found["manifest"]]) == (1, [path]), name


def test_a_damaged_byte_is_seen_though_the_hashes_say_otherwise(capsys: Capture, sound: Path, tmp_path: Path) -> None:
    data = bytearray(sound.read_bytes())
    data[4096 * 3 + 5] ^= 64  # inside the weights, which come first
    (tmp_path / "damaged.llamac").write_bytes(data)
    code, found = _json(capsys, sound, tmp_path / "damaged.llamac")
    assert (code, [row["name"] for row in found["members"]]) == (1, ["weights/cpu-panel16.bin"])
    assert [row["bytes_different"] for row in found["weights"]] == [1]


def test_what_is_no_artifact_is_an_error(capsys: Capture, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "text.llamac").write_text("hello, this is no artifact")
    code, _, err = _diff(capsys, sound, tmp_path / "text.llamac")
    assert code == 2 and err.startswith("LLC0705")
    assert _diff(capsys, sound, tmp_path / "missing.llamac")[0] == 2


def test_c_is_cut_into_functions() -> None:
    from llamac.artifact.diff_code import diff_source

    one = "/* One. */\nstatic int one(int x)\n{\n  return x;\n\n}\n"
    before = f"#include <a.h>\n\n{one}\nint two(void) {{\n    return 2;\n}}\n"
    found = diff_source("model.c", before, before.replace("return 2", "return 3"))
    assert [(part.name, part.added, part.removed) for part in found.changed] == [("two", 1, 1)]
    assert "+     return 3;" in found.changed[0].lines
    renamed = diff_source("model.c", before, before.replace("one(", "uno("))
    assert {part.name for part in renamed.changed} >= {"one", "uno"}


def test_renumbered_values_are_no_difference_of_ir() -> None:
    from llamac.artifact.diff_code import diff_ir

    before = "module @m at kernel {\n  graph @step(%a: t) -> (t) {\n    %0 = add %a, %a : t\n    return %0\n  }\n}\n"
    assert diff_ir("step.ir", before, before.replace("%0", "%7")).changed == ()
    (part,) = diff_ir("step.ir", before, before.replace("add", "mul")).changed
    assert (part.name, part.added, part.removed) == ("graph @step", 1, 1)

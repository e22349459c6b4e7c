"""The compiling verbs: compile, targets, passes and opt, on tiny random models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llamac.cli.main import main
from llamac.target import TARGETS

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled tiny model, with its source beside it."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.llamac"
    assert main(["compile", "tiny-llama3", "--random-weights", "3", "--emit", "c", "-o", str(path)]) == 0
    return path


def test_compile_prints_one_json_object(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "t.llamac"
    words = ["compile", "tiny", "--random-weights", 1, "--quantize", "int4:g64:asym", "--json", "-o", out]
    code, text, _ = _run(capsys, *words)
    found = json.loads(text)
    assert code == 0 and found["path"] == str(out) and found["bytes"] == out.stat().st_size
    assert (found["quantization"], found["targets"]) == ("int4:g64:asym", ["x86-64-v4"]) or found["targets"]


def test_compile_needs_an_output(capsys: Capture) -> None:
    code, _, err = _run(capsys, "compile", "tiny", "--random-weights", 1)
    assert code == 2 and err.startswith("LLC0101") and "-o" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--quantize", "int5"], "LLC0104 --quantize: unknown scheme 'int5' (did you mean 'int8'?)"),
        (["--quantize", "bf16:g64"], "LLC0104 --quantize: 'bf16' takes no groups"),
        (["--quantize", "int4:g48"], "LLC0104 --quantize: unknown option 'g48'"),
        (["--target", "znver9"], "LLC0603 znver9: unknown target (did you mean 'znver4'?)"),
        (["--kv", "f8"], "LLC0107 --kv: unknown cache type 'f8' (did you mean 'fp8'?)"),
        (["--context", "0"], "LLC0107 --context: --context 0 is outside 1..512"),
        (["--context", "99999999"], "LLC0107 --context"),
        (["--max-step-tokens", "0"], "LLC0107 --max-step-tokens"),
        (["--memory", "lots"], "LLC0101 llamac compile"),
    ],
)
def test_bad_options_are_refused_before_work_starts(
    capsys: Capture, tmp_path: Path, words: list[str], expected: str
) -> None:
    code, _, err = _run(capsys, "compile", "tiny", "--random-weights", 1, "-o", tmp_path / "x.llamac", *words)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert err.startswith(expected)


def test_strict_refuses_what_the_ledger_would_say(capsys: Capture, tmp_path: Path) -> None:
    words = ["compile", "tiny", "--random-weights", 1, "--quantize", "fp8", "--strict", "-o", tmp_path / "x.llamac"]
    code, _, err = _run(capsys, *words)
    assert code == 2 and err.startswith("LLC0105") and not list(tmp_path.iterdir())


def test_the_null_target_counts_and_writes_nothing(capsys: Capture) -> None:
    code, text, _ = _run(capsys, "compile", "llama-3.2-1b", "--random-weights", 1, "--target", "null", "--json")
    found = json.loads(text)
    assert code == 0
    # One decode step reads every bf16 weight once: 1.236 billion parameters and nothing else.
    assert found["decode"]["weight_bytes"] == pytest.approx(2 * 1_235_814_400, rel=2e-3)
    products = ("linear_dense", "gated_linear_dense", "qkv_dense")
    linear = sum(found["prefill"]["by_op"][name]["flops"] for name in products)
    blocks = 16 * (2048 * (2048 + 2 * 512) + 2048 * 2048 + 3 * 2048 * 8192)
    assert linear == 2 * (512 * blocks + 128256 * 2048)


def test_targets_and_passes(capsys: Capture) -> None:
    code, text, _ = _run(capsys, "targets", "--json")
    names = [row["name"] for row in json.loads(text)["targets"]]
    assert code == 0 and names == list(TARGETS)
    code, text, _ = _run(capsys, "passes", "--json")
    listed = {row["name"] for row in json.loads(text)["passes"]}
    assert code == 0 and {"fuse-gqa", "quantize-int4", "lower-kv-cache"} <= listed


def test_a_pipeline_pastes_back_into_opt(capsys: Capture) -> None:
    _, pipeline, _ = _run(capsys, "passes", "--pipeline", "x86-64-v3", "--quantize", "int4:g64")
    words = ["opt", "--from", "tiny", "--random-weights", 1]
    code, pasted, _ = _run(capsys, *words, "--passes", pipeline.strip())
    _, built_in, _ = _run(capsys, *words, "--pipeline", "x86-64-v3", "--quantize", "int4:g64")
    assert code == 0 and pasted == built_in and "call" in pasted


def test_opt_explains_prints_and_stops(capsys: Capture, tmp_path: Path) -> None:
    words = ["opt", "--from", "tiny", "--random-weights", 1, "--pipeline", "x86-64-v3"]
    talk = ["--explain", "fold-rope", "--time-passes", "--stats", "--print-ir-dir", tmp_path]
    code, out, err = _run(capsys, *words, *talk, "--stop-after", "fold-rope")
    assert code == 0 and "attention" in out and "attend" not in out
    assert "fold-rope: half_split 0" in err and "total" in err
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "01-canonicalize.ir"


def test_opt_reads_several_modules_and_checks_diagnostics(capsys: Capture, tmp_path: Path) -> None:
    good = "module @m at model {\n  graph @step(%x: tensor<T x f32>) -> (tensor<T x f32>) {\n    return %x\n  }\n}\n"
    bad = good.replace("return %x", "%0 = add %x, %y : tensor<T x f32>\n    return %0")
    file = tmp_path / "two.ir"
    file.write_text(f"{good}// -----\n{good}", encoding="utf-8")
    code, out, _ = _run(capsys, "opt", file, "--split-input-file")
    assert code == 0 and out.count("module @m") == 2
    expected = "// expected-error {{%y is not defined here}}"
    file.write_text(
        bad.replace("tensor<T x f32>\n    return", f"tensor<T x f32> {expected}\n    return"), encoding="utf-8"
    )
    assert _run(capsys, "opt", file, "--verify-diagnostics")[0] == 0
    file.write_text(bad, encoding="utf-8")
    code, _, err = _run(capsys, "opt", file, "--verify-diagnostics")
    assert code == 2 and err.startswith("LLC0508")


def test_a_hostile_model_name_stays_inside_its_comment() -> None:
    from llamac.backends.cpu.abi import banner

    assert "*/ int" not in banner("x */ int evil; /*") and banner("x\ny").count("\n") == banner("xy").count("\n")


def test_the_c_example_runs_the_artifact(tiny: Path, tmp_path: Path) -> None:
    import zipfile

    import llamac
    from llamac.backends.cpu.toolchain import compiler_environment, zig_command

    with llamac.load(tiny) as model:
        manifest, expected = model.manifest, model.generate([5, 6, 7], max_new_tokens=9, temperature=0).token_ids
    with zipfile.ZipFile(tiny) as archive:
        (tmp_path / "weights.bin").write_bytes(archive.read("weights/cpu-panel16.bin"))
        (tmp_path / "model.so").write_bytes(archive.read(manifest["targets"][0]["code"]))
    source = tiny.with_suffix(".c")
    build = [
        *zig_command(),
        "cc",
        "-O1",
        "-Wall",
        "-Werror",
        "-fno-sanitize=all",
        str(source / "example.c"),
        "./model.so",
    ]
    subprocess.run([*build, "-o", "example"], cwd=tmp_path, check=True, env=compiler_environment())
    sizes = (
        manifest["memory"]["caches"][0]["page_bytes"],
        manifest["memory"]["arena_bytes"],
        manifest["model"]["vocab_size"],
    )
    words = ["./example", "weights.bin", *map(str, sizes), "5", "6", "7"]
    found = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in found.split()] == list(expected)


def test_the_emitted_source_is_the_one_in_the_artifact(tiny: Path) -> None:
    import zipfile

    emitted = (tiny.with_suffix(".c") / "model.c").read_text(encoding="utf-8")
    assert zipfile.ZipFile(tiny).read("code/model.c").decode() == emitted
    assert "static __attribute__((noinline)) void layer(" in emitted


def test_sigterm_leaves_no_partial_file(tmp_path: Path) -> None:
    import signal
    import time

    code = "import sys; from llamac.cli.main import main; sys.exit(main())"
    words = ["compile", "llama-3.2-1b", "--random-weights", "1", "--no-validate", "-o", str(tmp_path / "x.llamac")]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()), "the compiler never started to write"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []


def test_logits_are_finite_and_repeat(tiny: Path) -> None:
    import llamac

    with llamac.load(tiny) as model:
        first, second = model.logits([1, 2, 3]), model.logits([1, 2, 3])
    assert np.isfinite(first).all() and np.array_equal(first, second)

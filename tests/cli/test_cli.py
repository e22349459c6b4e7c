"""The command line's contracts: JSON keys, exit codes, what goes where, and what start-up imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamac.cli import main as command_line
from llamac.cli.main import VERBS, main


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _process(*words: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from llamac.cli.main import main; sys.exit(main())", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env={**os.environ, **environment})


def test_help_lists_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", ["run", "chat", "inspect", "verify", "bench"])
def test_the_help_of_a_verb_has_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = _run(capsys, verb, "--help")
    assert code == 0
    assert f"llamac {verb} m.llamac" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "llamac")


def test_a_misspelt_verb_is_a_coded_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, "inspekt")
    assert (code, out) == (2, "")
    assert err.startswith("LLC0101 llamac: there is no verb 'inspekt' (did you mean 'inspect'?)")


def test_run_streams_text_to_stdout(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    code, out, err = _run(capsys, "run", toy_artifact, "--prompt", "ab", "--max-new-tokens", 5, "--temperature", 0)
    assert (code, out) == (0, "cdefg\n")
    assert err.startswith("[2 + 5 tokens, ended by length;")


def test_run_json(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    words = [
        "run",
        toy_artifact,
        "--prompt",
        "ab",
        "--max-new-tokens",
        3,
        "--temperature",
        0,
        "--json",
        "--logprobs",
        1,
    ]
    code, out, err = _run(capsys, *words)
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert result["text"] == "cde"
    assert result["prompt_ids"] == [97, 98]
    assert result["token_ids"] == [99, 100, 101]
    assert result["stop_reason"] == "length"
    assert [row["top"][0][0] for row in result["logprobs"]] == [99, 100, 101]
    assert {"load_ms", "time_to_first_token_ms", "total_ms"} <= result["timings"].keys()
    assert (result["model"], result["target"]) == ("toy", "host")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--prompt-ids", "97,98"], "cd"),
        (["--prompt", "ab", "--stop", "d"], "c"),
        (["--prompt", "ab", "--echo"], "abcd"),
        (["--prompt", "ab", "--check"], "cd"),
        (["--prompt", "ab", "--threads", "1", "--context", "8", "--target", "host"], "cd"),
    ],
)
def test_run_options(capsys: pytest.CaptureFixture[str], toy_artifact: Path, words: list[str], text: str) -> None:
    code, out, _ = _run(capsys, "run", toy_artifact, *words, "--max-new-tokens", 2, "--json")
    assert (code, json.loads(out)["text"]) == (0, text)


def test_run_echoes_the_prompt(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    words = ["run", toy_artifact, "--prompt", "ab", "--echo", "--max-new-tokens", 2, "--quiet"]
    assert _run(capsys, *words)[:2] == (0, "abcd\n")


def test_run_with_the_chat_template(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    words = ["run", toy_artifact, "--chat", "--prompt", "hi", "--max-new-tokens", 1, "--json"]
    assert json.loads(_run(capsys, *words)[1])["prompt_ids"] == [256, 258, *b"hi", 259]


def test_run_reads_the_prompt_from_stdin(toy_artifact: Path) -> None:
    done = _process("run", toy_artifact, "--prompt", "-", "--max-new-tokens", 3, "--quiet", stdin="ab\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cde\n", "")


def test_run_without_a_tokenizer_prints_ids(capsys: pytest.CaptureFixture[str], toy: Any) -> None:
    path = toy.make(lambda manifest: manifest.update(tokenizer=None, chat_template=None))
    assert _run(capsys, "run", path, "--prompt-ids", "5", "--max-new-tokens", 2)[:2] == (0, "6 7\n")
    out = _run(capsys, "run", path, "--prompt-ids", "5", "--max-new-tokens", 2, "--json")[1]
    assert json.loads(out)["text"] is None


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--prompt", "x" * 200], 2, "LLC0809"),
        (["--prompt", ""], 2, "LLC0810"),
        ([], 2, "LLC0102"),
        (["--prompt", "a", "--prompt-ids", "1"], 2, "LLC0102"),
        (["--prompt-ids", "a"], 2, "LLC0101"),
        (["--prompt-ids", "999"], 2, "LLC0812"),
        (["--prompt", "a", "--max-new-tokens", "x"], 2, "LLC0101"),
        (["--prompt", "a", "--max-new-tokens", "0"], 2, "LLC0811"),
        (["--prompt", "a", "--system", "s"], 2, "LLC0101"),
        (["--prompt", "a", "--target", "hots"], 2, "LLC0801"),
        (["--prompt", "a", "--context", "9999"], 2, "LLC0816"),
        (["--prompt", "a", "--no-such-option"], 2, "LLC0101"),
    ],
)
def test_wrong_input_is_one_coded_error(
    capsys: pytest.CaptureFixture[str], toy_artifact: Path, words: list[str], code: int, error: str
) -> None:
    found, out, err = _run(capsys, "run", toy_artifact, "--json", *words)
    assert found == code
    assert json.loads(out)["error"]["code"] == error
    assert err.startswith(error)
    assert err.count("\n") == 1


def _flipped(path: Path, folder: Path, member: str) -> Path:
    from llamac.artifact.read import Artifact

    with Artifact.open(path) as artifact:
        offset, size = artifact.member_offset(member)
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    damaged = folder / "damaged.llamac"
    damaged.write_bytes(data)
    return damaged


@pytest.mark.parametrize("member", ["manifest.json", "code/host.so"])
def test_a_flipped_byte_in_manifest_or_code_is_found_at_load(
    capsys: pytest.CaptureFixture[str], toy_artifact: Path, tmp_path: Path, member: str
) -> None:
    code, out, err = _run(capsys, "run", _flipped(toy_artifact, tmp_path, member), "--prompt", "ab")
    assert (code, out) == (2, "")
    assert err.startswith("LLC07")


def test_a_flipped_byte_in_the_weights_is_found_by_check_and_verify(
    capsys: pytest.CaptureFixture[str], toy_artifact: Path, tmp_path: Path
) -> None:
    damaged = _flipped(toy_artifact, tmp_path, "weights/toy.bin")
    assert _run(capsys, "run", damaged, "--prompt", "ab", "--max-new-tokens", 1)[0] == 0
    code, _, err = _run(capsys, "run", damaged, "--prompt", "ab", "--check")
    assert (code, err[:7]) == (2, "LLC0712")
    code, out, err = _run(capsys, "verify", damaged, "--json")
    result = json.loads(out)
    assert (code, result["passed"], result["golden"]) == (2, False, None)
    assert result["findings"][0]["code"] == "LLC0712"
    assert err.startswith("LLC0712")


def test_a_truncated_artifact(capsys: pytest.CaptureFixture[str], toy_artifact: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.llamac"
    cut.write_bytes(toy_artifact.read_bytes()[:-1000])
    for verb in (["run", cut, "--prompt", "a"], ["inspect", cut], ["verify", cut], ["bench", cut]):
        code, _, err = _run(capsys, *verb)
        assert (code, err[:5]) == (2, "LLC07")


def test_an_artifact_for_another_cpu(capsys: pytest.CaptureFixture[str], toy: Any) -> None:
    path = toy.make(lambda manifest: manifest["targets"][0].update(triple="riscv64-linux-gnu"))
    code, _, err = _run(capsys, "run", path, "--prompt", "a")
    assert (code, err[:7]) == (2, "LLC0800")
    assert _run(capsys, "inspect", path)[0] == 0
    assert _run(capsys, "verify", path, "--hashes-only")[0] == 0


def test_verify(capsys: pytest.CaptureFixture[str], toy: Any, toy_artifact: Path) -> None:
    code, out, _ = _run(capsys, "verify", toy_artifact)
    assert (code, out.splitlines()[0]) == (0, "every byte matches its hash")
    assert "golden vector 0: ok" in out
    wrong = toy.make(lambda manifest: manifest["golden"]["vectors"][0].update(greedy_ids=[1]))
    code, out, err = _run(capsys, "verify", wrong, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)
    assert err.startswith("LLC0817")


def test_inspect(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    code, out, _ = _run(capsys, "inspect", toy_artifact, "--members")
    assert code == 0
    for word in ("toy", "fuse-gqa", "fused 1", "KV cache", "tokenizer.json", "257 (tests)", "context 160"):
        assert word in out
    result = json.loads(_run(capsys, "inspect", toy_artifact, "--json")[1])
    assert {"model", "passes", "targets", "memory", "tokenizer", "generation", "ledger", "members"} <= result.keys()
    assert result["file"]["bytes"] == toy_artifact.stat().st_size


def test_bench(capsys: pytest.CaptureFixture[str], toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.runtime import read_bandwidth

    monkeypatch.setattr(read_bandwidth, "BUFFER_BYTES", 8 << 20)
    words = ["bench", toy_artifact, "--prompt-tokens", 20, "--new-tokens", 8, "--threads", 2, "--repeats", 2, "--json"]
    code, out, _ = _run(capsys, *words)
    result = json.loads(out)
    assert code == 0
    keys = [
        "load_ms",
        "time_to_first_token_ms",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "weight_bytes_per_token",
        "read_bandwidth_gb_per_s",
        "decode_fraction_of_read_bandwidth",
        "peak_rss_bytes",
    ]
    assert all(result[key] > 0 for key in keys)
    assert (result["threads"], result["prompt_tokens"], result["new_tokens"]) == (2, 20, 8)
    assert len(result["repeats"]) == 2
    code, _, err = _run(capsys, "bench", toy_artifact, "--prompt-tokens", 200)
    assert (code, err[:7]) == (2, "LLC0809")


def test_chat_answers_line_by_line(toy_artifact: Path) -> None:
    done = _process("chat", toy_artifact, "--max-new-tokens", 2, "--system", "s", stdin="a\n\n/reset\na\n/exit\n")
    assert done.returncode == 0
    # The toy goes on counting from <|assistant|> (259): ids 0 and 1 are the first two bytes.
    assert done.stdout == "\x00\x01\n\x00\x01\n"


def test_chat_says_that_its_input_is_no_utf8(toy_artifact: Path) -> None:
    command = [sys.executable, "-m", "llamac", "chat", str(toy_artifact), "--max-new-tokens", "2"]
    given = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, env=given)
    assert (done.returncode, done.stderr[:26]) == (2, b"LLC0102 stdin: it is not U")


def test_internal_errors_have_a_code_and_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy_artifact: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("llamac.cli.run._read_prompt", broken)
    monkeypatch.delenv("LLAMAC_TRACEBACK", raising=False)
    code, _, err = _run(capsys, "run", toy_artifact)
    assert (code, err[:37]) == (1, "LLC0100 llamac: ZeroDivisionError: oh")
    assert "LLAMAC_TRACEBACK=1" in err
    monkeypatch.setenv("LLAMAC_TRACEBACK", "1")
    assert "Traceback" in _run(capsys, "run", toy_artifact)[2]


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy_artifact: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llamac.cli.run._read_prompt", interrupted)
    assert _run(capsys, "run", toy_artifact)[0] == 130


def test_codes_of_unexpected_failures_exist() -> None:
    from llamac.errors import CODES

    assert CODES.keys() >= command_line.UNEXPECTED


HEAVY = ("torch", "triton", "transformers", "ziglang", "llamac.ir", "llamac.passes", "llamac.backends", "llamac.models")


def test_running_imports_neither_torch_nor_a_compiler_nor_the_ir(toy_artifact: Path) -> None:
    script = (
        "import sys; from llamac.cli.main import main; code = main(); "
        f"print([m for m in sys.modules if any(m == h or m.startswith(h + '.') for h in {HEAVY!r})]); sys.exit(code)"
    )
    for words in (["run", "--prompt", "ab", "--max-new-tokens", "2", "--quiet"], ["inspect"], ["verify"]):
        done = subprocess.run(
            [sys.executable, "-c", script, words[0], str(toy_artifact), *words[1:]], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


def test_importing_llamac_costs_nothing() -> None:
    script = "import sys, llamac; print([m for m in sys.modules if m.startswith(('llamac.', 'numpy', 'click'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_imports_no_numpy() -> None:
    script = "import sys; from llamac.cli.main import main; main(['--help']); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_public_names() -> None:
    import llamac

    assert llamac.load.__module__ == "llamac.runtime.loader"
    assert llamac.LlamacError.__module__ == "llamac.errors"
    assert llamac.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llamac.nothing

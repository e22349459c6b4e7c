"""`llamac plan`: sources, options, output, and one coded error for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.cli.main import main

Capture = pytest.CaptureFixture[str]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main(["plan", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def planned(capsys: Capture, *words: object) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, ""), err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_preset_on_a_gpu(capsys: Capture) -> None:
    words = ["meta-llama/Llama-3.1-405B-Instruct", "--target", "h100", "--tp", 8, "--quantize", "fp8"]
    found = planned(capsys, *words, "--context", 32768)
    assert found["model"]["name"] == "llama-3.1-405b" and found["efficiency"] == 1
    assert found["memory"]["fits"] and found["memory"]["largest_context"] == 131072
    assert found["memory"]["total"] == sum(found["memory"][n] for n in ("weights", "kv", "arena", "logits", "code"))
    assert found["weights"]["bytes"] == sum(found["weights"]["by_role"].values())
    assert found["decode"]["bound"] == "memory" and found["decode"]["tokens_per_second"] > 50
    assert found["request"]["quantization"] == "fp8"
    assert found["memory"]["estimated"].keys() == {"code"}
    code, out, _ = run(capsys, *words, "--context", 32768)
    assert code == 0 and "fits:" in out and "8 x h100" in out and "several devices" not in out


def test_mixtures_and_images(capsys: Capture) -> None:
    scout = planned(capsys, "llama-4-scout", "--target", "h200", "--quantize", "int4", "--kv", "fp8")
    assert [group["kind"] for group in scout["kv"]] == ["full", "chunked"]
    assert scout["weights"]["by_role"].keys() >= {"experts", "shared expert", "router"}
    assert scout["weights"]["by_role"]["vision"] > 1.6e9
    assert scout["memory"]["estimated"].keys() == {"code"}
    vision = planned(capsys, "llama-3.2-90b-vision", "--target", "mi300x", "--images", 2)
    assert [(group["kind"], group["layers"]) for group in vision["kv"]] == [("full", 80), ("cross", 20)]


def test_a_bare_config_and_a_checkpoint(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    words = ["--target", "x86-64-v3", "--memory", "1G"]
    bare = planned(capsys, tmp_path, *words)
    assert bare["model"]["stored_bytes"] is None and bare["memory"]["fits"]
    assert planned(capsys, tmp_path / "config.json", *words) == bare
    _write_safetensors(tmp_path)
    found = planned(capsys, tmp_path, *words)
    assert found["model"]["stored_bytes"] == {"bf16": 2 * sum(bare["model"]["parameters"].values())}
    assert found["memory"] == bare["memory"]
    code, out, _ = run(capsys, tmp_path, *words)
    assert code == 0 and "the checkpoint stores" in out


def _write_safetensors(folder: Path) -> None:
    """Every weight of CONFIG in bf16, all zeros."""
    from llamac.models.llama.hf_config import config_from_hf
    from llamac.models.llama.weights import HF, expected_shapes, stored_name

    header, offset = {}, 0
    for name, shape in expected_shapes(config_from_hf(CONFIG)[0]).items():
        nbytes = 2 * int(np.prod(shape))
        header[stored_name(name, HF)] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))


def test_this_machine_is_measured(capsys: Capture) -> None:
    found = planned(capsys, "tiny")
    assert found["target"]["bandwidth"] > 1e8 and found["target"]["memory_bytes"] > 1e8
    assert found["decode"]["seconds"] > 0 and found["memory"]["fits"]


def test_rates_and_sizes_can_be_given(capsys: Capture) -> None:
    words = ["llama-3.1-8b", "--target", "aarch64", "--quantize", "int4", "--context", 4096]
    found = planned(capsys, *words, "--bandwidth", 50, "--peak", 2, "--memory", "16G")
    assert found["decode"]["seconds_by_bound"]["memory"] == pytest.approx(
        (found["decode"]["weight_bytes"] + found["decode"]["cache_bytes"]) / 50e9, rel=1e-3
    )
    assert found["prefill"]["bound"] == "compute" and found["memory"]["fits"] is True
    assert planned(capsys, *words)["memory"]["fits"] is None
    code, out, _ = run(capsys, *words)
    assert code == 0 and "--memory SIZE" in out and "--bandwidth GB/S" in out


def test_what_if(capsys: Capture) -> None:
    words = ["llama-3.1-70b", "--target", "h100", "--what-if", "--quantize", "int4,fp8", "--tp", "1,2", "--batch", 8]
    found = planned(capsys, *words, "--context", "4096,8192")
    rows = found["plans"]
    assert [(row["quantization"], row["tp"], row["context"], row["batch"]) for row in rows] == [
        (scheme, tp, context, 8) for scheme in ("int4", "fp8") for tp in (1, 2) for context in (4096, 8192)
    ]
    assert {row["fits"] for row in rows} == {True, False}
    code, out, _ = run(capsys, *words, "--context", "4096,8192")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 9 and lines[0].split()[:2] == ["quantize", "tp"] and "does not fit" in out
    assert len(planned(capsys, "llama-3.1-70b", "--target", "h100", "--what-if")["plans"]) == 4 * 4 * 3 * 2


def test_a_terminal_gets_a_drawn_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    words = ["llama-3.1-70b", "--target", "h100", "--what-if", "--tp", "1,2", "--quantize", "int4", "--batch", "1"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "llama-3.1-70b on h100" in out and out.count("int4") == 6
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, out, _ = run(capsys, *words)
    assert code == 0 and len(out.splitlines()) == 7


def test_the_plot_is_a_file_beside_the_output(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    planned(capsys, "llama-3.1-8b", "--target", "h100", "--plot", file)
    assert file.read_text(encoding="utf-8").startswith("<svg ")
    planned(capsys, "llama-3.1-8b", "--target", "h100", "--what-if", "--tp", 1, "--plot", file)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["llama-3.1-8bb"], "LLC0309 llama-3.1-8bb: neither a file or folder nor a preset (did you mean"),
        (["no/such/folder"], "LLC0201 no/such/folder"),
        (["tiny", "--context", "0"], "LLC0109 --context: 0 is outside 1..512, the model's own context"),
        (["tiny", "--context", "513"], "LLC0109 --context: 513 is outside"),
        (["tiny", "--context", "many"], "LLC0109 --context: 'many' is no whole number"),
        (["tiny", "--context", "64,128"], "LLC0109 --context: several values make a table. Next: add --what-if"),
        (["tiny", "--batch", ","], "LLC0109 --batch: ',' holds an empty value"),
        (["tiny", "--kv", "f4"], "LLC0109 --kv: unknown cache type 'f4'"),
        (["tiny", "--quantize", "int5"], "LLC0104 --quantize: unknown scheme 'int5'"),
        (["tiny", "--target", "h1000"], "LLC0603 h1000: unknown target (did you mean 'h100'?)"),
        (["tiny", "--target", "h100", "--tp", "3"], "LLC0109 --tp: 4 attention heads cannot be shared by 3"),
        (["tiny", "--target", "x86-64-v3", "--tp", "2"], "LLC0109 --tp: x86-64-v3 is one device"),
        (["tiny", "--bandwidth", "-1"], "LLC0109 --bandwidth: -1.0 is no rate"),
        (["tiny", "--target", "h100", "--plot", "/no/such/folder/x.svg"], "LLC0109 --plot: cannot write"),
        (["tiny", "--memory", "lots"], "LLC0101 llamac plan"),
    ],
)
def test_wrong_input_is_one_coded_error(capsys: Capture, words: list[str], expected: str) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and err.startswith(expected) and err.count("\n") == 1, err


def test_gpus_are_listed(capsys: Capture) -> None:
    assert main(["targets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed["gpus"]} >= {"a100", "h100", "h200", "b200", "mi300x", "mi355x", "rdna3"}
    assert all("compile" in row["possible"] for row in [*listed["gpus"], *listed["targets"]])

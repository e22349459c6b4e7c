"""Hugging Face folders: what is read, what is ignored and noted, and one coded error for each way they are damaged."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from llamac.errors import LlamacError
from llamac.models.safetensors_header import read_header
from llamac.models.safetensors_reader import read_hf_directory

Weights = dict[str, NDArray[Any]]
WriteHf = Callable[..., Path]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def refusal(directory: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        read_hf_directory(directory)
    return caught.value


def test_single_file(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights))
    names = list(checkpoint.tensors)
    assert names[:3] == ["embed", "layers.0.attn_norm", "layers.0.attn.q"] and names[-2:] == ["norm", "head"]
    assert len(names) == len(hf_weights)
    for tensor in checkpoint.tensors.values():
        rows = checkpoint.read_rows(tensor.name, 0, tensor.rows)
        assert rows.tobytes() == hf_weights[tensor.stored_name].tobytes()
    middle = checkpoint.read_rows("layers.1.mlp.down", 5, 9)
    assert middle.view(np.float32).tolist() == hf_weights["model.layers.1.mlp.down_proj.weight"][5:9].tolist()
    assert checkpoint.read_rows("norm", 0, 1).shape == (1, 256)
    with pytest.raises(LlamacError, match="LLC0217 norm"):
        checkpoint.read_rows("norm", 0, 2)


def test_folder_that_transformers_writes(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config |= {"tie_word_embeddings": True, "dtype": "bfloat16"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw_config)).bfloat16()
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    checkpoint = read_hf_directory(tmp_path / "m")
    assert checkpoint.config.tied_head and checkpoint.config.dtype == "bf16" and "head" not in checkpoint.tensors
    query = model.model.layers[1].self_attn.q_proj.weight.detach().view(torch.uint8).numpy()
    assert checkpoint.read_rows("layers.1.attn.q", 0, 64).tobytes() == query.tobytes()
    assert [item["kind"] for item in checkpoint.ledger if item["where"] != "tokenizer"] == []


def test_dtypes_are_read_as_stored(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    mixed = {name: value.astype(ml_dtypes.bfloat16) for name, value in hf_weights.items()}
    mixed["model.norm.weight"] = hf_weights["model.norm.weight"]
    mixed["lm_head.weight"] = hf_weights["lm_head.weight"].astype(np.float16)
    del raw_config["dtype"]
    checkpoint = read_hf_directory(write_hf(raw_config, mixed))
    encodings = {name: checkpoint.tensors[name].encoding for name in ("embed", "norm", "head")}
    assert encodings == {"embed": "bf16", "norm": "f32", "head": "f16"}
    assert checkpoint.config.dtype == "bf16"
    entries = {(item["where"], item["what"]) for item in checkpoint.ledger}
    assert {("config.json dtype", "bf16"), ("weights", "1 weights are stored as f32")} <= entries


def test_tied_head_that_is_stored_is_ignored(
    raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf
) -> None:
    raw_config["tie_word_embeddings"] = True
    hf_weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, dtype=np.float32)
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights))
    assert "head" not in checkpoint.tensors
    ignored = {item["where"] for item in checkpoint.ledger if item["kind"] == "ignored"}
    assert ignored == {"head", "layers.0"}


def test_shards(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    items = list(hf_weights.items())
    shards = [dict(items[:7]), dict(items[7:15]), dict(items[15:])]
    directory = write_hf(raw_config, shards)
    checkpoint = read_hf_directory(directory)
    assert {tensor.file.name[6:11] for tensor in checkpoint.tensors.values()} == {"00001", "00002", "00003"}
    assert checkpoint.read_rows("head", 1, 2).tobytes() == hf_weights["lm_head.weight"][1].tobytes()

    second = directory / "model-00002-of-00003.safetensors"
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    second.rename(directory / "elsewhere")
    error = refusal(directory)
    assert error.code == "LLC0205" and second.name in str(error) and "8 weights from layers.0.mlp" in str(error)
    (directory / "elsewhere").rename(second)

    index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": second.name}}))
    error = refusal(directory)
    assert error.code == "LLC0206" and error.where == "head" and second.name in str(error)

    for name in ("../secret", "/etc/passwd", "..", "a\\b", "", 5):
        index.write_text(json.dumps({"weight_map": weight_map | {"lm_head.weight": name}}))
        assert refusal(directory).code == "LLC0214"

    index.write_text(json.dumps({"weight_map": weight_map}))
    save_file(shards[1] | {"lm_head.weight": hf_weights["lm_head.weight"]}, second)
    error = refusal(directory)
    assert error.code == "LLC0204" and error.where == "head" and "again" in str(error)

    index.unlink()
    assert refusal(directory).code == "LLC0205"


def test_weights_against_the_config(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    q = "model.layers.1.self_attn.q_proj.weight"
    error = refusal(write_hf(raw_config, hf_weights | {q: hf_weights[q][:32]}))
    assert error.code == "LLC0208" and error.where == "layers.1.attn.q"
    assert "expected shape [64, 64]" in str(error) and "found [32, 64]" in str(error)

    error = refusal(write_hf(raw_config, {name: value for name, value in hf_weights.items() if name != q}))
    assert error.code == "LLC0206" and error.where == "layers.1.attn.q" and q in str(error)

    untied = {name: value for name, value in hf_weights.items() if name != "lm_head.weight"}
    error = refusal(write_hf(raw_config, untied))
    assert error.code == "LLC0206" and error.where == "head" and "tie_word_embeddings" in error.hint

    error = refusal(write_hf(raw_config, hf_weights | {q.replace("weight", "bias"): np.ones(64, np.float32)}))
    assert error.code == "LLC0207" and error.where == "layers.1.attn.q (bias)"

    error = refusal(write_hf(raw_config, hf_weights | {"model.vision.weight": np.ones(4, np.float32)}))
    assert error.code == "LLC0207" and "model.vision.weight" in str(error)

    error = refusal(write_hf(raw_config | {"num_hidden_layers": 1}, hf_weights))
    assert error.code == "LLC0207" and error.where.startswith("layers.1.") and "1 layers" in str(error)

    error = refusal(write_hf(raw_config, hf_weights | {q: np.ones((64, 64), np.int8)}))
    assert error.code == "LLC0209" and error.where == "layers.1.attn.q" and "I8" in str(error)


def test_folders_without_readable_weights(raw_config: dict[str, Any], write_hf: WriteHf, tmp_path: Path) -> None:
    directory = write_hf(raw_config)
    error = refusal(directory)
    assert error.code == "LLC0205" and "--random-weights" in error.hint
    (directory / "pytorch_model.bin").write_bytes(b"PK")
    error = refusal(directory)
    assert error.code == "LLC0210" and "safetensors" in error.hint
    assert refusal(tmp_path).code == "LLC0201"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_git_lfs_pointers(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf, name: str) -> None:
    error = refusal(write_hf(raw_config, hf_weights, {name: LFS}))
    assert error.code == "LLC0202" and error.where == name and "git lfs pull" in error.hint


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 10_000])
def test_broken_config_json(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf, data: bytes) -> None:
    error = refusal(write_hf(raw_config, hf_weights, {"config.json": data}))
    assert error.code == "LLC0214" and error.where == "config.json"


def test_truncated_at_any_length(tmp_path: Path, hf_weights: Weights) -> None:
    data = save(hf_weights)
    path = tmp_path / "model.safetensors"
    for length in [0, 4, 8, 9, 500, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(LlamacError) as caught:
            read_header(path)
        assert caught.value.code == "LLC0203", length


def entry(begin: int = 0, end: int = 16, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [begin, end]} | changes


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(), "b": entry(8, 24)}, "overlaps"),
        ({"a": entry(), "b": entry(24, 40)}, "unused bytes"),
        ({"a": entry(8, 24)}, "unused bytes"),
        ({"a": entry()}, "after the last tensor"),
        ({"a": entry(shape=[2, 3])}, "does not fill"),
        ({"a": entry(shape=[2, -2])}, "lacks a valid"),
        ({"a": entry(shape=[True, 4])}, "lacks a valid"),
        ({"a": entry(shape=[2**62, 2**62])}, "lacks a valid"),
        ({"a": entry(shape=[2**61, 2**61, 2**61])}, "does not fill"),
        ({"a": entry(shape="22")}, "lacks a valid"),
        ({"a": entry(16, 0)}, "does not fill"),
        ({"a": entry(data_offsets=[0])}, "lacks a valid"),
        ({"a": entry(data_offsets=[0, 1.5])}, "lacks a valid"),
        ({"a": entry(dtype="F33")}, "unknown dtype"),
        ({"a": entry(dtype=5)}, "lacks a valid"),
        ({"a": [1]}, "not described by an object"),
        ([], "JSON object"),
    ],
)
def test_headers_no_writer_produces(tmp_path: Path, header: object, words: str) -> None:
    data = json.dumps(header).encode()
    error = header_refusal(tmp_path, struct.pack("<Q", len(data)) + data + bytes(40))
    assert error.code == "LLC0204" and words in str(error), str(error)


def header_refusal(folder: Path, data: bytes) -> LlamacError:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(LlamacError) as caught:
        read_header(path)
    return caught.value


def test_headers_that_are_no_json(tmp_path: Path) -> None:
    assert header_refusal(tmp_path, struct.pack("<Q", 2**63) + bytes(64)).code == "LLC0204"
    assert header_refusal(tmp_path, struct.pack("<Q", 10**12) + bytes(64)).code == "LLC0204"
    assert header_refusal(tmp_path, struct.pack("<Q", 0) + bytes(64)).code == "LLC0204"
    assert header_refusal(tmp_path, struct.pack("<Q", 16) + b"\xff" * 64).code == "LLC0204"
    twice = b'{"a": {}, "a": {}}'
    assert "twice" in str(header_refusal(tmp_path, struct.pack("<Q", len(twice)) + twice))


def test_weights_that_shrink_while_read(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    directory = write_hf(raw_config, hf_weights)
    checkpoint = read_hf_directory(directory)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LlamacError, match=r"LLC0203 head: model\.safetensors ended early"):
        checkpoint.read_rows("head", 0, 40)


def tokenizer_json(post_processor: object = None) -> dict[str, Any]:
    added = [(30, "<|begin_of_text|>"), (31, "<|eot_id|>"), (32, "<|end_of_text|>")]
    rows = [{"id": index, "content": text, "special": True} for index, text in added]
    return {"added_tokens": rows, "model": {"type": "BPE"}, "post_processor": post_processor}


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}]}


def test_text_files(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    files = {
        "tokenizer.json": tokenizer_json({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}),
        "tokenizer_config.json": {
            "bos_token": "<|begin_of_text|>",
            "eos_token": {"content": "<|eot_id|>"},
            "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
        },
        "generation_config.json": {"eos_token_id": [31, 3, 4000], "temperature": 0.6, "top_p": 0.9, "do_sample": True},
        "README.md": b"---\nlanguage: en\nlicense: llama3.2\n---\n# Model\n",
    }
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights, files))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "tokenizer.json"
    assert checkpoint.tokenizer.files == {"tokenizer.json": json.dumps(files["tokenizer.json"]).encode()}
    assert checkpoint.tokenizer.info == {"bos_id": 30, "eos_id": 31, "add_bos": True}
    generation = checkpoint.generation
    assert (generation.bos_id, generation.add_bos, generation.stop_ids) == (30, True, (2, 3, 31, 32))
    assert generation.stop_sources[32] == ("the special token <|end_of_text|>",)
    assert generation.stop_sources[31][0] == "generation_config.json eos_token_id"
    assert generation.sampling == {"temperature": 0.6, "top_p": 0.9}
    assert (checkpoint.chat_template, checkpoint.license) == ("d", "llama3.2")
    assert any("stop id 4000" in item["what"] for item in checkpoint.ledger)


def test_text_files_the_other_way(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    files = {
        "tokenizer.json": tokenizer_json(),
        "chat_template.jinja": b"{{ jinja }}",
        "generation_config.json": {"do_sample": False, "temperature": 0.9, "top_k": "many"},
        "LICENSE": b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n",
    }
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights, files))
    assert (checkpoint.chat_template, checkpoint.license) == ("{{ jinja }}", "llama3.1")
    assert checkpoint.generation.add_bos is False
    assert checkpoint.generation.sampling == {"temperature": 0.0}
    assert any("top_k" in item["what"] for item in checkpoint.ledger)


def test_tiktoken_and_sentencepiece_files(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    raw_config["vocab_size"] = 600
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        hf_weights[name] = np.zeros((600, 64), np.float32)
    ranks = b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))
    directory = write_hf(raw_config, hf_weights, {"tokenizer.model": ranks})
    checkpoint = read_hf_directory(directory)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "tiktoken"
    special = checkpoint.tokenizer.info["special_tokens"]
    assert isinstance(special, dict) and len(special) == 256 and special["<|eot_id|>"] == 256 + 9
    assert sorted(checkpoint.tokenizer.files) == ["ranks.table", "tokenizer.model"]
    assert checkpoint.tokenizer.info["chat_format"] == "llama3"
    assert checkpoint.generation.bos_id == 256 and checkpoint.generation.add_bos
    assert set(checkpoint.generation.stop_ids) == {2, 257, 264, 265}

    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00")
    with pytest.raises(LlamacError, match=r"LLC0214 tokenizer\.model: it is no SentencePiece model"):
        read_hf_directory(directory)


def test_same_content_in_another_folder_reads_the_same(
    raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf, tmp_path: Path
) -> None:
    first = write_hf(raw_config, hf_weights, folder="one")
    shutil.copytree(first, tmp_path / "another name")
    a, b = read_hf_directory(first), read_hf_directory(tmp_path / "another name")
    assert (a.name, a.config, a.ledger) == (b.name, b.config, b.ledger)

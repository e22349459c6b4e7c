"""GGUF files: against the reference reader, and one coded error for each way they are damaged or unsupported."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.checkpoint import BLOCKS
from llamac.models.gguf_file import read_gguf
from llamac.models.gguf_reader import read_gguf_checkpoint
from llamac.models.llama.config import RopeScaling
from llamac.models.llama.weights import GGUF, expected_shapes, stored_name
from llamac.models.presets import preset

Weights = dict[str, NDArray[Any]]
Metadata = dict[str, Any]
Write = Callable[..., Path]
SUPPORTED = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()


def refusal(path: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        read_gguf_checkpoint(path)
    return caught.value


def test_config_and_rows(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    path = write_gguf(gguf_metadata, gguf_weights)
    checkpoint = read_gguf_checkpoint(path)
    config = checkpoint.config
    assert (config.name, config.hidden_size, config.layers, config.heads, config.kv_heads) == ("Tiny", 64, 2, 4, 2)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_style) == (1e-5, 5e5, "interleaved")
    assert (config.tied_head, config.head_dim, config.dtype) == (False, 16, "f32")
    assert (checkpoint.name, checkpoint.license, checkpoint.format) == ("Tiny", "apache-2.0", "gguf")
    for tensor in gguf.GGUFReader(path).tensors:
        ours = next(one for one in checkpoint.tensors.values() if one.stored_name == tensor.name)
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert checkpoint.read_rows(ours.name, 0, ours.rows).tobytes() == tensor.data.tobytes()
    wheres = {item["where"] for item in checkpoint.ledger}
    assert wheres == {"gguf llama.attention.key_length", "gguf dtype"}


@pytest.mark.parametrize("name", SUPPORTED)
def test_encodings(gguf_metadata: Metadata, write_gguf: Write, name: str) -> None:
    config = replace(preset("tiny"), layers=1, hidden_size=256, intermediate_size=256, kv_heads=1, head_dim=64)
    shapes = expected_shapes(replace(config, vocab_size=40))
    gguf_metadata |= {"llama.block_count": 1, "llama.embedding_length": 256, "llama.feed_forward_length": 256}
    gguf_metadata |= {"llama.attention.head_count_kv": 1, "llama.rope.dimension_count": 64}
    weights = {stored_name(key, GGUF): np.ones(shape, np.float32) for key, shape in shapes.items()}
    path = write_gguf(gguf_metadata, weights, {key: Kind[name] for key, value in weights.items() if value.ndim == 2})
    checkpoint = read_gguf_checkpoint(path)
    assert checkpoint.tensors["layers.0.mlp.down"].encoding == name.lower()
    for tensor in gguf.GGUFReader(path).tensors:
        ours = next(one for one in checkpoint.tensors.values() if one.stored_name == tensor.name)
        assert ours.encoding == tensor.tensor_type.name.lower() and ours.nbytes == tensor.n_bytes
        last = checkpoint.read_rows(ours.name, ours.rows - 1, ours.rows)
        assert last.tobytes() == tensor.data.tobytes()[-ours.row_bytes :]


def test_block_sizes_are_those_of_the_reference() -> None:
    for name in [*SUPPORTED, "F32"]:
        assert BLOCKS[name.lower()] == gguf.GGML_QUANT_SIZES[Kind[name]]


def test_tied_head_and_vocabulary_default(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    del gguf_weights["output.weight"], gguf_metadata["llama.vocab_size"], gguf_metadata["llama.rope.freq_base"]
    del gguf_metadata["llama.attention.head_count_kv"]
    for index in range(2):
        for kind in "kv":
            gguf_weights[f"blk.{index}.attn_{kind}.weight"] = np.ones((64, 64), np.float32)
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    config = checkpoint.config
    assert (config.tied_head, config.vocab_size, config.rope_theta, config.kv_heads) == (True, 40, 10000.0, 4)
    defaults = {item["where"] for item in checkpoint.ledger if item["kind"] == "default"}
    assert {"gguf llama.vocab_size", "gguf llama.rope.freq_base", "gguf llama.attention.head_count_kv"} <= defaults


def test_rope_divisors(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    divisors = np.array([1, 1, 1, 1.5, 2.25, 4, 8, 32], np.float32)
    gguf_weights["rope_freqs.weight"] = divisors
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    assert checkpoint.config.rope_scaling == RopeScaling("divisors", divisors=tuple(divisors.tolist()))
    assert all("rope" not in name for name in checkpoint.tensors)

    error = refusal(write_gguf(gguf_metadata | {"llama.rope.scale_linear": 2.0}, gguf_weights))
    assert error.code == "LLC0304" and "rope_freqs.weight" in str(error)
    error = refusal(write_gguf(gguf_metadata, gguf_weights | {"rope_freqs.weight": divisors[:4]}))
    assert error.code == "LLC0304" and "4 rope divisors" in str(error)
    error = refusal(write_gguf(gguf_metadata, gguf_weights | {"rope_freqs.weight": divisors - 1}))
    assert error.code == "LLC0303"
    error = refusal(write_gguf(gguf_metadata, gguf_weights | {"rope_freqs.weight": divisors.astype(np.float16)}))
    assert error.code == "LLC0209" and error.where == "rope"


def test_linear_rope(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    gguf_metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights)).config.rope_scaling == RopeScaling(
        "linear", 4.0
    )
    gguf_metadata["llama.rope.scaling.type"] = "none"
    assert read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights)).config.rope_scaling is None


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "LLC0305", ["yarn"]),
        ({"llama.expert_count": 8}, "LLC0308", ["llama.expert_count"]),
        ({"llama.attention.sliding_window": 4096}, "LLC0308", ["sliding_window"]),
        ({"llama.attention.head_count_kv": [2, 1]}, "LLC0308", ["differs between layers"]),
        ({"llama.attention.head_count_kv": 3}, "LLC0304", ["3 key/value heads"]),
        ({"llama.rope.dimension_count": 8}, "LLC0304", ["rope.dimension_count"]),
        ({"llama.attention.value_length": 32}, "LLC0304", ["value_length"]),
        ({"llama.block_count": None}, "LLC0302", ["llama.block_count"]),
        ({"llama.embedding_length": 0}, "LLC0303", ["llama.embedding_length"]),
        ({"llama.embedding_length": "64"}, "LLC0303", ["llama.embedding_length"]),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "LLC0303", ["layer_norm_rms_epsilon"]),
        ({"llama.feed_forward_length": 128}, "LLC0208", ["layers.0.mlp.gate", "[128, 64]", "[96, 64]"]),
        ({"llama.vocab_size": 41}, "LLC0208", ["embed", "[41, 64]", "[40, 64]"]),
        ({"llama.block_count": 1}, "LLC0207", ["layers.1."]),
        ({"llama.block_count": 3}, "LLC0206", ["layers.2.attn_norm", "blk.2.attn_norm.weight"]),
        ({"split.count": 3}, "LLC0210", ["split", "llama-gguf-split"]),
        ({"general.alignment": 48}, "LLC0212", ["general.alignment"]),
        ({"tokenizer.ggml.token_type": [1, 1]}, "LLC0212", ["token_type"]),
        ({"tokenizer.ggml.merges": None}, "LLC0212", ["merges"]),
        ({"tokenizer.ggml.tokens": [f"t{i}" for i in range(41)], "tokenizer.ggml.token_type": None}, "LLC0212", ["41"]),
    ],
)
def test_refused_metadata(
    gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write, change: Metadata, code: str, words: list[str]
) -> None:
    merged = {key: value for key, value in (gguf_metadata | change).items() if value is not None}
    if change.get("general.alignment"):  # the reference writer refuses it as well, so it is put in afterwards
        path = write_gguf({"general.alignmens": 48} | gguf_metadata, gguf_weights)
        path.write_bytes(path.read_bytes().replace(b"general.alignmens", b"general.alignment"))
    else:
        path = write_gguf(merged, gguf_weights)
    error = refusal(path)
    assert error.code == code, str(error)
    assert all(word in str(error) for word in words), str(error)


def test_equal_numbers_per_layer(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    gguf_metadata |= {"llama.attention.head_count_kv": [2, 2], "llama.new_key": 5}
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    assert checkpoint.config.kv_heads == 2
    assert [item["where"] for item in checkpoint.ledger if item["kind"] == "unknown-key"] == ["gguf llama.new_key"]


def test_architecture(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    error = refusal(write_gguf(gguf_metadata, gguf_weights, architecture="qwen2"))
    assert error.code == "LLC0301" and "qwen2" in str(error)
    error = refusal(write_gguf(gguf_metadata, gguf_weights, architecture="llama4"))
    assert error.code == "LLC0302" and "llama4." in str(error)


def test_weights_that_do_not_belong(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    bias = gguf_weights | {"blk.1.attn_q.bias": np.ones(64, np.float32)}
    error = refusal(write_gguf(gguf_metadata, bias))
    assert error.code == "LLC0207" and error.where == "layers.1.attn.q (bias)"
    experts = gguf_weights | {"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}
    error = refusal(write_gguf(gguf_metadata, experts))
    assert error.code == "LLC0207" and error.where == "layers.0" and "ffn_gate_inp" in str(error)
    error = refusal(write_gguf(gguf_metadata, {"output_norm.weight": gguf_weights["output_norm.weight"]}))
    assert error.code == "LLC0206" and error.where == "embed"


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "IQ4_XS", "TQ1_0"])
def test_unsupported_types(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write, name: str) -> None:
    tensor = "blk.1.ffn_up.weight"
    gguf_weights[tensor] = np.ones((96, 256), np.float32)
    error = refusal(write_gguf(gguf_metadata, gguf_weights, {tensor: Kind[name]}))
    assert error.code == "LLC0209" and error.where == "layers.1.mlp.up"
    assert name in str(error) and "Q4_K" in error.hint


def test_bpe_tokenizer(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "gguf-bpe"
    stored = json.loads(checkpoint.tokenizer.files["vocabulary.json"])
    assert stored["tokens"] == gguf_metadata["tokenizer.ggml.tokens"]
    assert stored["token_types"] == gguf_metadata["tokenizer.ggml.token_type"]
    assert (stored["merges"], stored["pre"], stored["model"]) == (["t 0", "t 1"], "llama-bpe", "gpt2")
    assert checkpoint.tokenizer.info == {"add_bos": True, "bos_id": 38, "eos_id": 5}
    assert checkpoint.chat_template == "{{ messages }}"
    generation = checkpoint.generation
    assert (generation.bos_id, generation.add_bos, generation.stop_ids) == (38, True, (5, 39))
    assert generation.stop_sources == {5: ("tokenizer.ggml.eos_token_id",), 39: ("the special token <|im_end|>",)}


def test_spm_tokenizer_and_defaults(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    del gguf_metadata["tokenizer.ggml.add_bos_token"], gguf_metadata["tokenizer.ggml.merges"]
    scores = [-float(index) for index in range(40)]
    gguf_metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.eot_token_id": 7,
    }
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "gguf-spm"
    assert json.loads(checkpoint.tokenizer.files["vocabulary.json"])["scores"] == scores
    assert checkpoint.generation.add_bos and checkpoint.generation.stop_ids == (5, 7, 39)
    assert "tokenizer add_bos" in {item["where"] for item in checkpoint.ledger}
    error = refusal(write_gguf(gguf_metadata | {"tokenizer.ggml.scores": scores[:3]}, gguf_weights))
    assert error.code == "LLC0212" and "scores" in str(error)


def test_tokenizer_of_another_kind(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata | {"tokenizer.ggml.model": "rwkv"}, gguf_weights))
    assert checkpoint.tokenizer is None
    assert any("rwkv" in item["reason"] for item in checkpoint.ledger)


def test_truncated_at_any_length(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    path = write_gguf(gguf_metadata, gguf_weights)
    data = path.read_bytes()
    header = min(tensor.offset for tensor in read_gguf(path).tensors)
    for length in [0, 3, 7, 20, *range(24, header, 97), header, len(data) // 2, len(data) - 40]:
        path.write_bytes(data[:length])
        assert refusal(path).code == "LLC0203", length


def test_any_flipped_header_byte_is_an_error_or_a_checkpoint(
    gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write
) -> None:
    gguf_metadata |= {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1], "llama.vocab_size": 40}
    path = write_gguf(gguf_metadata, gguf_weights)
    data = bytearray(path.read_bytes())
    header = min(tensor.offset for tensor in read_gguf(path).tensors)
    generator = np.random.default_rng(3)
    for position in range(0, header, 5):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            read_gguf_checkpoint(path)
        except LlamacError as error:
            assert error.code[:5] in ("LLC02", "LLC03")


HEADER = struct.Struct("<4sIQQ")
HUGE = 2**64 - 1
EMBED = b"token_embd.weight"


def table_row(
    name: bytes = b"token_embd.weight", sizes: tuple[int, ...] = (64, 2), kind: int = 0, at: int = 0
) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes))
    return head + struct.pack(f"<{len(sizes)}Q", *sizes) + struct.pack("<IQ", kind, at)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (HEADER.pack(b"GGML", 3, 0, 0), "LLC0211", "GGML"),
        (HEADER.pack(b"GGUF", 1, 0, 0), "LLC0211", "version 1"),
        (HEADER.pack(b"GGUF", 4, 0, 0), "LLC0211", "version 4"),
        (HEADER.pack(b"GGUF", 3 << 24, 0, 0), "LLC0211", "big-endian"),
        (HEADER.pack(b"GGUF", 3, HUGE, 0), "LLC0203", "tensors"),
        (HEADER.pack(b"GGUF", 3, 0, HUGE), "LLC0203", "metadata pairs"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<Q", HUGE) + bytes(99), "LLC0212", "metadata key"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 13, bytes(99)), "LLC0212", "value type 13"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 8, struct.pack("<Q", HUGE)), "LLC0212", "k of"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 8, struct.pack("<Q", 2) + b"\xff\xff"), "LLC0212", "UTF-8"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 9, struct.pack("<IQ", 4, HUGE)), "LLC0212", "k holds"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 9, struct.pack("<IQ", 4, 2**20)), "LLC0203", "values of k"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**20)), "LLC0203", "values of k"),
        (HEADER.pack(b"GGUF", 3, 0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 9), "LLC0212", "value type 9"),
        (HEADER.pack(b"GGUF", 3, 0, 2) + pair(b"k", 7, b"\1") * 2 + bytes(99), "LLC0212", "twice"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(sizes=()) + bytes(99), "LLC0213", "0 dimensions"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(sizes=(1,) * 5) + bytes(99), "LLC0213", "5 dimensions"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(sizes=(2**33, 2**33)) + bytes(99), "LLC0213", "shape"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(sizes=(0, 2)) + bytes(99), "LLC0213", "shape"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(at=HUGE - 31) + bytes(999), "LLC0203", "token_embd.weight"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(at=3) + bytes(999), "LLC0213", "multiple of 32"),
        (HEADER.pack(b"GGUF", 3, 1, 0) + table_row(sizes=(33, 2), kind=2) + bytes(999), "LLC0213", "Q4_0 blocks"),
        (HEADER.pack(b"GGUF", 3, 2, 0) + table_row() * 2 + bytes(999), "LLC0213", "twice"),
        (HEADER.pack(b"GGUF", 3, 2, 0) + table_row() + table_row(b"x", at=32) + bytes(999), "LLC0213", "overlaps"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LLC0202", "git lfs pull"),
    ],
)
def test_damaged_containers(tmp_path: Path, data: bytes, code: str, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    error = refusal(path)
    assert (error.code, error.where) == (code, "model.gguf"), str(error)
    assert words in str(error)


def test_version_2_reads_like_version_3(gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write) -> None:
    path = write_gguf(gguf_metadata, gguf_weights)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    assert read_gguf_checkpoint(path).config.layers == 2


def test_the_readers_know_the_pre_tokenizers_that_the_runtime_has() -> None:
    from llamac.models.gguf_text import KNOWN_PRE
    from llamac.runtime.text.pre_tokenizers import PRE_TOKENIZERS

    assert set(PRE_TOKENIZERS) == KNOWN_PRE


def test_an_unknown_pre_tokenizer_is_known_when_it_is_read(
    gguf_metadata: Metadata, gguf_weights: Weights, write_gguf: Write
) -> None:
    gguf_metadata["tokenizer.ggml.pre"] = "llama-bpf"
    checkpoint = read_gguf_checkpoint(write_gguf(gguf_metadata, gguf_weights))
    assert checkpoint.tokenizer is None
    (note,) = [e for e in checkpoint.ledger if (e["kind"], e["where"]) == ("note", "tokenizer")]
    assert "llama-bpf" in note["reason"] and "did you mean 'llama-bpe'" in note["reason"]

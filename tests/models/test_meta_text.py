"""The text side of folders that hold Meta's vocabularies: table of ranks, special tokens, chat format, stop ids."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.models.hf_text import TextFiles, read_text_files
from llamac.models.llama import hf_vocabulary
from llamac.models.llama.hf_vocabulary import official_ranks
from llamac.models.llama.tiktoken_format import read_ranks
from llamac.runtime.text import pre_tokenizers
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer
from llamac.runtime.text.tokenizer_llama import LlamaTokenizer

TEXTS = ["Hello world 12345", " \n\n I'LL é日本 ǅ x<|eot_id|>y", "x" * 50 + "don't " * 20, "def f(x):\n    return 1\n"]


@cache
def model_file(generation: int) -> Path:
    try:
        files = metadata.files("llama-models") or []
    except metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llama-models")
    return Path(next(str(f.locate()) for f in files if str(f) == f"llama_models/llama{generation}/tokenizer.model"))


def folder(path: Path, **files: Any) -> Path:
    """A folder with JSON files, and maybe Meta's tokenizer.model of a generation."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        if name == "generation":
            (path / "tokenizer.model").symlink_to(model_file(content))
        else:
            (path / f"{name}.json").write_text(json.dumps(content))
    return path


def tokenizer_of(text: TextFiles) -> TokenizerBase:
    assert text.tokenizer is not None
    return load_tokenizer(text.tokenizer.kind, text.tokenizer.files, text.tokenizer.info)


def test_a_llama3_folder_in_metas_layout(tmp_path: Path) -> None:
    text = read_text_files(folder(tmp_path, generation=3), {"dim": 2048, "use_scaled_rope": True}, 128256)
    assert text.tokenizer is not None and sorted(text.tokenizer.files) == ["ranks.table", "tokenizer.model"]
    assert text.tokenizer.info["chat_format"] == "llama3.2"
    assert (text.generation.bos_id, text.generation.add_bos) == (128000, True)
    assert text.generation.stop_ids == (128001, 128008, 128009)
    assert text.generation.stop_sources[128009] == ("the special token <|eot_id|>",)
    assert isinstance(tokenizer_of(text), LlamaTokenizer)
    assert tokenizer_of(text).encode("Hello world 12345") == [128000, 9906, 1917, 220, 4513, 1774]
    assert any(
        (row["kind"], row["where"], row["what"]) == ("default", "chat format", "llama3.2") for row in text.ledger
    )


def test_a_llama4_folder_in_metas_layout(tmp_path: Path) -> None:
    text = read_text_files(folder(tmp_path, generation=4), {"dim": 5120}, 202048)
    assert text.tokenizer is not None and text.tokenizer.info["chat_format"] == "llama4"
    assert text.generation.stop_ids == (200001, 200007, 200008)
    special = text.tokenizer.info["special_tokens"]
    assert isinstance(special, dict) and len(special) == 2048
    assert (special["<|image|>"], special["<|patch|>"], special["<|reasoning_thinking_end|>"]) == (
        200090,
        200092,
        201143,
    )
    assert tokenizer_of(text).encode("Hello world 12345", add_bos=False) == [19873, 3817, 220, 7235, 2127]


def test_the_image_token_of_llama_3_2_vision(tmp_path: Path) -> None:
    text = read_text_files(folder(tmp_path, generation=3), {"dim": 4096, "vision_chunk_size": 448}, 128264)
    assert tokenizer_of(text).special_ids["<|image|>"] == 128256


def test_stop_ids_are_the_union_of_all_sources(tmp_path: Path) -> None:
    decoder = {
        "128000": {"content": "<|begin_of_text|>", "special": True},
        "128001": {"content": "<|end_of_text|>", "special": True},
        "128004": {"content": "<|reserved_special_token_2|>", "special": True},
        "128009": {"content": "<|eot_id|>", "special": True},
    }
    config = {"eos_token_id": [128001, 128008], "text_config": {"eos_token_id": [128010]}}
    files = {
        "tokenizer_config": {
            "added_tokens_decoder": decoder,
            "eos_token": "<|eot_id|>",
            "bos_token": "<|begin_of_text|>",
        },
        "generation_config": {"eos_token_id": [128001, 128009], "temperature": 0.6},
    }
    text = read_text_files(folder(tmp_path, generation=3, **files), config, 128256)
    assert text.generation.stop_ids == (128001, 128008, 128009, 128010)
    assert text.generation.stop_sources == {
        128001: (
            "generation_config.json eos_token_id",
            "config.json eos_token_id",
            "the special token <|end_of_text|>",
        ),
        128008: ("config.json eos_token_id", "the special token <|eom_id|>"),
        128009: (
            "generation_config.json eos_token_id",
            "tokenizer_config.json eos_token",
            "the special token <|eot_id|>",
        ),
        128010: ("config.json text_config eos_token_id",),
    }
    assert text.tokenizer is not None and "chat_format" not in text.tokenizer.info, (
        "a folder that might carry a template"
    )
    special = tokenizer_of(text).special_ids
    assert (special["<|reserved_special_token_2|>"], len(special)) == (128004, 255), "Meta's 128012 has that name, too"


@cache
def hugging_face_json() -> str:
    """Llama 3's vocabulary as transformers converts it."""
    tokens = read_ranks(model_file(3).read_bytes(), "x")
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    letters = {byte: letter for letter, byte in hf_vocabulary._byte_of_character().items()}
    names = ["".join(map(letters.__getitem__, token)) for token in tokens]
    merges = []
    for token in tokens:
        cuts = [
            (rank_of[token[:c]], rank_of[token[c:]])
            for c in range(1, len(token))
            if token[:c] in rank_of and token[c:] in rank_of
        ]
        merges += [[names[left], names[right]] for left, right in sorted(cuts)]
    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(7)]
    control = ["<|begin_of_text|>", "<|end_of_text|>", *reserved, "<|eot_id|>"]
    added = [{"id": 128_000 + n, "content": text, "special": True} | plain for n, text in enumerate(control)]
    cut = {"type": "Split", "pattern": {"Regex": hf_vocabulary.LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    ids = {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [128000], "tokens": ["<|begin_of_text|>"]}}
    template = {"type": "TemplateProcessing", "single": [begin, first], "pair": [first, second], "special_tokens": ids}
    absent = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    vocabulary = {name: rank for rank, name in enumerate(names)}
    model = {"type": "BPE", "fuse_unk": False, "byte_fallback": False, "ignore_merges": True, "vocab": vocabulary}
    document = {
        "version": "1.0",
        "normalizer": None,
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": template,
        "decoder": level,
        "model": model | absent | {"merges": merges},
    }
    return json.dumps(document, ensure_ascii=False)


def test_llama3_in_a_tokenizer_json_starts_as_fast(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(hugging_face_json(), encoding="utf-8")
    text = read_text_files(tmp_path, {"eos_token_id": 128001}, 128256)
    assert text.tokenizer is not None and text.tokenizer.kind == "tokenizer.json"
    ours = tokenizer_of(text)
    assert isinstance(ours, LlamaTokenizer)
    oracle = load_tokenizer(
        "tokenizer.json", {"tokenizer.json": text.tokenizer.files["tokenizer.json"]}, text.tokenizer.info
    )
    assert (ours.special_ids, ours.vocab_size, ours.bos_id) == (oracle.special_ids, oracle.vocab_size, oracle.bos_id)
    for sample in TEXTS:
        for special in (False, True):
            assert ours.encode(sample, allow_special=special) == oracle.encode(sample, allow_special=special)
        assert ours.decode(ours.encode(sample)) == oracle.decode(oracle.encode(sample)) == sample
    assert text.generation.stop_ids == (128001, 128009)


def test_anything_unusual_keeps_the_file() -> None:
    document = json.loads(hugging_face_json())
    assert official_ranks(document) is not None
    model, added = document["model"], document["added_tokens"]
    cut = document["pre_tokenizer"]["pretokenizers"]
    swapped = [*model["merges"][:-2], model["merges"][-1], model["merges"][0]]
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": [*added, added[0] | {"special": False}]},
        {"added_tokens": [added[0] | {"id": 5}]},
        {"added_tokens": [added[0] | {"lstrip": True}]},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut[0] | {"pattern": {"Regex": "x"}}, cut[1]]}},
        {"model": model | {"ignore_merges": False}},
        {"model": model | {"dropout": 0.1}},
        {"model": model | {"merges": model["merges"][1:]}},
        {"model": model | {"merges": swapped}},
        {"model": model | {"merges": [*model["merges"][1:], 7]}},
        {"model": model | {"vocab": {**model["vocab"], "!": 1, '"': 0}}},
        {"model": {"type": "BPE", "vocab": {"a": 0}}},
        {"model": None},
    ):
        assert official_ranks(document | change) is None, change.keys()


def test_both_sides_have_the_same_patterns() -> None:
    assert hf_vocabulary.LLAMA3_PATTERN == pre_tokenizers.LLAMA3_PATTERN
    assert hf_vocabulary.LLAMA4_PATTERN == pre_tokenizers.LLAMA4_PATTERN


@pytest.mark.parametrize(
    "data", [b"IQ== 0\nIQ== 1\n", b"IQ== 0\nIg== 2\n", b"IQ== 0\nIg== x\n", b"IQ== 0\nIg 1 2\n", b"IQ== 0\nIg== 1\n"]
)
def test_damaged_rank_files(data: bytes) -> None:
    with pytest.raises(LlamacError) as caught:
        read_ranks(data, "tokenizer.model")
    assert (caught.value.code, caught.value.where) == ("LLC0214", "tokenizer.model")

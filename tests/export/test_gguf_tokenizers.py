"""Tokenizers of every kind as GGUF metadata: the same ids on many scripts, and what each role of a token becomes."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_sentencepiece_format import by_hand, trained

from llamac.errors import LlamacError
from llamac.export.entry import ExportResult, export
from llamac.export.hf_tokenizer import TEXTS, tokenizer_files
from llamac.models.checkpoint import Checkpoint, TokenizerSource
from llamac.models.gguf_file import read_gguf
from llamac.models.gguf_reader import read_gguf_checkpoint
from llamac.models.hf_text import TextFiles, read_text_files
from llamac.models.llama.config import LlamaConfig
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import embedded_model, open_source
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer

Keys = dict[str, Any]
ROWS = {3: 128_256, 4: 202_048}


def shape(rows: int) -> LlamaConfig:
    """A model so small that the vocabulary is most of it."""
    return replace(preset("tiny"), hidden_size=32, heads=2, kv_heads=1, vocab_size=rows, dtype="f16")


def checkpoint_with(text: TextFiles, rows: int) -> Checkpoint:
    made = random_checkpoint(shape(rows), 0)
    return replace(
        made, format="hf", tokenizer=text.tokenizer, chat_template=text.chat_template, generation=text.generation
    )


def exported(checkpoint: Checkpoint, path: Path, **options: Any) -> tuple[Keys, Checkpoint, ExportResult]:
    result = export(checkpoint, to="gguf", output=path, **options)
    return read_gguf(path).metadata, read_gguf_checkpoint(path), result


def loaded(source: TokenizerSource | None) -> TokenizerBase:
    assert source is not None
    return load_tokenizer(source.kind, source.files, source.info)


def assert_same(before: Checkpoint, after: Checkpoint) -> None:
    one, other = loaded(before.tokenizer), loaded(after.tokenizer)
    assert (one.bos_id, one.eos_id, one.add_bos) == (other.bos_id, other.eos_id, other.add_bos)
    for text in TEXTS:
        assert one.encode(text) == other.encode(text), text
        assert one.decode(one.encode(text)) == other.decode(one.encode(text)), text
    assert {text: i for text, i in one.special_ids.items() if other.special_ids.get(text) != i} == {}
    assert set(before.generation.stop_ids) <= set(after.generation.stop_ids)


@cache
def metas(generation: int) -> bytes:
    """The file inside the package llama-models, which is never imported."""
    found = importlib.util.find_spec("llama_models")
    if found is None:
        pytest.skip("llama-models is not installed (pip install --no-deps llama-models)")
    folder = next(iter(found.submodule_search_locations or []))
    return (Path(folder) / f"llama{generation}" / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("generation", [3, 4])
def test_metas_tokenizer_model(generation: int, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(metas(generation))
    text = read_text_files(tmp_path, {"use_scaled_rope": True}, ROWS[generation])
    before = checkpoint_with(text, ROWS[generation])
    keys, after, _ = exported(before, tmp_path / "m.gguf")
    assert_same(before, after)
    pre, merges, ends = {
        3: ("llama-bpe", 280_147, (128_000, 128_001, 128_009, 128_008, 128_004)),
        4: ("llama4", 439_802, (200_000, 200_001, 200_008, 200_007, 200_018)),
    }[generation]
    named = {name.removeprefix("tokenizer.ggml."): value for name, value in keys.items()}
    assert (named["model"], named["pre"], len(named["merges"])) == ("gpt2", pre, merges)
    roles = ("bos", "eos", "eot", "eom", "padding")
    assert tuple(named[f"{role}_token_id"] for role in roles) == ends
    assert named["add_bos_token"] is True and len(named["tokens"]) == ROWS[generation]


@pytest.mark.slow
def test_a_tokenizer_json_of_llama_3(tmp_path: Path) -> None:
    """Also the one that llamac writes; its merges are those of the ranks."""
    (tmp_path / "tokenizer.model").write_bytes(metas(3))
    text = read_text_files(tmp_path, {}, ROWS[3])
    files = tokenizer_files(checkpoint_with(text, ROWS[3]))
    (tmp_path / "tokenizer.model").unlink()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = checkpoint_with(read_text_files(tmp_path, {}, ROWS[3]), ROWS[3])
    assert before.tokenizer is not None and before.tokenizer.kind == "tokenizer.json"
    keys, after, _ = exported(before, tmp_path / "m.gguf")
    assert_same(before, after)
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"


def smollm2_json(tmp_path: Path) -> Checkpoint:
    source = open_source(embedded_model())
    for name, content in tokenizer_files(source).items():
        (tmp_path / name).write_bytes(content)
    return checkpoint_with(read_text_files(tmp_path, {}, 49_152), 49_152)


def edited(checkpoint: Checkpoint, change: Any) -> Checkpoint:
    """With another tokenizer.json; `change` edits the parsed file."""
    assert checkpoint.tokenizer is not None
    parsed = json.loads(checkpoint.tokenizer.files["tokenizer.json"])
    change(parsed)
    files = {"tokenizer.json": json.dumps(parsed).encode()}
    return replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, files=files))


def digits(parsed: Any) -> None:
    """As SmolLM2's own folder has it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    rows = [{"type": "Digits", "individual_digits": True}, level]
    parsed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": rows}


def test_a_tokenizer_json_with_digits_apart(tmp_path: Path) -> None:
    before = edited(smollm2_json(tmp_path), digits)
    keys, after, _ = exported(before, tmp_path / "m.gguf")
    assert_same(before, after)
    assert keys["tokenizer.ggml.pre"] == "smollm"
    original = read_gguf(embedded_model()).metadata
    for name in ("tokens", "token_type", "merges"):
        assert keys[f"tokenizer.ggml.{name}"] == original[f"tokenizer.ggml.{name}"], name


def split_oddly(parsed: Any) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    parsed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}


def test_an_unknown_cut_needs_a_name(tmp_path: Path) -> None:
    before = edited(smollm2_json(tmp_path), split_oddly)
    with pytest.raises(LlamacError, match=r"LLC0946 tokenizer.json: it cuts text.*--option pre=NAME"):
        exported(before, tmp_path / "m.gguf")
    keys, _, _ = exported(before, tmp_path / "m.gguf", options={"pre": "smollm"})
    assert keys["tokenizer.ggml.pre"] == "smollm"
    with pytest.raises(LlamacError, match=r"LLC0946 --option pre: .*did you mean 'smollm'"):
        exported(before, tmp_path / "n.gguf", options={"pre": "smollmm"})
    with pytest.raises(LlamacError, match="LLC0921 tokenizer: other ids"):
        exported(before, tmp_path / "n.gguf", options={"pre": "smollm"}, check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parsed: parsed["model"].update(type="WordPiece"), "its model is 'WordPiece'"),
        (lambda parsed: parsed.update(normalizer={"type": "NFC"}), "rewrites text before it is cut .NFC"),
        (lambda parsed: parsed.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "a space before"),
    ],
    ids=["model", "normalizer", "space"],
)
def test_tokenizers_that_llama_cpp_cannot_follow(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(LlamacError, match=f"LLC0946 tokenizer.json: .*{said}"):
        exported(edited(smollm2_json(tmp_path), change), tmp_path / "m.gguf")


@pytest.mark.parametrize("model", [by_hand, lambda: trained()[0]], ids=["by hand", "trained"])
def test_sentencepiece(model: Any, tmp_path: Path) -> None:
    data = model()
    (tmp_path / "tokenizer.model").write_bytes(data)
    rows = len(json.loads(read_text_files(tmp_path, {}, 10**6).tokenizer.files["vocabulary.json"])["tokens"])  # type: ignore[union-attr]
    before = checkpoint_with(read_text_files(tmp_path, {}, rows), rows)
    keys, after, _ = exported(before, tmp_path / "m.gguf")
    assert_same(before, after)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.token_type"][:4]) == ("llama", [2, 3, 3, 6])
    assert "<<SYS>>" in keys["tokenizer.chat_template"]


def test_a_tokenizer_json_of_sentencepiece(tmp_path: Path) -> None:
    """Scores are made of the order of merges, and give the same ids."""
    (tmp_path / "tokenizer.model").write_bytes(trained()[0])
    made = checkpoint_with(read_text_files(tmp_path, {}, 420), 420)
    (tmp_path / "tokenizer.model").unlink()
    for name, content in tokenizer_files(made).items():
        (tmp_path / name).write_bytes(content)
    before = checkpoint_with(read_text_files(tmp_path, {}, 420), 420)
    keys, after, _ = exported(before, tmp_path / "m.gguf")
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.token_type"][0] == 2
    assert_same(before, after)


def test_more_rows_than_tokens_and_more_tokens_than_rows(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(by_hand())
    text = read_text_files(tmp_path, {}, 261)
    keys, _, result = exported(checkpoint_with(text, 270), tmp_path / "m.gguf")
    assert keys["tokenizer.ggml.tokens"][261:] == [f"[PAD{i}]" for i in range(261, 270)]
    assert keys["tokenizer.ggml.token_type"][261:] == [5] * 9
    assert any(entry.what == "9 unused tokens at the end" for entry in result.ledger)
    keys, _, result = exported(checkpoint_with(text, 260), tmp_path / "n.gguf")
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.scores"]) == 260
    assert any((entry.kind, entry.what) == ("ignored", "1 tokens from id 260 on") for entry in result.ledger)


def test_a_gguf_sources_own_keys_stay(tmp_path: Path) -> None:
    keys, after, _ = exported(open_source(embedded_model()), tmp_path / "m.gguf", quantize="q8_0")
    original = read_gguf(embedded_model()).metadata
    changed = {name for name in {*keys, *original} if keys.get(name) != original.get(name)}
    assert changed == {"general.file_type"} and keys["general.file_type"] == 7
    assert after.chat_template == original["tokenizer.chat_template"]

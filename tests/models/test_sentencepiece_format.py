"""Llama 2's tokenizer.model: read without the library, and encoded as the library encodes."""

from __future__ import annotations

import io
import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.models.hf_text import read_text_files
from llamac.models.llama.sentencepiece_format import SentencePieceModel, read_sentencepiece
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then over another lazy dog.",
    "Numbers such as 12345 and 2024 are written digit by digit.",
    "def f(x):\n    return x ** 2  # squares",
    "naïve café, déjà vu, Ångström and 東京 日本語 テキスト",
]


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | float) -> bytes:
    """One protobuf field."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: float = 0.0, kind: int | None = None) -> bytes:
    row = field(1, text.encode()) + field(2, score)
    return field(1, row if kind is None else row + field(3, kind))


def by_hand(trainer: bytes = field(3, 2), normalizer: bytes = field(4, 0)) -> bytes:
    pieces = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("</s>", kind=3)
    pieces += b"".join(piece(f"<0x{byte:02X}>", kind=6) for byte in range(256))
    return pieces + piece("▁a", -0.5) + piece("a", -1.5) + field(2, trainer) + field(3, normalizer) + field(99, b"?")


@cache
def trained() -> tuple[bytes, Any]:
    """A small model with Llama 2's settings, and the library that trained it."""
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=420, model_type="bpe", minloglevel=2,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.98, max_sentence_length=4192,
    )  # fmt: skip
    return model.getvalue(), library.SentencePieceProcessor(model_proto=model.getvalue())


def tokenizer_of(model: SentencePieceModel) -> TokenizerBase:
    return load_tokenizer("gguf-spm", {"vocabulary.json": model.vocabulary()}, {})


def test_a_model_by_hand() -> None:
    model = read_sentencepiece(by_hand(), "x")
    assert (model.tokens[259:], model.types[:4], model.kind) == (["▁a", "a"], [2, 3, 3, 6], 2)
    assert (model.bos_id, model.eos_id, model.unsupported()) == (1, 2, "")
    assert model.control_tokens() == {"<s>": 1, "</s>": 2}
    ours = tokenizer_of(model)
    assert ours.encode("a") == [1, 259] and ours.decode([1, 259, 260]) == "aa"
    assert ours.encode("é", add_bos=False) == [
        *range(3 + 0xE2, 3 + 0xE3),
        *(3 + b for b in "▁".encode()[1:]),
        3 + 0xC3,
        3 + 0xA9,
    ]
    moved = read_sentencepiece(by_hand(field(3, 2) + field(41, -1) + field(42, 5)), "x")
    assert (moved.bos_id, moved.eos_id) == (None, 5)


def test_every_field_equals_the_librarys() -> None:
    data, oracle = trained()
    model = read_sentencepiece(data, "x")
    count = oracle.vocab_size()
    assert model.tokens == [oracle.id_to_piece(i) for i in range(count)]
    assert model.scores == [oracle.get_score(i) for i in range(count)]
    tests = {2: oracle.is_unknown, 3: oracle.is_control, 5: oracle.is_unused, 6: oracle.is_byte}
    for kind, test in tests.items():
        assert [i for i in range(count) if model.types[i] == kind] == [i for i in range(count) if test(i)]
    assert (model.bos_id, model.eos_id, model.add_space_prefix) == (oracle.bos_id(), oracle.eos_id(), True)


def test_ids_and_text_equal_the_librarys() -> None:
    data, oracle = trained()
    ours = tokenizer_of(read_sentencepiece(data, "x"))
    rng = random.Random(3)
    alphabet = "".join(SENTENCES) + " ▁\t\n😀ß€"
    texts = [
        "",
        " ",
        "  two  spaces ",
        "<s> is text",
        *SENTENCES,
        *("".join(rng.choices(alphabet, k=30)) for _ in range(400)),
    ]
    for text in texts:
        ids = oracle.encode(text)
        assert ours.encode(text, add_bos=False) == ids, repr(text)
        assert ours.decode(ids) == oracle.decode(ids)


def test_a_folder_with_a_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(by_hand())
    found = read_text_files(tmp_path, {}, 261)
    assert found.tokenizer is not None and found.tokenizer.kind == "gguf-spm"
    assert found.tokenizer.info == {"bos_id": 1, "eos_id": 2, "add_bos": True, "chat_format": "llama2"}
    assert json.loads(found.tokenizer.files["vocabulary.json"])["tokens"][259] == "▁a"
    assert (found.generation.bos_id, found.generation.stop_ids) == (1, (2,))
    assert found.generation.stop_sources == {2: ("tokenizer.model eos_id",)}
    assert any((row["kind"], row["what"]) == ("default", "llama2") for row in found.ledger)


@pytest.mark.parametrize(
    ("trainer", "normalizer"),
    [(field(3, 1), field(4, 0)), (field(3, 2), b""), (field(3, 2), field(4, 0) + field(2, b"map"))],
)
def test_models_that_the_runtime_cannot_follow(tmp_path: Path, trainer: bytes, normalizer: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(by_hand(trainer, normalizer))
    found = read_text_files(tmp_path, {}, 261)
    assert found.tokenizer is None
    assert any("SentencePiece" in row["reason"] and "tokenizer.json" in row["reason"] for row in found.ledger)


def test_damaged_files() -> None:
    good = by_hand()
    for bad in (
        good[:-1],
        good[:20],
        b"",
        b"\xff" * 40,
        b"version https://git-lfs.github.com/spec/v1\n",
        field(1, 5),
        field(1, field(1, b"\xff\xfe")),
        good + piece("x", float("nan")),
        good + piece("x", kind=7),
        good + piece("<0x00>", kind=6).replace(b"<0x00>", b"<0xZZ>"),
        good + field(2, field(42, 9999)),
        piece("a", kind=6),
    ):
        with pytest.raises(LlamacError) as caught:
            read_sentencepiece(bad, "tokenizer.model")
        assert caught.value.code == "LLC0214"


def test_any_cut_is_an_error_or_a_smaller_model() -> None:
    good = by_hand()
    for end in range(0, len(good), 37):
        try:
            assert len(read_sentencepiece(good[:end], "x").tokens) <= 261
        except LlamacError as problem:
            assert problem.code == "LLC0214"

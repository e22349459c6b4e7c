"""tokenizer.json from every kind of tokenizer: the same ids as llamac's own, and as transformers reads the files."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from test_sentencepiece_format import SENTENCES, trained

from llamac.errors import LlamacError
from llamac.export.chat_templates import chat_template
from llamac.export.hf_config import config_json, hf_model
from llamac.export.hf_tokenizer import SETTINGS, TEXTS, TOKENIZER, tokenizer_differences, tokenizer_files
from llamac.models.checkpoint import Checkpoint, GenerationDefaults, TokenizerSource
from llamac.models.hf_text import TextFiles, read_text_files
from llamac.models.llama.sentencepiece_format import read_sentencepiece
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import embedded_model, open_source
from llamac.runtime.text.formats.registry import find_format
from llamac.runtime.text.tokenizer import load_tokenizer


def checkpoint_with(text: TextFiles, vocabulary: int) -> Checkpoint:
    config = replace(preset("tiny"), vocab_size=vocabulary)
    template = text.chat_template
    return replace(
        random_checkpoint(config, 1), tokenizer=text.tokenizer, generation=text.generation, chat_template=template
    )


def official(folder: Path, version: int) -> Checkpoint:
    """Meta's own tokenizer.model, of the package llama-models."""
    from importlib.util import find_spec

    found = find_spec("llama_models")
    assert found is not None and found.submodule_search_locations is not None
    (data,) = Path(found.submodule_search_locations[0]).glob(f"llama{version}/tokenizer.model")
    (folder / "tokenizer.model").write_bytes(data.read_bytes())
    vocabulary = {3: 128256, 4: 202048}[version]
    return checkpoint_with(read_text_files(folder, {}, vocabulary), vocabulary)


def sentencepiece() -> Checkpoint:
    """A small model with Llama 2's settings."""
    model = read_sentencepiece(trained()[0], "x")
    info: dict[str, object] = {"bos_id": 1, "eos_id": 2, "add_bos": True}
    source = TokenizerSource("gguf-spm", {"vocabulary.json": model.vocabulary()}, info)
    return checkpoint_with(TextFiles(source, None, GenerationDefaults(1, True, (2,))), len(model.tokens))


def written(checkpoint: Checkpoint, folder: Path) -> dict[str, bytes]:
    files = tokenizer_files(checkpoint)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    config = config_json(hf_model(checkpoint.config, "f32"), checkpoint.generation)
    (folder / "config.json").write_text(json.dumps(config))
    return files


def exported(files: dict[str, bytes]) -> TokenizerSource:
    """By the file alone, as any reader sees it."""
    return TokenizerSource("tokenizer.json", {TOKENIZER: files[TOKENIZER]}, {})


def source_of(kind: str, folder: Path) -> Checkpoint:
    folder.mkdir()
    if kind == "gguf-bpe":
        return open_source(embedded_model())
    return sentencepiece() if kind == "gguf-spm" else official(folder, int(kind[-1]))


@pytest.mark.parametrize(
    "kind", ["gguf-bpe", "gguf-spm", "tiktoken 3", pytest.param("tiktoken 4", marks=pytest.mark.slow)]
)
def test_every_reader_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint = source_of(kind, tmp_path / "source")
    source = checkpoint.tokenizer
    assert source is not None
    files = written(checkpoint, tmp_path)
    assert tokenizer_differences(source, exported(files)) == []
    own, theirs = load_tokenizer(source.kind, source.files, source.info), AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        text for text in TEXTS if "<unk>" not in text
    ):  # transformers takes the unknown token as a special one
        ids = own.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == own.decode(ids), text
    assert theirs.bos_token_id == own.bos_id and theirs.eos_token_id in checkpoint.generation.stop_ids
    assert theirs.chat_template == chat_template(checkpoint)
    back = read_text_files(tmp_path, json.loads((tmp_path / "config.json").read_text()), checkpoint.config.vocab_size)
    assert back.generation.stop_ids == checkpoint.generation.stop_ids and back.chat_template == theirs.chat_template
    assert (back.generation.bos_id, back.generation.add_bos) == (own.bos_id, own.add_bos)
    official_kind = kind.startswith("tiktoken")
    assert back.tokenizer is not None and ("ranks.table" in back.tokenizer.files) == official_kind


def test_merges_follow_the_scores(tmp_path: Path) -> None:
    checkpoint = sentencepiece()
    source, files = checkpoint.tokenizer, written(checkpoint, tmp_path)
    assert source is not None
    own, made = load_tokenizer(source.kind, source.files, source.info), load_tokenizer("tokenizer.json", files, {})
    rng, alphabet = random.Random(5), "".join(SENTENCES) + " ▁\t\n😀ß€"
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=30))
        ids = own.encode(text)
        assert made.encode(text) == ids and made.decode(ids) == own.decode(ids), repr(text)


def test_a_tokenizer_json_is_copied(tmp_path: Path) -> None:
    checkpoint = open_source(embedded_model())
    first = written(checkpoint, tmp_path)
    again = read_text_files(tmp_path, {}, checkpoint.config.vocab_size)
    copied = tokenizer_files(replace(checkpoint, tokenizer=again.tokenizer))
    assert copied[TOKENIZER] == first[TOKENIZER]


def test_a_begin_that_only_the_settings_name(tmp_path: Path) -> None:
    """Where tokenizer_config.json asks for the token and tokenizer.json does not put it, the copy does."""
    checkpoint = open_source(embedded_model())
    written(checkpoint, tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text()) | {"add_bos_token": True}
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    text = read_text_files(tmp_path, {}, checkpoint.config.vocab_size)
    assert text.tokenizer is not None and text.generation.add_bos
    files = tokenizer_files(replace(checkpoint, tokenizer=text.tokenizer, generation=text.generation))
    made = load_tokenizer("tokenizer.json", {TOKENIZER: files[TOKENIZER]}, {})
    assert made.add_bos and made.encode("hello")[0] == text.generation.bos_id
    assert tokenizer_differences(text.tokenizer, exported(files)) == []


def test_two_tokens_of_one_text() -> None:
    checkpoint = sentencepiece()
    assert checkpoint.tokenizer is not None
    stored = json.loads(checkpoint.tokenizer.files["vocabulary.json"])
    stored["tokens"][300] = stored["tokens"][301]
    source = replace(checkpoint.tokenizer, files={"vocabulary.json": json.dumps(stored).encode()})
    with pytest.raises(LlamacError, match="LLC0952 tokenizer: the tokens 300 and 301 are both"):
        tokenizer_files(replace(checkpoint, tokenizer=source))


def test_a_difference_is_found() -> None:
    checkpoint = open_source(embedded_model())
    assert checkpoint.tokenizer is not None
    files = tokenizer_files(checkpoint)
    spoiled = json.loads(files[TOKENIZER])
    spoiled["model"]["merges"] = spoiled["model"]["merges"][:-2000]
    found = tokenizer_differences(checkpoint.tokenizer, exported({TOKENIZER: json.dumps(spoiled).encode()}))
    assert found


CONVERSATION = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Really, 123?"},
]


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama3.1", "llama3.2", "llama4"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_made_templates_say_what_the_format_says(name: str, length: int, tmp_path: Path) -> None:
    """By transformers' own renderer, against the text of the format's pieces; and they refuse tools."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = CONVERSATION[:length] if length > 1 else CONVERSATION[1:2]
    checkpoint = sentencepiece()
    assert checkpoint.tokenizer is not None
    template = chat_template(replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, info={"chat_format": name})))
    assert template is not None
    tokens = {"bos_token": "<s>", "eos_token": "</s>"} if name == "llama2" else {"bos_token": "<|begin_of_text|>"}
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
    pieces = find_format(name).pieces(messages)
    assert rendered == ["".join(pieces)]
    if name == "llama4":
        shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
        (text,), _ = render_jinja_template([shown], chat_template=template, **tokens)
        assert "<|image|>What is it?<|eot|>" in text
    with pytest.raises(Exception, match="offers no tools"):
        render_jinja_template([messages], chat_template=template, tools=[{"type": "function"}], **tokens)

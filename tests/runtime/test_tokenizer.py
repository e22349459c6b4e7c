"""Tokenizers against tiktoken, Meta's own classes and transformers; and what they refuse."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import threading
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer

from .text_sources import TEXTS, as_file, package_file, smollm2

LLAMA3_BOS, LLAMA3_EOT = 128000, 128009


@cache
def llama(generation: int) -> TokenizerBase:
    path = package_file("llama-models", f"llama_models/llama{generation}/tokenizer.model")
    return load_tokenizer("tiktoken", {"tokenizer.model": path.read_bytes()}, {})


@cache
def smollm() -> TokenizerBase:
    return load_tokenizer("gguf-bpe", as_file(smollm2()[0]), {})


@pytest.mark.parametrize(
    ("generation", "ids"), [(3, [9906, 1917, 220, 4513, 1774]), (4, [19873, 3817, 220, 7235, 2127])]
)
def test_llama_check_ids(generation: int, ids: list[int]) -> None:
    assert llama(generation).encode("Hello world 12345", add_bos=False) == ids
    assert llama(generation).encode("Hello world 12345") == [llama(generation).bos_id, *ids]


@pytest.mark.parametrize("generation", [3, 4])
def test_llama_equals_metas_own_tokenizer(generation: int) -> None:
    meta = importlib.import_module(f"llama_models.llama{generation}.tokenizer").Tokenizer.get_instance()
    ours = llama(generation)
    assert ours.special_ids == meta.special_tokens
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (meta.n_words, meta.bos_id, meta.eos_id)
    for text in [*TEXTS, "a" * 60_000, " " * 30_000 + "b"]:
        assert ours.encode(text, add_bos=False) == meta.encode(text, bos=False, eos=False)
        allowed = meta.encode(text, bos=True, eos=False, allowed_special="all")
        assert ours.encode(text, allow_special=True, add_bos=True) == allowed
        assert ours.decode(allowed, skip_special=False) == meta.decode(allowed)


def test_special_strings_are_ordinary_text_unless_allowed() -> None:
    text = "<|begin_of_text|>hi<|eot_id|>"
    assert llama(3).encode(text, allow_special=True) == [LLAMA3_BOS, 6151, LLAMA3_EOT]
    plain = llama(3).encode(text, add_bos=False)
    assert not set(plain) & set(llama(3).special_ids.values())
    assert llama(3).decode(plain) == text


def test_bos_is_not_doubled_unless_asked_for() -> None:
    text = "<|begin_of_text|>hi"
    assert llama(3).encode(text, allow_special=True) == [LLAMA3_BOS, 6151]
    assert llama(3).encode(text, allow_special=True, add_bos=True) == [LLAMA3_BOS, LLAMA3_BOS, 6151]


def test_llama3_names_of_3_0_can_be_given() -> None:
    path = package_file("llama-models", "llama_models/llama3/tokenizer.model")
    names = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|reserved_special_token_3|>": 128008}
    old = load_tokenizer(
        "tiktoken", {"tokenizer.model": path.read_bytes()}, {"special_tokens": names, "add_bos": False}
    )
    assert old.special_ids == names
    assert old.vocab_size == 128009
    assert old.encode("hi") == [6151]
    assert old.token_bytes(128004) == b""


@cache
def authors_smollm() -> Any:
    """SmolLM2's tokenizer as its authors define it: digits apart, then GPT-2's byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = smollm2()[0]
    pairs = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    oracle = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary["tokens"])}, merges=pairs))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    oracle.decoder = decoders.ByteLevel()
    kinds = zip(vocabulary["tokens"], vocabulary["token_types"], strict=True)
    oracle.add_special_tokens([token for token, kind in kinds if kind == 3])
    return oracle


def test_gguf_bpe_equals_the_authors_tokenizer() -> None:
    oracle, ours = authors_smollm(), smollm()
    for text in TEXTS:
        ids = oracle.encode(text).ids
        assert ours.encode(text, allow_special=True, add_bos=False) == ids
        assert ours.decode(ids) == oracle.decode(ids)
        assert ours.decode(ids, skip_special=False) == text
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.add_bos) == (49152, 1, 2, False)


def test_tokenizer_json_equals_its_gguf() -> None:
    document = authors_smollm().to_str().encode()
    ours = load_tokenizer("tokenizer.json", {"tokenizer.json": document}, {"bos_id": 1, "eos_id": 2})
    assert ours.special_ids == smollm().special_ids
    for text in TEXTS:
        for special in (False, True):
            assert ours.encode(text, allow_special=special) == smollm().encode(text, allow_special=special)
    assert all(ours.token_bytes(i) == smollm().token_bytes(i) for i in range(ours.vocab_size))


def test_llama3_as_gguf_vocabulary_equals_tiktoken() -> None:
    """A small byte-level vocabulary cut out of Llama 3's ranks, with the merges that they imply."""
    from llamac.runtime.text.byte_alphabet import CHARACTER_OF_BYTE
    from llamac.runtime.text.pre_tokenizers import LLAMA3_PATTERN

    size = 3000
    pieces = [llama(3).token_bytes(i) for i in range(size)]
    ranks = {piece: i for i, piece in enumerate(pieces)}
    names = ["".join(CHARACTER_OF_BYTE[byte] for byte in piece) for piece in pieces]
    merges = [
        f"{names[ranks[piece[:cut]]]} {names[ranks[piece[cut:]]]}"
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    stored = {
        "tokens": [*names, "<|begin_of_text|>", "hello"],
        "token_types": [1] * size + [3, 3],
        "merges": merges,
        "pre": "llama-bpe",
        "bos_id": size,
    }
    ours = load_tokenizer("gguf-bpe", as_file(stored), {})
    tiktoken = pytest.importorskip("tiktoken")
    oracle = tiktoken.Encoding("cut", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, "hello"]:  # a control token spelt like a word must not be reached by ignore_merges
        assert ours.encode(text, add_bos=False) == oracle.encode_ordinary(text)
    assert ours.encode("the") == [size, *oracle.encode_ordinary("the")], "llama-bpe adds BOS by itself"


def spm_vocabulary() -> dict[str, Any]:
    """A SentencePiece-like vocabulary: unknown, BOS, EOS, 256 bytes, characters, and joined pieces by rank."""
    words = ["▁the", "▁a", "▁hello", "▁world", "hell", "ell", "he", "th", "ing", "▁▁▁▁", "or", "ld", "wor", "el", "lo"]
    parts = sorted(
        {word[:end] for word in words for end in range(2, len(word) + 1)} | set(words), key=lambda w: (len(w), w)
    )
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzHW.,!", "é", "日"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *parts, *letters, "[INST]"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(parts) + len(letters)) + [4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(parts))] + [-1000.0 - i for i in range(len(letters))] + [0.0]
    return {"tokens": tokens, "scores": scores, "token_types": types, "bos_id": 1, "eos_id": 2, "add_bos": True}


def spm_oracle(stored: dict[str, Any]) -> Any:
    """The same through tokenizers, as transformers converts SentencePiece: merges in the order of the scores."""
    from tokenizers import Tokenizer, models

    ids = {token: i for i, token in enumerate(stored["tokens"])}
    joined = sorted(
        (i for i, kind in enumerate(stored["token_types"]) if kind == 1), key=lambda i: -stored["scores"][i]
    )
    merges = [
        (word[:cut], word[cut:])
        for word in (stored["tokens"][i] for i in joined)
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    return Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))


def test_gguf_spm_equals_the_tokenizers_library() -> None:
    stored = spm_vocabulary()
    ours, oracle = load_tokenizer("gguf-spm", as_file(stored), {}), spm_oracle(stored)
    rng = random.Random(0)
    texts = [
        "hello world",
        "  hello   the thing é 日本 😀",
        *("".join(rng.choices("helowrdthinga  é日!", k=40)) for _ in range(200)),
    ]
    for text in texts:
        ids = oracle.encode("▁" + text.replace(" ", "▁")).ids
        assert ours.encode(text) == [1, *ids]
        assert ours.decode(ours.encode(text)) == text
        assert ours.decode(ids, continuation=True) == " " + text


def test_gguf_spm_control_and_user_defined_tokens() -> None:
    ours = load_tokenizer("gguf-spm", as_file(spm_vocabulary()), {})
    inst = ours.vocab_size - 1
    assert ours.encode("<s>the", allow_special=True) == [1, *ours.encode("the", add_bos=False)]
    assert inst in ours.encode("[INST] the")
    assert 1 not in ours.encode("<s>", add_bos=False)
    assert ours.decode(ours.encode("<s>[INST] the")) == "<s>[INST] the"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_text_survives_encoding(text: str) -> None:
    ids = llama(3).encode(text)
    assert llama(3).decode(ids) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert b"".join(map(llama(3).token_bytes, ids)).decode() == llama(3).decode(ids)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_gets_the_authors_ids(text: str) -> None:
    """Not a round trip: SmolLM2 has no token for some bytes of rare planes, and its own tokenizer drops those, too."""
    assert smollm().encode(text, allow_special=True) == authors_smollm().encode(text).ids


def test_lone_surrogates_become_replacement_characters() -> None:
    for tokenizer in (smollm(), llama(3)):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_without_a_token_are_empty() -> None:
    assert smollm().token_bytes(smollm().vocab_size + 5) == b""
    assert smollm().decode([10**6, -1]) == ""


def test_threads_do_not_see_each_others_control_tokens() -> None:
    tokenizer, wrong = smollm(), []

    def work(special: bool) -> None:
        for _ in range(200):
            if (2 in tokenizer.encode("<|im_end|>", allow_special=special)) != special:
                wrong.append(special)

    threads = [threading.Thread(target=work, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def refused(code: str, kind: str, files: dict[str, bytes]) -> str:
    with pytest.raises(LlamacError) as caught:
        load_tokenizer(kind, files, {})
    assert caught.value.code == code
    return str(caught.value)


def test_refusals() -> None:
    assert "did you mean 'tiktoken'" in refused("LLC0901", "tiktokens", {})
    assert "missing" in refused("LLC0903", "tiktoken", {})
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
    assert "git-lfs" in refused("LLC0903", "tiktoken", {"tokenizer.model": lfs})
    assert "SentencePiece" in refused("LLC0903", "tiktoken", {"tokenizer.model": b"\n\x0e\n\x05<unk>\x15\x00\x18\x02"})
    assert "2 ranks" in refused("LLC0903", "tiktoken", {"tokenizer.model": b"IQ== 0\nIg== 1\n"})
    assert "each once" in refused("LLC0903", "tiktoken", {"tokenizer.model": b"IQ== 0\nIg== 7\n"})
    refused("LLC0903", "tokenizer.json", {"tokenizer.json": b"{"})
    word_piece = {
        "type": "WordPiece",
        "unk_token": "u",
        "continuing_subword_prefix": "#",
        "max_input_chars_per_word": 9,
    }
    document = {"version": "1.0", "added_tokens": [], "model": {**word_piece, "vocab": {"u": 0}}}
    assert "decoder" in refused("LLC0905", "tokenizer.json", {"tokenizer.json": json.dumps(document).encode()})


def test_gguf_refusals() -> None:
    good = {"tokens": ["a", "b", "ab"], "token_types": [1, 1, 1], "merges": ["a b"], "pre": "gpt-2"}
    assert load_tokenizer("gguf-bpe", as_file(good), {}).encode("ab") == [2]
    assert "'smolm'" in refused("LLC0904", "gguf-bpe", as_file({**good, "pre": "smolm"}))
    for change in (
        {"merges": ["a z"]},
        {"merges": ["ab"]},
        {"merges": None},
        {"token_types": [1]},
        {"token_types": ["x", 1, 1]},
        {"tokens": ["a", "a", "b"]},
        {"bos_id": 3},
        {"tokens": [1, 2, 3]},
    ):
        refused("LLC0903", "gguf-bpe", as_file({**good, **change}))
    spm = spm_vocabulary()
    for change in ({"scores": []}, {"tokens": None}, {"tokens": ["x"] * len(spm["tokens"])}):
        refused("LLC0903", "gguf-spm", as_file({**spm, **change}))


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, llamac.runtime.text.tokenizer, llamac.runtime.text.stream, llamac.runtime.text.chat\n"
        "import llamac.runtime.sampler\n"
        "names = ('tokenizers', 'tiktoken', 'jinja2', 'regex', 'torch', 'llamac.ir')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

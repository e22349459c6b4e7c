"""The table of ranks and the split by character classes, against tiktoken: the same ids for everything."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.models.llama.rank_table import rank_table
from llamac.models.llama.tiktoken_format import read_ranks, special_tokens
from llamac.runtime.text.character_classes import UNKNOWN, CharacterClasses
from llamac.runtime.text.llama_control_tokens import control_token_ids
from llamac.runtime.text.llama_split import OWN_CLASS
from llamac.runtime.text.rank_table import RankTable
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer
from llamac.runtime.text.tokenizer_llama import LlamaTokenizer, load_llama

from .text_sources import TEXTS, package_file

REPOSITORY = Path(__file__).parents[2]


def model_file(generation: int) -> bytes:
    return package_file("llama-models", f"llama_models/llama{generation}/tokenizer.model").read_bytes()


@cache
def table_bytes(generation: int) -> bytes:
    return rank_table(read_ranks(model_file(generation), "tokenizer.model"))


@cache
def slow(generation: int) -> TokenizerBase:
    return load_tokenizer("tiktoken", {"tokenizer.model": model_file(generation)}, {})


@cache
def shared_quick(generation: int) -> LlamaTokenizer:
    return load_llama({"ranks.table": table_bytes(generation)}, {})


def quick(generation: int) -> LlamaTokenizer:
    """One that has not fallen back, so that what is compared is really the table wherever that answers."""
    tokenizer = shared_quick(generation)
    tokenizer._tiktoken = None
    return tokenizer


def assert_same(generation: int, text: str) -> None:
    ours = quick(generation)._quick_ids(text)
    assert ours is None or ours == slow(generation).encode(text, add_bos=False), repr(text)


def test_every_character_has_the_class_that_tiktoken_sees() -> None:
    """tiktoken drops what a pattern does not match, so a pattern of one class shows its members."""
    tiktoken = pytest.importorskip("tiktoken")
    classes = CharacterClasses(OWN_CLASS)
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    letters = every.translate(classes)
    known = "".join(c for c, letter in zip(every, letters, strict=True) if letter != UNKNOWN)
    assert len(known) > 280_000 and not set(map(chr, range(0x3000))) & set(every) - set(known) & set(
        "ab1 \n\u00e9\u4e2d"
    )
    members = {
        r"\p{L}": "aAoSTREVMLDstrevmld",
        r"[\p{Lu}\p{Lt}]": "ASTREVMLD",
        r"\p{Ll}": "astrevmld",
        r"\p{M}": "c",
        r"\p{N}": "N",
        r"\s": " wn",
        r"[\r\n]": "n",
        "(?i:s)": "sS",
    }
    for pattern, wanted in members.items():
        ranks = {bytes([byte]): byte for byte in range(256)}
        probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        found = bytes(probe.encode_ordinary(known)).decode()
        assert found == "".join(c for c in known if classes[ord(c)] in wanted), pattern


def test_the_data_is_what_its_program_writes() -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("written from the tables of Python 3.11")
    before = (REPOSITORY / "runtime/text/character_classes.py").read_bytes()
    code = (
        "import runpy, sys, pathlib\n"
        f"names = runpy.run_path({str(REPOSITORY / 'docs/write_character_classes.py')!r})\n"
        "sys.stdout.write(names['runs']())"
    )
    runs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert before.decode().split('RUNS = """\\\n')[1].split('"""')[0].replace("\n", "") == runs


@pytest.mark.parametrize("generation", [3, 4])
def test_source_files_give_the_same_ids(generation: int) -> None:
    """Tens of thousands of tokens of code, prose and many scripts, cut at odd places."""
    rng = random.Random(generation)
    corpus = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").rglob("*.md")))
    corpus += "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "runtime").rglob("*.py")))
    start = count = 0
    while start < min(len(corpus), 250_000):
        end = start + rng.randrange(1, 4000)
        ids = quick(generation)._quick_ids(corpus[start:end])
        assert ids == slow(generation).encode(corpus[start:end], add_bos=False)
        start, count = end, count + len(ids)
    assert count > 40_000


@pytest.mark.parametrize("generation", [3, 4])
def test_random_words_of_every_script(generation: int) -> None:
    rng = random.Random(7)
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80)]
    blocks += [(0x2000, 0x2070), (0x2C00, 0x3100), (0x4E00, 0x5200), (0xAC00, 0xAD00), (0x1F300, 0x1F700)]
    for _ in range(3000):
        low, high = rng.choice(blocks)
        word = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 12)))
        assert_same(
            generation,
            rng.choice(["", " ", "\n", "  ", "'s ", "I'LL "]) + word + rng.choice(["", "'ve", " ", "\r\n\n"]),
        )


TRICKY = st.text(
    st.sampled_from("aAsStT'rReEvVmMlLdD\u017f \t\n\r\u00a0\u0301é日1٣½/.-_ǅʰ\x1c\x85👍\u200d"), max_size=30
)


@settings(max_examples=400, deadline=None)
@given(text=TRICKY | st.text(max_size=40))
def test_any_text_gives_the_same_ids(text: str) -> None:
    for generation in (3, 4):
        assert_same(generation, text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


@pytest.mark.parametrize("generation", [3, 4])
def test_texts_with_control_tokens(generation: int) -> None:
    names = list(control_token_ids(len(quick(generation)._table)))
    extra = ["<|eot_id|><|eot|>", "<|<|eot_id|>|>", "<|no_such|>", "<|", "|>", "a<|begin_of_text|>b " + names[-1]]
    for text in [*TEXTS, *extra, "".join(names)[:4000]]:
        for special in (False, True):
            for bos in (None, True, False):
                ours = quick(generation).encode(text, allow_special=special, add_bos=bos)
                assert ours == slow(generation).encode(text, allow_special=special, add_bos=bos)
                assert quick(generation).decode(ours, skip_special=False) == slow(generation).decode(
                    ours, skip_special=False
                )


@pytest.mark.parametrize("generation", [3, 4])
def test_every_id_has_the_same_bytes(generation: int) -> None:
    ours, oracle = quick(generation), slow(generation)
    assert (ours.vocab_size, ours.special_ids) == (oracle.vocab_size, oracle.special_ids)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (oracle.bos_id, oracle.eos_id, oracle.add_bos)
    assert len(ours.special_ids) == {3: 256, 4: 2048}[generation]
    assert all(ours.token_bytes(i) == oracle.token_bytes(i) for i in range(ours.vocab_size + 2))
    assert ours._table.all_ranks() == {oracle.token_bytes(i): i for i in range(len(ours._table))}


@pytest.mark.parametrize("text", ["word " * 2000, "x" * 300, "new \U0001fae9 face", "€" * 90])
def test_what_the_table_leaves_to_tiktoken(text: str) -> None:
    tokenizer = load_llama({"ranks.table": table_bytes(3)}, {})
    assert tokenizer.encode(text) == slow(3).encode(text)
    assert tokenizer.encode("hello <|eot_id|>", allow_special=True) == slow(3).encode(
        "hello <|eot_id|>", allow_special=True
    )
    short = len(text) < 100 and "\U0001fae9" not in text
    assert (tokenizer._tiktoken is None) == short


def test_long_texts_are_cut_where_meta_cuts_them() -> None:
    """At 400,000 characters, and where more than 25,000 of one class follow one another."""
    meta = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    for text in ("word \n" * 70_000, "ab" * 13_000 + " " * 26_000 + "c", "x" * 399_999 + " yes"):
        assert load_llama({"ranks.table": table_bytes(3)}, {}).encode(text, add_bos=False) == meta.encode(
            text, bos=False, eos=False
        )


def test_control_tokens_of_an_unusual_form_are_found() -> None:
    given_names = {"<|begin_of_text|>": 128000, "[STOP]": 128001}
    tokenizer = load_llama({"ranks.table": table_bytes(3)}, {"special_tokens": given_names})
    assert tokenizer.encode("hi[STOP]", allow_special=True) == [128000, 6151, 128001]
    assert 128001 not in tokenizer.encode("hi[STOP]")


def test_both_sides_name_the_control_tokens_alike() -> None:
    for ranks in (128_000, 200_000):
        assert special_tokens(ranks) == control_token_ids(ranks)


def test_declared_names_keep_every_id() -> None:
    """Hugging Face's Llama 3.0 calls 128004 reserved_2, which Meta calls 128012; its Llama 4 list is shorter."""
    declared = {f"<|reserved_special_token_{n}|>": 128004 + n - 2 for n in range(2, 252)}
    found = special_tokens(128_000, declared)
    assert found["<|reserved_special_token_2|>"] == 128004
    assert len(set(found.values())) == len(found) and set(declared.items()) <= set(found.items())
    assert found["<|begin_of_text|>"] == 128000
    assert len(special_tokens(200_000, {"<|eot|>": 200008, "</x>": 200010})) == 2048


def test_damaged_tables_are_refused() -> None:
    good = rank_table([bytes([byte]) for byte in range(256)] + [b"ab"])
    info = {"special_tokens": {"<|x|>": 257}}
    assert load_llama({"ranks.table": good}, info).encode("ab", add_bos=False) == [256]
    for bad in (b"", good[:-1], good + b"x", b"X" + good[1:], good[:16] + b"\xff" * 16 + good[32:]):
        with pytest.raises(LlamacError, match="LLC0903"):
            load_llama({"ranks.table": bad}, info)
    with pytest.raises(LlamacError, match="the byte 255 has no rank"):
        load_llama({"ranks.table": rank_table([bytes([byte]) for byte in range(255)])}, info)
    full = bytearray(good)  # every slot taken by a rank that is not there: lookups still end
    full[32 + 4 * 257 : 32 + 4 * (257 + 1024)] = b"\xff\xff\xff\x7f" * 1024
    assert RankTable(bytes(full)).rank(b"ab") is None


def test_equal_ranks_give_equal_bytes() -> None:
    assert rank_table([b"a", b"b", b"ab"]) == rank_table([b"a", b"b", b"ab"])
    assert RankTable(rank_table([b"a", b"b", b"ab"])).rank(b"ab") == 2


def test_the_first_ids_need_no_tokenizer_library(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llamac.runtime.text.tokenizer import load_tokenizer\n"
        "from pathlib import Path\n"
        "tokenizer = load_tokenizer('tiktoken', {'ranks.table': Path(sys.argv[1]).read_bytes()}, {})\n"
        "assert tokenizer.encode('Hello world 12345')[1:] == [9906, 1917, 220, 4513, 1774]\n"
        "print([n for n in ('tiktoken', 'regex', 'tokenizers', 'numpy', 'json') if n in sys.modules])\n"
    )
    path = tmp_path / "table"
    path.write_bytes(table_bytes(3))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

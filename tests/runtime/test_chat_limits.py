"""Chat templates that would take a machine's memory or its time: each ends at once with one coded error."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.runtime.text.chat import ChatTemplate
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer

from .text_sources import as_file, smollm2

USER: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
NESTED = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
NESTED += "{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
"""Two lists that are small in memory, and of which each has 2 ** 60 elements when it is printed or compared."""
PAIRS = "{% set ns = namespace(x=(1, 1)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
DEEP = "{% set ns = namespace(x=(1,)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}"
"""Tuples in tuples: hashing them ends the process, as nothing bounds that recursion."""
MANY = "'x' * 400000"

BOMBS = {
    "values of a dict": NESTED + "{{ {'a': ns.x}.values() }}",
    "items of a dict": NESTED + "{{ {'a': ns.x}.items() }}",
    "percent of a nest": NESTED + "{{ '%s' % (ns.x,) }}",
    "a nest in lower case": NESTED + "{{ ns.x is lower }}",
    "equal nests": NESTED + "{{ ns.x == ns.y }}",
    "a nest in a list": NESTED + "{{ ns.x in [ns.y] }}",
    "equal nests by a test": NESTED + "{{ ns.x is eq ns.y }}",
    "a nest as a key": PAIRS + "{{ {ns.x: 1} }}",
    "a nest as a subscript": PAIRS + "{{ {}[ns.x] }}",
    "a nest in a set": PAIRS + "{{ {'a': ns.x}.items() - [] }}",
    "a deep key": DEEP + "{{ {ns.x: 1} }}",
    "a deep subscript": DEEP + "{{ {}[ns.x] }}",
    "huge numbers in a list": "{{ [2 ** 2000] * 900000 }}",
    "fields of one value": f"{{{{ ('{{0}}' * 9000).format({MANY}) }}}}",
    "fields of one name": f"{{{{ ('{{a}}' * 9000).format(a={MANY}) }}}}",
    "more fields": "{{ ('{0:9999}' * 90000).format(1) }}",
    "a map of fields": f"{{{{ ('{{a}}' * 9000).format_map({{'a': {MANY}}}) }}}}",
    "percent by name": f"{{{{ ('%(a)s' * 9000) % {{'a': {MANY}}} }}}}",
    "percent widths": "{{ ('%9999d' * 90000) % 1 }}",
    "the format filter": f"{{{{ ('%(a)s' * 9000) | format(a={MANY}) }}}}",
    "open names": "{{ ('%(' * 400000) % 1 }}",
    "replacing in a list": f"{{{{ (['a' * 400000]) | replace('a', {MANY}) }}}}",
    "replacing a number": f"{{{{ ('1' * 400000) | replace(1, {MANY}) }}}}",
    "indentation as text": f"{{{{ ('a\\n' * 200000) | indent({MANY}) }}}}",
    "indentation of JSON": "{{ (range(99999) | list) | tojson(indent=10000) }}",
    "indentation of JSON as text": f"{{{{ (range(99999) | list) | tojson(indent={MANY}) }}}}",
    "separators of JSON": f"{{{{ (range(99999) | list) | tojson(separators=({MANY}, ':')) }}}}",
    "bytes": "{{ ('x'.encode() * 9000000000) | length }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000, 'big') | length }}",
    "rounding": "{{ 5 | round(-1000000000) }}",
    "rounding up": "{{ 5 | round(1000000000, 'ceil') }}",
    "slices": "{% for x in [1] | slice(1000000000000) %}{{ loop.length }}{% endfor %}",
    "a stream of wide texts": "{{ (range(99999) | list * 9) | map('string') | map('center', 9999) | list | length }}",
    "many names": "".join("{% set a" + str(i) + " = 'x' * 1000000 %}" for i in range(300)),
    "many slices": "{% set big = 'x' * 1000000 %}" + "".join("{% set a" + str(i) + " = big[1:] %}" for i in range(300)),
    "a path of attributes": "{{ (['a'] * 100000) | sort(attribute='0.' * 300000 ~ '0') | length }}",
    "a slow filter": "{{ ((')' * 300000) ~ 'x)') | urlize }}",
    "lines": "{{ ('a ' * 200000) | wordwrap(1, wrapstring='x' * 400000) }}",
    "a sum of lists": "{{ ([[1] * 10] * 90000) | sum(start=[]) | length }}",
    "a set of characters": "{{ ('a' * 400000).strip('b' * 400000 ~ 'a') }}",
    "a search from the end": "{{ ('a' * 400000).rfind('ab' ~ 'a' * 200000) }}",
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """4 GB of address space: a bomb that goes off ends this test, not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_bombs_do_not_go_off(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(LlamacError) as caught:
        ChatTemplate(source, time_limit=1).render(USER)
    assert caught.value.code == "LLC0912"
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (NESTED + "{{ ns }}", "<namespace>"),
        ("{{ namespace(x='secret') }}", "<namespace>"),
        ("{{ ns is undefined }} {{ 3 is eq 3 }} {{ 'a' is in 'abc' }}", "True True True"),
        ("{{ 2 < 3 <= 3 }} {{ 'x' not in [] }}", "True True"),
        ("{{ messages[:1][0].content[1:3] }} {{ {'a' ~ 1: 2}['a1'] }} {{ {(1, 2): 3}[(1, 2)] }}", "el 2 3"),
        ("{{ '%s of %(a)s' | format(a=1) if false else '%5.1f|%r' | format(2.25, 'a') }}", "  2.2|'a'"),
        ("{{ '{} {b:>3} {0}{1}'.format(1, 2, b=3) if false else '{1} {0} {b:>3}'.format(1, 2, b=3) }}", "2 1   3"),
        ("{{ [[1, 2], [3]] | sum(start=0, attribute='0') }} {{ 2.567 | round(2) }}", "4 2.57"),
        ("{{ 'a,b' | replace(',', ';') }} {{ 'a\nb' | indent(2) }} {{ ' x ' | trim }}", "a;b a\n  b x"),
        ("{{ [1, 2, 3] | slice(2) | list }} {{ [1, 2, 3] | batch(2) | list }}", "[[1, 2], [3]] [[1, 2], [3]]"),
        ("{{ {'a': [1, 'ü']} | tojson(indent=2) }}", '{\n  "a": [\n    1,\n    "ü"\n  ]\n}'),
    ],
)  # fmt: skip
def test_what_templates_do_is_still_allowed(source: str, text: str) -> None:
    assert ChatTemplate(source).render(USER) == text


def test_a_format_with_many_colons_is_read_in_no_time() -> None:
    start = time.monotonic()
    with pytest.raises(LlamacError, match="LLC0911"):
        ChatTemplate("{{ ('{' ~ ':' * 800000).format(1) }}").render(USER)
    assert time.monotonic() - start < 2


def test_what_a_template_says_is_shortened() -> None:
    with pytest.raises(LlamacError) as caught:
        ChatTemplate("{{ raise_exception('\x1b[2J' ~ 'x' * 400000) }}").render(USER)
    assert caught.value.code == "LLC0911"
    assert len(caught.value.message()) < 1000 and caught.value.message().isprintable()


def test_long_templates_are_refused_before_they_are_compiled() -> None:
    start = time.monotonic()
    with pytest.raises(LlamacError) as caught:
        ChatTemplate("".join("{% if x %}{% set v" + str(i) + "=1 %}{% endif %}" for i in range(30_000)))
    assert caught.value.code == "LLC0912" and time.monotonic() - start < 1


@cache
def smollm() -> TokenizerBase:
    return load_tokenizer("gguf-bpe", as_file(smollm2()[0]), {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages }}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(ensure_ascii=true) }}",
        "{{ '%r' % messages[0].content }}",
        "{{ messages | string | tojson(ensure_ascii=true) }}",
        "{% for part in messages[0].content %}{{ part }}{% endfor %}",
    ],
)
def test_control_tokens_stay_text_however_they_are_printed(source: str) -> None:
    """Also in a list that is printed as it is, and in the names of arguments."""
    attack = "<|im_end|>"
    parts = [{"type": "text", "text": attack, attack: attack, f"a {attack}": 1}]
    ids = ChatTemplate(source).encode(smollm(), [{"role": "user", "content": parts}])
    assert not set(ids) & set(smollm().special_ids.values())
    assert attack in smollm().decode(ids, skip_special=False)


def test_an_empty_control_token_is_none() -> None:
    tokens = ["<unk>", "", "▁a", "a", "▁"]
    stored = {"tokens": tokens, "scores": [0.0] * 5, "token_types": [2, 3, 1, 1, 1], "add_bos": False}
    tokenizer = load_tokenizer("gguf-spm", as_file(stored), {})
    assert tokenizer.special_ids == {}
    assert tokenizer.encode("aa", allow_special=True) == tokenizer.encode("aa") == [2, 3]

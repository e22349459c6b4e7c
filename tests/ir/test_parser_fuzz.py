"""Mutated IR text: whatever comes in, the parser accepts a module that verifies and round-trips, or says what is wrong.

`LLAMAC_FUZZ_SECONDS=600 pytest -m slow tests/ir/test_parser_fuzz.py` runs for ten minutes instead of twenty seconds.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modules import FULL

from llamac.errors import LlamacError
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify

SECONDS = float(os.environ.get("LLAMAC_FUZZ_SECONDS", "20"))
QUICK = 400
TOKEN = re.compile(r'"[^"]*"|[\w.\-]+|\S|\s+')
NUMBERS = ("0", "-1", "1", "2147483648", "9" * 40, "1e400", "nan", "inf", "-inf", "0x1p3", "T", "P + T", "")


def _corpus() -> list[str]:
    """Every module among the file tests of the passes, and the odd one of the parser's own tests."""
    texts = [FULL]
    for path in sorted((Path(__file__).parents[1] / "passes").glob("*.ir")):
        for part in path.read_text(encoding="utf-8").split("// -----"):
            texts += re.findall(r"^module .*?^}$", part, re.MULTILINE | re.DOTALL)
    return texts


def _mutated(generator: random.Random, corpus: list[str]) -> str:
    tokens = TOKEN.findall(generator.choice(corpus))
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        if not tokens:
            return ""
        at = generator.randrange(len(tokens))
        match generator.randrange(8):
            case 0:
                del tokens[at : at + generator.choice((1, 1, 3, 20))]
            case 1:
                tokens.insert(at, generator.choice(tokens))
            case 2:
                other = generator.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 3:
                tokens[at] = generator.choice(NUMBERS)
            case 4:
                tokens[at] = generator.choice(TOKEN.findall(generator.choice(corpus)))
            case 5:
                word = list(tokens[at]) or [" "]
                word[generator.randrange(len(word))] = chr(generator.choice((0, 34, 92, 123, 125, 8232, 0x1F600, 97)))
                tokens[at] = "".join(word)
            case 6:
                tokens = tokens[:at]
            case 7:
                tokens[at:at] = tokens[at : at + 30] * generator.choice((1, 5))
    return "".join(tokens)


def _inputs(seed: int) -> Iterator[str]:
    generator, corpus = random.Random(seed), _corpus()
    while True:
        yield _mutated(generator, corpus)


def _check(text: str) -> bool:
    """Whether the text is a module; anything but acceptance and a coded error fails the test."""
    try:
        module = parse_module(text, "<fuzz>")
        verify(module)
    except LlamacError as error:
        assert error.code.startswith("LLC04"), error
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} for this text:\n{text}") from error
    printed = print_module(module)
    assert print_module(parse_module(printed)) == printed
    return True


def test_a_few_hundred_mutations_are_accepted_or_refused_with_a_code() -> None:
    inputs = _inputs(1)
    assert sum(_check(next(inputs)) for _ in range(QUICK)) > 0, "nothing was accepted: the mutations are too coarse"


@pytest.mark.slow
def test_mutations_for_a_while() -> None:
    started, count, accepted = time.monotonic(), 0, 0
    for text in _inputs(time.time_ns()):
        accepted += _check(text)
        count += 1
        if time.monotonic() - started > SECONDS:
            break
    print(f"{count} inputs, {accepted} accepted")
    assert accepted

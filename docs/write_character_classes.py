"""Writes runtime/text/character_classes.py: the character classes of the Llama patterns, from Python's unicodedata.

Run it with Python 3.11, whose tables are those of Unicode 14: what was assigned since then stays `?`, and a text that
holds such a character goes through tiktoken, whatever version of Unicode that knows.
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from itertools import groupby
from pathlib import Path

TARGET = Path(__file__).parent.parent / "runtime" / "text" / "character_classes.py"
WHITE_SPACE = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
"""The property White_Space, which is what `\\s` means to tiktoken; str.isspace holds four control characters more."""

CLASS_OF_CATEGORY = {"Ll": "a", "Lu": "A", "Lt": "A", "Lm": "o", "Lo": "o", "Cn": "?"}


def class_of(code: int) -> str:
    """The class letter of one code point."""
    if code in (10, 13):
        return "n"
    if code in WHITE_SPACE:
        return "w"
    category = unicodedata.category(chr(code))
    return CLASS_OF_CATEGORY.get(category) or {"M": "c", "N": "N"}.get(category[0], ".")


def runs() -> str:
    """Every code point's class, run by run: the letter, then the length of the run unless it is 1."""
    lengths = [(letter, sum(1 for _ in group)) for letter, group in groupby(map(class_of, range(sys.maxunicode + 1)))]
    return "".join(letter if length == 1 else f"{letter}{length}" for letter, length in lengths)


def main() -> None:
    """Replace the text between the quotes."""
    if unicodedata.unidata_version != "14.0.0":
        raise SystemExit(f"Unicode {unicodedata.unidata_version}: run this with Python 3.11, which has 14.0.0")
    before, rest = TARGET.read_text(encoding="utf-8").split('RUNS = """', 1)
    after = rest.split('"""', 1)[1]
    lines = textwrap.wrap(runs(), 119, break_on_hyphens=False)
    TARGET.write_text(before + 'RUNS = """\\\n' + "\n".join(lines) + '\n"""' + after, encoding="utf-8")


if __name__ == "__main__":
    main()

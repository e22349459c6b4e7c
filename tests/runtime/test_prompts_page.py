"""What docs/prompts.md shows runs, and what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from llamac.runtime.text.formats.registry import FORMATS
from llamac.runtime.text.tokenizer_llama import LONGEST_TEXT, LONGEST_WORD
from llamac.runtime.text.tools.call import KINDS
from llamac.runtime.text.tools.parser import LONGEST_CALL

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/prompts.md", "exec"), {})


def test_formats_kinds_and_limits_are_those_of_the_code() -> None:
    assert all(f"`{name}`" in PAGE for name in (*FORMATS, *KINDS))
    assert all(str(limit) in PAGE for limit in (LONGEST_TEXT, LONGEST_WORD, LONGEST_CALL))

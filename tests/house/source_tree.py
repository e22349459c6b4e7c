"""The source tree as the tests of this folder see it: packages, modules, and what each module imports."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MAPPED = {name: f"llamac.{name}" for name in ("passes", "backends", "runtime", "models")}
"""Folder at the root -> the name it is imported by."""

FOLDERS = {"llamac": "llamac", **MAPPED}


@dataclass(frozen=True)
class Import:
    """One imported module, as an absolute name, and where and how it is imported."""

    module: str
    line: int
    relative: bool


@dataclass(frozen=True)
class SourceModule:
    """One file of the package."""

    path: Path
    name: str

    @property
    def place(self) -> str:
        """The path from the root of the tree."""
        return str(self.path.relative_to(ROOT))

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)

    def imports(self) -> Iterator[Import]:
        """Everything it imports, in functions and under TYPE_CHECKING too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno, False) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield Import(base, node.lineno, node.level > 0)
                # `from llamac import errors` imports a module too.
                yield from (
                    Import(f"{base}.{alias.name}", node.lineno, node.level > 0)
                    for alias in node.names
                    if f"{base}.{alias.name}" in module_names()
                )

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def source_modules() -> tuple[SourceModule, ...]:
    """Every Python file of the package, by its import name."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT / folder).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            found.append(SourceModule(path, ".".join([package, *parts])))
    return tuple(found)


@cache
def module_names() -> frozenset[str]:
    """The import names of all modules."""
    return frozenset(module.name for module in source_modules())


@cache
def project() -> dict[str, object]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

"""The package-dir mapping: what is on disk, in pyproject.toml and in the wheel is the same."""

from __future__ import annotations

import ast
import email.parser
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from source_tree import FOLDERS, MAPPED, ROOT, SourceModule, project, source_modules

import llamac


def _setuptools() -> dict[str, Any]:
    tool = project()["tool"]
    assert isinstance(tool, dict)
    found: dict[str, Any] = tool["setuptools"]
    return found


def _metadata() -> dict[str, Any]:
    found = project()["project"]
    assert isinstance(found, dict)
    return found


def packages_on_disk() -> set[str]:
    """Import names of all folders below the five that hold Python files."""
    return {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_every_package_on_disk_is_listed() -> None:
    listed = _setuptools()["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk(), "make [tool.setuptools] packages equal to the folders"


def test_the_mapping_names_the_five_folders() -> None:
    assert _setuptools()["package-dir"] == {package: folder for folder, package in FOLDERS.items()}
    hidden = [name for name in MAPPED if (ROOT / "llamac" / name).exists()]
    assert not hidden, f"llamac/ must not hold {hidden}: it would shadow the mapped folder"


@pytest.mark.parametrize("package", sorted(packages_on_disk()))
def test_every_package_has_an_init(package: str) -> None:
    """Without one a mapped folder fails when installed as editable (setuptools #4943)."""
    assert package in {module.name for module in source_modules() if module.is_package}


@pytest.mark.parametrize("module", [m for m in source_modules() if m.is_package], ids=lambda m: m.place)
def test_no_logic_in_init(module: SourceModule) -> None:
    for node in module.tree.body:
        allowed: tuple[type[ast.stmt], ...] = (ast.Import, ast.ImportFrom)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{module.place}:{node.lineno} runs code"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            assert node.value is None or not _calls(node.value), f"{module.place}:{node.lineno} runs code"
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING", f"{module.place}:{node.lineno} branches"
        elif isinstance(node, ast.FunctionDef):
            lazily = module.name in ("llamac", "llamac.torch") and node.name in ("__getattr__", "__dir__")
            assert lazily, f"{module.place}:{node.lineno} defines a function"
        else:
            assert isinstance(node, allowed), f"{module.place}:{node.lineno} is no import"


def _calls(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Call) for inner in ast.walk(node))


def test_the_wheel_holds_all_modules_headers_and_the_typing_mark(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {
        "/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == expected
    assert "llamac/py.typed" in held
    assert any(name.startswith("llamac/backends/cpu/c/") and name.endswith(".h") for name in held)


def test_the_wheel_adds_one_name_to_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
    assert tops == {"llamac", f"llamac-{_metadata()['version']}.dist-info"}


def test_the_wheel_carries_licence_command_and_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        info = next(name.split("/")[0] for name in file.namelist() if ".dist-info/" in name)
        metadata = email.parser.Parser().parsestr(file.read(f"{info}/METADATA").decode())
        assert "llamac = llamac.cli.main:main" in file.read(f"{info}/entry_points.txt").decode()
        assert file.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Version"] == _metadata()["version"] == llamac.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_sdist_holds_documentation_tests_and_what_the_wheel_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    shipped = {
        path.relative_to(ROOT).as_posix()
        for folder in (*FOLDERS, "docs", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    missing = {name for name in shipped - held if "__pycache__" not in name}
    assert not missing and {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"} <= held
    assert not [name for name in held if name.endswith(".pyc")]


def test_the_changelog_knows_the_version() -> None:
    assert f"## {_metadata()['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_compiler_is_pinned_where_the_code_says_so() -> None:
    from llamac.backends.cpu.toolchain import ZIG_VERSION

    assert f"ziglang=={ZIG_VERSION}" in _metadata()["optional-dependencies"]["compile"]


def test_every_requirement_has_bounds() -> None:
    extras: dict[str, list[str]] = _metadata()["optional-dependencies"]
    requirements = [*_metadata()["dependencies"], *(r for extra in extras.values() for r in extra)]
    loose = [r for r in requirements if not r.startswith("llamac[") and "==" not in r and "<" not in r]
    assert not loose, f"give {loose} the range they were tested in"


def test_the_runtime_needs_no_compiler() -> None:
    needed = {r.split(">")[0].split("=")[0] for r in _metadata()["dependencies"]}
    assert not needed & {"ziglang", "ml_dtypes", "torch", "triton", "transformers", "rich"}


def test_ruff_bans_the_bare_names() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert set(config["flake8-tidy-imports"]["banned-api"]) == set(MAPPED)


def test_no_two_helper_modules_of_the_tests_share_a_name() -> None:
    """They are imported by bare names from several folders: the first one found would stand for both."""
    found = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    outside = [path.name for path in found if "sample_pass_project" not in path.parts and path.name != "__init__.py"]
    assert not {name for name in outside if outside.count(name) > 1}

"""Imports point one way: the table of docs/tour.md, held for every import of every module, lazy ones included."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from source_tree import FOLDERS, MAPPED, Import, SourceModule, source_modules

BASE = frozenset({"errors", "host", "target"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "host": frozenset(),
    "target": frozenset({"errors"}),
    "ir": frozenset({"errors"}),
    "transform": frozenset({"errors", "target", "ir"}),
    "analysis": frozenset({"errors", "target", "ir"}),
    "artifact": frozenset({"errors"}),
    "passes": frozenset({"errors", "target", "ir", "transform", "analysis"}),
    "backends": frozenset({"errors", "target", "ir", "transform", "analysis", "artifact"}),
    "models": frozenset({"errors", "ir"}),
    "runtime": frozenset({"errors", "host", "artifact"}),
    "driver": BASE | {"ir", "transform", "analysis", "artifact", "passes", "backends", "models"},
    "divergence": BASE | {"ir", "analysis", "artifact", "passes", "backends", "models", "runtime", "driver"},
    "explore": BASE | {"ir", "transform", "passes", "models", "driver"},
    "planning": BASE | {"ir", "passes", "models", "driver"},
    "export": BASE | {"ir", "transform", "analysis", "artifact", "passes", "backends", "models", "runtime", "driver"},
    "torch": BASE | {"models", "runtime", "artifact", "driver"},
    "cli": BASE
    | {
        "front",
        "divergence",
        "explore",
        "export",
        "planning",
        "ir",
        "transform",
        "analysis",
        "artifact",
        "passes",
        "backends",
        "models",
        "runtime",
        "driver",
    },
    "front": frozenset({"errors", "target", "driver", "runtime"}),
    "main": frozenset({"cli"}),
}
"""Part -> the other parts of llamac it may import. `driver`: compile() and its files; `front`: `llamac/__init__`."""

DRIVER_FILES = {
    "driver",
    "compiled_graph",
    "chosen_targets",
    "strictness",
    "golden",
    "materialize",
    "certificate",
    "reproduction",
    "layer_kinds",
    "manifest_entries",
    "image_side",
    "gpu_side",
    "fp8_side",
    "assemble",
    "generated_code",
    "retarget",
    "retarget_guests",
    "stored_graphs",
    "repack",
    "onnx_side",
    "tvm_side",
}
DIVERGENCE_FILES = {"divergence", "device_logits", "recording", "traced_build", "weight_values", "second_run"}

LIBRARIES: dict[str, frozenset[str]] = {
    "ir": frozenset({"numpy", "ml_dtypes"}),
    "transform": frozenset({"numpy"}),
    "analysis": frozenset({"numpy", "networkx"}),
    "artifact": frozenset({"numpy"}),
    "passes": frozenset({"numpy"}),
    "backends": frozenset({"numpy"}),
    "models": frozenset({"numpy"}),
    "runtime": frozenset({"numpy", "tokenizers", "tiktoken", "jinja2", "regex"}),
    "driver": frozenset({"numpy"}),
    "divergence": frozenset({"numpy"}),
    "planning": frozenset({"numpy"}),
    "export": frozenset({"numpy"}),
    "torch": frozenset({"numpy", "torch", "transformers", "tokenizers"}),
    "cli": frozenset({"click", "rich"}),
}
"""Part -> the libraries it may import, beside the standard one."""

LIBRARIES_OF_FILES: dict[str, frozenset[str]] = {
    "llamac.models.capture": frozenset({"torch"}),
    "llamac.runtime.images": frozenset({"PIL"}),
    "llamac.models.pth_reader": frozenset({"torch"}),
    "llamac.backends.gpu": frozenset({"triton"}),
    "llamac.runtime.gpu.cuda_driver": frozenset({"cuda"}),
    "llamac.backends.onnx": frozenset({"onnx", "onnxruntime"}),
    "llamac.backends.tvm": frozenset({"tvm"}),
    "llamac.runtime.device_tvm": frozenset({"tvm"}),
    "llamac.runtime.device_onnxruntime": frozenset({"onnxruntime"}),
    "llamac.export.gguf": frozenset({"gguf", "llama_cpp"}),
    "llamac.export.transformers_check": frozenset({"torch", "transformers"}),
}
"""Module or package -> the libraries that it alone may import, lazily."""


def part_of(module: str) -> str:
    """The part of the house a module of llamac belongs to: `llamac.ir.dims` -> `ir`."""
    name = [*module.split("."), ""][1]
    if name in DRIVER_FILES:
        return "driver"
    if name in DIVERGENCE_FILES:
        return "divergence"
    return {"": "front", "__main__": "main"}.get(name, name)


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "llamac"


def libraries_of(module: SourceModule) -> frozenset[str]:
    own = [names for place, names in LIBRARIES_OF_FILES.items() if f"{module.name}.".startswith(f"{place}.")]
    return LIBRARIES.get(part_of(module.name), frozenset()).union(*own)


def each_import() -> Iterator[tuple[SourceModule, Import, str]]:
    """Every import of the package with its module and `file:line`."""
    for module in source_modules():
        for found in module.imports():
            yield module, found, f"{module.place}:{found.line}"


def test_every_module_is_in_a_part() -> None:
    strays = [module.place for module in source_modules() if part_of(module.name) not in MAY_IMPORT]
    assert not strays, f"{strays} are in no part of the house; add them to the table and to docs/tour.md"


def test_imports_point_one_way() -> None:
    wrong = []
    for module, found, place in each_import():
        part = part_of(module.name)
        if is_ours(found.module) and part_of(found.module) not in MAY_IMPORT[part] | {part}:
            wrong.append(f"{place}: {part} must not import {found.module}")
    assert not wrong, "\n".join(wrong)


def test_libraries_are_imported_where_they_belong() -> None:
    known = sys.stdlib_module_names | MAPPED.keys()  # bare mapped names are the next test's concern
    wrong = [
        f"{place}: {part_of(module.name)} must not import {found.module}"
        for module, found, place in each_import()
        if not is_ours(found.module) and found.module.split(".")[0] not in known | libraries_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_mapped_folders_are_imported_by_their_full_names() -> None:
    """The bare name works where the root is on sys.path, and makes a second copy of every class."""
    wrong = [
        f"{place}: write llamac.{found.module}"
        for _, found, place in each_import()
        if found.module.split(".")[0] in MAPPED and not found.relative
    ]
    assert not wrong, "\n".join(wrong)


def test_relative_inside_a_folder_absolute_across() -> None:
    wrong = []
    for module, found, place in each_import():
        part, other = part_of(module.name), part_of(found.module)
        if not is_ours(found.module):
            continue
        if part == other and not found.relative and part not in {"driver", "divergence", "front"}:
            wrong.append(f"{place}: {found.module} is in the same folder: import it relatively")
        beside = {part, other} <= BASE | {"driver", "divergence"}  # files at the root of llamac/
        if part != other and found.relative and not beside:
            wrong.append(f"{place}: {found.module} is in another folder: import it absolutely")
    assert not wrong, "\n".join(wrong)


def test_passes_backends_models_and_runtime_know_nothing_of_one_another() -> None:
    for part in MAPPED:
        assert not MAY_IMPORT[part] & (MAPPED.keys() - {part})


def test_the_table_has_no_way_round() -> None:
    """No part can reach itself: the order of the parts is a real one."""

    def reach(part: str, seen: frozenset[str]) -> None:
        for other in MAY_IMPORT[part]:
            assert other not in seen, f"{part} -> {other} closes a circle"
            reach(other, seen | {other})

    for part in MAY_IMPORT.keys() - {"cli", "front", "torch"}:
        reach(part, frozenset({part}))


def test_every_folder_is_looked_at() -> None:
    assert {module.name.split(".")[0] for module in source_modules()} == {"llamac"}
    seen = {part_of(module.name) for module in source_modules()}
    assert seen >= {"ir", "cli", "driver", "front", *MAPPED}, f"looked at {seen} in {FOLDERS}"

"""Loads every kernel of the cases in a folder, and launches none: python tests/gpu/load_code.py FOLDER [--kind hip].

Says what the machine is, and which kernels its driver refuses, with its word for it. A second's work that tells whether
anything else can run at all.
"""

from __future__ import annotations

import argparse
import platform
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llamac.artifact.launch_plan import LaunchPlan
from llamac.artifact.launch_plan_file import read_plan
from llamac.errors import LlamacError
from llamac.runtime.gpu.driver import Driver
from llamac.runtime.gpu.found import find_gpu

SHOWN = 10
"""Refused kernels of a file that are told one by one."""


def main() -> int:
    """The exit code: 0 when every kernel was loaded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", default="cuda", choices=["cuda", "hip"])
    options = parser.parse_args()
    packages = ("numpy", "torch", "triton", "cuda-bindings", "ml_dtypes", "pytest", "hypothesis")
    print(f"Python {platform.python_version()}; " + ", ".join(f"{name} {_version(name)}" for name in packages))
    driver, gpu = find_gpu(options.kind)
    print(f"{gpu.label}, {gpu.memory_bytes / 1e9:.1f} GB, {gpu.shared_bytes} bytes of shared memory a block")
    driver.open(gpu.index)
    refused = 0
    for path in sorted(options.folder.glob("*.zip")):
        if path.name.startswith("tune-"):
            continue
        found = refused_kernels(driver, path)
        refused += len(found)
        print(f"{path.name}: {len(found)} kernels refused", *found[:SHOWN], sep="\n  ", flush=True)
    driver.close()
    return 1 if refused else 0


def refused_kernels(driver: Driver, path: Path) -> list[str]:
    """What the driver says of each kernel of a case that it does not load, or does not give its shared memory."""
    with zipfile.ZipFile(path) as archive:
        plan: LaunchPlan = read_plan(archive.read("plan.json"), str(path))
        found = []
        for kernel in plan.kernels:
            image = archive.read(kernel.member)
            try:
                module = driver.load_module(image + b"\0" if plan.code == "ptx" else image)
                driver.allow_shared(driver.function(module, kernel.name), kernel.shared_bytes)
                driver.unload_module(module)
            except LlamacError as error:
                found.append(f"{kernel.member}: {error.reason}")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    sys.exit(main())

"""Compiles every kernel that the tests of tests/backends/gpu run, for GPUs to be tested later: needs Triton, no GPU.

    python tests/gpu/compile_kernels.py --target h100 -o build/gpu

The tests run as always, in Triton's interpreter; what they launch is compiled on the way, and random examples are kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from llamac.target import find_target

ROOT = Path(__file__).parents[2]
KERNEL_TESTS = ("attention", "embedding_and_head", "expert", "linear", "picture", "qkv", "sample")
"""tests/backends/gpu/test_NAME_kernels.py run single kernels."""


def kernel_tests() -> list[str]:
    """The files of the kernels' tests."""
    return [str(ROOT / "tests" / "backends" / "gpu" / f"test_{name}_kernels.py") for name in KERNEL_TESTS]


def pytest_command() -> list[str]:
    """How they are run, with settings of their own.

    -P: else the repository's folder `llamac` is found in the place of the package, which has its other parts elsewhere.
    """
    settings = ["-c", str(Path(__file__).with_name("pytest.ini")), f"--rootdir={ROOT}", f"--confcutdir={ROOT}"]
    report = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    chosen = ["--hypothesis-seed=0", "-m", "not slow", *kernel_tests()]
    return [sys.executable, "-P", "-m", "pytest", *settings, *report, *chosen]


def main() -> int:
    """Run the tests; their exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="h100", help="names as `llamac targets` lists them, with commas")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    options = parser.parse_args()
    names = {find_target(name).cpu for name in options.target.split(",")}
    words = f"record {','.join(sorted(names))} {options.output.resolve()}"
    return subprocess.run(pytest_command(), env=os.environ | {"LLAMAC_GPU_KERNELS": words}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

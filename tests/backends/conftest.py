"""Lets the tests of this folder import their oracle and driver, beside them, and says what is built for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

BETWEEN = ("x86_64_v4", "generic")
"""Instruction sets whose kernels the ones beside them run, too: only runs that take slow tests build for these."""


@pytest.fixture(scope="session")
def left_out(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The instruction sets that this run does not build for."""
    return BETWEEN if "not slow" in str(request.config.getoption("-m")) else ()

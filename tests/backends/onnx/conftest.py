"""Lets the tests of this folder import the modules beside them, and the tiny models of the end-to-end tests."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "e2e")]

"""Lets the tests of this folder import what lies beside them, and the independent packer of the backend's tests."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "backends")]

"""Artifacts that differ in one known thing: what `diff` and `diverge` must find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.models.checkpoint import Checkpoint

TAMPERED = "layers.1.mlp.down"
SEED = 5


def compile_tiny(output: Path, *, preset: str = "tiny", **options: Any) -> Path:
    """A preset with random weights, compiled for this machine."""
    from llamac.driver import compile as compile_model

    compile_model(preset, output=output, random_weights=SEED, validate=False, **options)
    return output


def tampered_rows(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A row reader that doubles the value in row 3, column 7 of one weight: one bit of its exponent."""

    def read_rows(self: Checkpoint, name: str, lo: int, hi: int) -> np.ndarray:
        rows = read(self, name, lo, hi)
        if name == TAMPERED and lo <= 3 < hi:
            rows = rows.copy()
            values = rows.view(np.float32)
            values[3 - lo, 7] = 1.5
        return rows

    return read_rows


def compile_tampered(output: Path, **options: Any) -> Path:
    """As `compile_tiny`, with another value in one place of one weight of the checkpoint."""
    from llamac.models.checkpoint import Checkpoint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "read_rows", tampered_rows(Checkpoint.read_rows))
        return compile_tiny(output, **options)

"""What the tests of TVM share: tiny models that lie with the end-to-end tests, and artifacts made once a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "e2e")]

MakeArtifact = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """torch with one thread: tiny matrices gain nothing from more."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny dense Llama."""
    from tiny_llama import TinyShape, make_reference, save_checkpoint

    shape = TinyShape(inner=112)
    return save_checkpoint(make_reference(shape), shape, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def artifact_of(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeArtifact:
    """`artifact_of(targets, **options)`: the tiny Llama compiled, each way once."""
    import llamac
    from llamac.models.sources import open_source

    made: dict[str, Path] = {}

    def artifact(targets: str, **options: Any) -> Path:
        key = f"{targets} {sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("artifact") / "model.llamac"
            given = {"tokenizer": False, "validate": False, "max_step_tokens": 64, **options}
            llamac.compile(open_source(tiny_source), target=targets.split(","), output=made[key], **given)
        return made[key]

    return artifact

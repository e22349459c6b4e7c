"""Values of a manifest that its schema leaves open: each wrong one is one coded error when it is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime import golden, native
from llamac.runtime.images.model_images import model_images
from llamac.runtime.model import Model
from llamac.runtime.text.rank_table import MAGIC, RankTable

VISION = {"image_size": 28, "patch_size": 14, "taps": [1], "max_tiles": 2, "image_token": 128256}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"supported_aspect_ratios": 5},
        {"supported_aspect_ratios": []},
        {"supported_aspect_ratios": [[1]]},
        {"supported_aspect_ratios": [[1, "2"]]},
        {"supported_aspect_ratios": [[1, 1], 3]},
        {"supported_aspect_ratios": [[0, 1]]},
        {"supported_aspect_ratios": [[1, 1]], "image_token": None},
        {"supported_aspect_ratios": [[1, 1]], "image_size": 0},
    ],
    ids=str,
)
def test_pictures(change: dict[str, Any]) -> None:
    def manifest(vision: dict[str, Any]) -> dict[str, Any]:
        return {"model": {"name": "m", "architecture": "mllama", "config": {"vision": vision}}}

    assert model_images(manifest(VISION | {"supported_aspect_ratios": [[1, 2]]}), {}).placeholder == 128256
    with pytest.raises(LlamacError, match="LLC0802"):
        model_images(manifest(VISION | change), {})


class _FiveLogits:
    """A model of five tokens, as far as golden vectors need one."""

    vocab_size = 5

    def __init__(self, vector: dict[str, Any], tolerance: Any = 1.0) -> None:
        self.manifest = {"golden": {"oracle": "absent", "tolerance": tolerance, "vectors": [vector]}}

    def logits(self, ids: list[int]) -> Any:
        return np.zeros((len(ids), 5), np.float32)


GOLDEN = {"prompt_ids": [1, 2], "greedy_ids": [3, 4], "top": [[3, 0.5], [4, 0]]}


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"greedy_ids": [3, 5]}, 1.0),
        ({"greedy_ids": [1 << 62]}, 1.0),
        ({"top": [[5, 0.5]]}, 1.0),
        ({"top": [[1.5, 0.5]]}, 1.0),
        ({"top": [[1]]}, 1.0),
        ({"top": [[]]}, 1.0),
        ({"top": [[1, 2, 3]]}, 1.0),
        ({}, "1"),
        ({}, True),
        ({}, float("nan")),
        ({}, -1.0),
        ({}, 10**400),
    ],
    ids=str,
)
def test_golden_vectors(change: dict[str, Any], tolerance: Any) -> None:
    assert golden.replay(cast(Model, _FiveLogits(GOLDEN)))[0].passed
    with pytest.raises(LlamacError, match="LLC0802"):
        golden.replay(cast(Model, _FiveLogits(GOLDEN | change, tolerance)))


def test_a_chat_template_that_is_no_text() -> None:
    artifact = SimpleNamespace(member_bytes=lambda name: b"\xff\xfe{{")
    model = SimpleNamespace(manifest={"chat_template": "template.jinja"}, _artifact=artifact)
    with pytest.raises(LlamacError, match="LLC0910"):
        Model.chat_template.func(cast(Model, model))


def test_a_table_of_ranks_that_is_searched_without_end() -> None:
    """Full slots and a long probe: every lookup would try all of them."""
    slots, count = 1 << 10, 1
    words = np.array([count, slots, (1 << 32) - 1, 1], "<u4").tobytes()
    table = MAGIC + words + np.array([1], "<u4").tobytes() + np.ones(slots, "<u4").tobytes() + b"a"
    with pytest.raises(LlamacError, match="LLC0903"):
        RankTable(table)


def test_code_that_can_be_put_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with pytest.raises(LlamacError, match="LLC0803"):
        native._load_from_file(b"\x7fELF", "code/x.so")

"""Bugs that only show thousands of positions into a sequence, and what validation does to see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from bugs import Bug, Patch, check_caught, meaning
from mutations import DTYPE, LOGITS
from small_models import BASE, LLAMA4, SmallModel

from llamac.ir.definition import Evaluation
from llamac.ir.registry import find_op
from llamac.transform.far_positions import PLACE, far_sequence
from llamac.transform.scenario import FAR, make_scenario

PAGE = 8


def _angles(change: Callable[[Evaluation], Any]) -> Patch:
    """Positions are changed on their way to an angle, from `fuse-rope` on: nothing before it has this op."""

    def evaluate(e: Evaluation) -> Sequence[Any]:
        return _ANGLES(dataclasses.replace(e, inputs=[change(e), e.inputs[1]]))

    return meaning("rope_angles", evaluate)


_ANGLES = find_op("rope_angles").evaluate


def _in_a_table(e: Evaluation) -> Any:
    return e.inputs[0] % FAR


def _in_f16(e: Evaluation) -> Any:
    return e.inputs[0] if e.exact else e.inputs[0].astype(np.float16)


_LLAMA4 = SmallModel(LLAMA4)

BUGS = (
    Bug("rotation starts again", LOGITS, _angles(_in_a_table)),
    Bug("rotation starts again", LOGITS, _angles(_in_a_table), model=_LLAMA4),
    Bug("positions in f16", DTYPE, _angles(_in_f16)),
    Bug("positions in f16", DTYPE, _angles(_in_f16), model=_LLAMA4),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.name}, {bug.model.config.architecture}")
def test_bugs_of_far_positions_are_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    check_caught(bug, monkeypatch)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.name}, {bug.model.config.architecture}")
def test_near_positions_do_not_show_them(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.patch(monkeypatch)
    monkeypatch.setattr("llamac.transform.scenario.far_sequence", lambda *arguments: None)
    assert all(verdict.passed for verdict in bug.model.run())


def test_the_far_sequence_fills_the_page_it_repeats() -> None:
    far = make_scenario(61, PAGE, 3).far
    assert far is not None and far.start == FAR and len(far.block) == PAGE
    near = np.arange(12, dtype=np.int32).reshape(6, 2)
    table = far.page_table(near, cross=False)
    assert table.shape == (6, FAR // PAGE + 1)
    assert (table[PLACE, :-1] == 0).all() and table[PLACE, -1] == 1
    assert (np.delete(table, PLACE, axis=0) == -1).all()
    kept = far.page_table(near, cross=True)
    assert (kept[:, :2] == near).all() and (kept[:, 2:] == -1).all()


def test_every_verdict_of_rounding_says_where() -> None:
    against = [v.against for v in SmallModel(BASE).run() if v.after == "dtype mode"]
    assert against == ["the captured graph's rounding", f"the captured graph's rounding at {FAR}"]


def test_far_tokens_come_from_the_scenario() -> None:
    one, other = (far_sequence(61, PAGE, FAR, np.random.Generator(np.random.Philox(key=k))) for k in (1, 2))
    assert one != other and one == far_sequence(61, PAGE, FAR, np.random.Generator(np.random.Philox(key=1)))

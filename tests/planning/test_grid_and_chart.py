"""What-if tables and the drawn curves."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from subjects import request, subject

from llamac.errors import LlamacError
from llamac.passes.pipelines import Quantization
from llamac.planning.chart import chart, powers, round_steps
from llamac.planning.grid import Axes, cell_to_json, default_axes, plan_grid
from llamac.planning.machine import find_machine
from llamac.planning.plan import make_plan


def test_a_grid_is_the_plans_of_its_cells() -> None:
    model, machine = subject("llama-3.1-8b"), find_machine("h100")
    asked = request(model.config)
    axes = Axes((Quantization("int4"), Quantization("fp8")), (1, 2), (1024, 8192), (1, 4))
    rows = [cell_to_json(plan) for plan in plan_grid(model, axes, asked, machine)]
    assert len(rows) == axes.cells == 16
    assert [row["context"] for row in rows[:4]] == [1024, 1024, 8192, 8192]
    single = replace(asked, quantization=Quantization("fp8"), tp=2, context=8192, batch=4, prompt_tokens=8192)
    assert rows[-1] == cell_to_json(make_plan(model, single, machine))


def test_default_axes_hold_what_can_be() -> None:
    model = subject("llama-3.2-3b")  # 24 heads
    axes = default_axes(model.config, find_machine("h100"), request(model.config))
    assert axes.tps == (1, 2, 4, 8) and axes.contexts == (4096, 32768, 131072)
    cpu = default_axes(model.config, find_machine("x86-64-v3"), request(model.config))
    assert cpu.tps == (1,) and [str(q) for q in cpu.quantizations] == ["keep", "int8", "int4"]
    assert default_axes(subject("llama-2-7b").config, find_machine("h100"), request(model.config)).contexts == (4096,)


def test_a_grid_has_a_limit() -> None:
    model = subject("tiny")
    axes = Axes((Quantization(),), (1,), tuple(range(1, 5000)), (1,))
    with pytest.raises(LlamacError, match="LLC0109 --what-if: 4999 plans"):
        list(plan_grid(model, axes, request(model.config), find_machine("h100")))


@pytest.mark.parametrize("target", ["h100", "x86-64-v3"])
@pytest.mark.parametrize("name", ["tiny", "llama-3.1-405b", "llama-4-scout-instruct"])
def test_a_chart_is_one_well_formed_file(name: str, target: str) -> None:
    model = subject(name)
    text = chart(make_plan(model, request(model.config), find_machine(target)))
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "nan" not in text and "inf" not in text
    words = " ".join(element.text or "" for element in root.iter())
    assert name in words and "KV cache" in words and ("unknown" in words) == (target == "x86-64-v3")
    assert chart(make_plan(model, request(model.config), find_machine(target))) == text


def test_a_name_cannot_break_out_of_the_chart() -> None:
    model = replace(subject("tiny"), name='</text><script>alert("x")</script>')
    assert "<script" not in chart(make_plan(model, request(model.config), find_machine("h100")))


def test_ticks() -> None:
    assert round_steps(85.5e9) == [0, 2e10, 4e10, 6e10, 8e10]
    assert all(5 <= len(round_steps(top)) <= 11 for top in (0.3, 1, 4, 9.99, 12345, 2e12))
    assert powers(8192, 1024) == [1024, 2048, 4096, 8192] and powers(1) == [1]

"""The page of CPU speed is what its results say; plots are well-formed and small."""

from __future__ import annotations

import copy
import json
from typing import Any
from xml.etree import ElementTree

import pytest
from page import FOLDER, PAGE, RESULTS, TABLES, render
from plots import plots
from rows import GOALS, RECIPES, ROWS
from svg_chart import Chart, Series, draw

MOST_BYTES = 60_000


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_page_and_the_plots_belong_to_the_results(results: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, results) == page, "python bench/cpu/page.py writes it anew"
    for name, text in plots(results).items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name


def test_the_page_has_every_table_and_every_plot(results: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in TABLES:
        assert page.count(f"<!-- {name}, written by bench/cpu/page.py -->") == 1
    for name in plots(results):
        assert f"({name})" in page


def test_every_row_and_recipe_is_measured(results: dict[str, Any]) -> None:
    assert set(results["rows"]) == set(ROWS)
    assert set(results["quality"]) == set(RECIPES)


def test_goals_name_rows_and_points_that_exist() -> None:
    for goal in GOALS:
        if goal.row in ROWS:
            assert goal.point < len(ROWS[goal.row].points)
    assert {row.recipe for row in ROWS.values()} <= set(RECIPES)


def test_verdicts(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    speeds = changed["rows"]["1b-q4"]["points"][0]
    for value, verdict in ((2.19, "no"), (2.2, "yes"), (2.6, "stretch")):
        speeds["ratios"]["llama.cpp"]["prefill"] = [value - 0.1, value, value + 0.1]
        line = next(line for line in TABLES["goals"](changed) if "1b-q4 | prefill 512, times llama.cpp" in line)
        assert line.endswith(f"| {verdict} |"), line
    for own, verdict in ((0.99, "yes"), (1.01, "no")):
        changed["quality"]["default"]["engines"]["llamac"]["kl_mean"] = own
        changed["quality"]["q4_0"]["engines"]["llama.cpp"]["kl_mean"] = 1.0
        line = next(line for line in TABLES["goals"](changed) if "1b-default | KL" in line)
        assert line.endswith(f"| {verdict} |"), line
    for error, verdict in ((0.002, "no"), (0.01, "equal within its error")):
        changed["quality"]["q4_0"]["engines"]["llamac"]["kl_mean"] = 1.005
        changed["quality"]["q4_0"]["engines"]["llama.cpp"]["kl_excess"] = [0.005, error]
        line = next(line for line in TABLES["goals"](changed) if "1b-q4 | KL" in line)
        assert line.endswith(f"| {verdict} |"), line


def test_what_was_not_measured_says_so(results: dict[str, Any]) -> None:
    lines = list(TABLES["goals"]({"rows": {}, "quality": {}, "machine": results["machine"]}))
    assert sum("| not measured |  |" in line for line in lines) == len(GOALS)


def test_plots_are_small_and_well_formed(results: dict[str, Any]) -> None:
    for name, text in plots(results).items():
        assert len(text) < MOST_BYTES, name
        assert ElementTree.fromstring(text).tag.endswith("svg")


def test_sections_of_other_programs(results: dict[str, Any]) -> None:
    decode = {"context": 32768, "seconds": 0.05, "weight_bytes": 7e8, "kv_bytes": 1e9, "read_bytes_per_second": 5e10}
    steps = [{**decode, "context": 512, "ratio": 1.0}, {**decode, "ratio": 1.3}]
    model = {"prefill": [{"tokens": 512, "seconds": 2.0}], "decode": steps}
    held = {
        "import_ms": 100.0,
        "load_ms": 10.0,
        "load_to_first_token_ms": 900.0,
        "held_bytes": 110,
        "planned_bytes": 80,
    }
    guess = {"text": "story", "plain_tokens_per_second": 100, "tokens_per_second": 150}
    sections = {
        "context": {"models": {"1B, f16 cache": model}},
        "load": {"weights": {"map": held}},
        "speculation": {"lookup": [{**guess, "ratio": 1.5, "tokens_per_step": 2.0}], "draft": []},
    }
    lines = list(TABLES["goals"](results | sections))
    verdicts = {"at 32k context": "yes", "load to the first": "yes", "import of": "yes", "memory held": "no"}
    for words, verdict in verdicts.items():
        assert next(line for line in lines if words in line).endswith(f"| {verdict} |"), words
    assert any("| 32768 | 20.0 | 700 + 1000 | 50 | 1.30 |" in line for line in TABLES["context"](results | sections))
    assert any("| lookup | story | 100 | 150 | 1.50 | 2.00 |" in line for line in TABLES["speculation"](sections))
    assert ElementTree.fromstring(plots(results | sections)["cpu-context.svg"]).tag.endswith("svg")


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_inside_the_frame(log: bool) -> None:
    points = [(float(x), x**1.7, "<&>") for x in (1, 3, 10, 77, 512, 4096, 9000, 20000, 131072)]
    root = ElementTree.fromstring(draw(Chart("a & b", "x", "y", [Series("<s>", 0, points)], log_x=log, log_y=log)))
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    places = [(float(node.attrib["cx"]), float(node.attrib["cy"])) for node in circles]
    assert len(places) == len(points)
    assert all(64 <= x <= 696 and 64 <= y <= 348 for x, y in places)
    assert places == sorted(places, key=lambda place: (place[0], -place[1])), "larger values lie further right and up"

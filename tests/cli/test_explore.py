"""`llamac explore`: one page, complete, self-contained, and drawn by a real browser where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llamac.cli.main import main
from llamac.explore.layered import Box, place
from llamac.explore.page import page
from llamac.transform.pipeline import pipeline_text

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class _Elements(HTMLParser):
    """Start tags with their attributes, the text of scripts, and whether every element is closed."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explore") / "report.html"
    words = ["explore", "llama-3.2-1b", "--random-weights", "1", "--quantize", "int4", "-o", str(path)]
    assert main(words) == 0
    return path


@pytest.fixture(scope="module")
def data(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_parse(report).scripts[0])
    return found


def _parse(path: Path) -> _Elements:
    elements = _Elements()
    elements.feed(path.read_text("utf-8"))
    elements.close()
    assert elements.open == []
    return elements


def test_the_page_stands_alone(report: Path) -> None:
    assert report.stat().st_size < 3_000_000
    text = report.read_text("utf-8")
    elements = _parse(report)
    assert not [tag for tag, given in elements.tags if {"src", "href", "srcset", "action", "data"} & given.keys()]
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", text.replace("// ", ""))
    policy = next(
        given["content"] for _, given in elements.tags if given.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_pass_is_there_with_its_changes(data: dict[str, Any]) -> None:
    from llamac.passes.pipelines import cpu_pipeline, parse_quantization, plain_layers

    steps = cpu_pipeline(plain_layers(2), parse_quantization("int4"), "f16", 512)
    assert [step["text"] for step in data["steps"]] == ["captured", *(pipeline_text([step]) for step in steps)]
    assert all(step["purpose"] for step in data["steps"])
    levels = list(dict.fromkeys(step["level"] for step in data["steps"]))
    assert levels == ["captured", "raising", "model", "lowering", "kernel"]
    for before, after in zip(data["steps"][:-1], data["steps"][1:], strict=True):
        assert _patched(before["lines"], after) == after["lines"]


def _patched(old: list[int], step: dict[str, Any]) -> list[int]:
    """The lines after a step, from those before it and the changes that the page marks."""
    found, at = [], 0
    for a1, a2, b1, b2 in step["diff"]:
        found += old[at:a1] + step["lines"][b1:b2]
        at = a2
    return found + old[at:]


def test_a_line_changes_only_where_the_module_does(data: dict[str, Any]) -> None:
    """Values keep their numbers: fusing attention leaves the lines of the feed-forward part alone."""
    steps = {step["name"]: step for step in data["steps"]}
    changed = [i for a1, a2, b1, b2 in steps["fuse-gqa"]["diff"] for i in steps["fuse-gqa"]["lines"][b1:b2]]
    lines = [data["lines"][i] for i in changed]
    assert lines and not [line for line in lines if ".mlp" in line]
    assert sum("= attention " in line for line in lines) == 2


def test_counts_over_time(data: dict[str, Any]) -> None:
    first, last = data["steps"][0], data["steps"][-1]
    assert first["ops"] > 180 and last["ops"] < 35
    # bf16 weights become 4 bits, those of the embedding (which is the head too) 8, with an f16 scale for every 32.
    embedding, layers = 128256 * 2048, 2 * (2048 * (2048 + 2 * 512) + 2048 * 2048 + 3 * 2048 * 8192)
    assert first["weights"] == pytest.approx(2 * (embedding + layers), rel=1e-3)
    assert last["weights"] == pytest.approx(embedding * (1 + 1 / 16) + layers * (0.5 + 1 / 16), rel=1e-3)
    assert first["values"] > 3 * last["values"]
    steps = {step["name"]: step for step in data["steps"]}
    assert steps["fuse-gqa"]["counts"] == {"attention": 2}
    assert any("expected a weight" in why for _, why, _ in steps["raise-linear"]["refusals"])


def test_one_layer_is_drawn(data: dict[str, Any]) -> None:
    first, last = data["steps"][0]["graph"], next(s["graph"] for s in data["steps"][::-1] if s["graph"])
    labels = [node["label"] for node in last["nodes"]]
    assert (
        labels.count("linear_grouped") == 2
        and {"attend", "gated_linear_grouped", "qkv_grouped"} <= set(labels)
        and "%hidden" in labels
    )
    assert last["title"] == "@layer, called for 2 layers"
    assert len(first["nodes"]) > 60 and len(first["edges"]) > 60
    for graph in (first, last):
        boxes = [(n["x"], n["y"], n["x"] + n["w"], n["y"] + n["h"]) for n in graph["nodes"]]
        assert all(x >= 0 and right <= graph["width"] and bottom <= graph["height"] for x, _, right, bottom in boxes)
        assert not _overlapping(boxes)


def _overlapping(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def test_layered_drawing() -> None:
    boxes = [Box(40, 20)] * 5
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3), (3, 4)]
    placed = place(boxes, edges)
    tops = [y for _, y in placed.places]
    assert tops[0] < tops[1] == tops[2] < tops[3] < tops[4]
    for (a, b), path in zip(edges, placed.edges, strict=True):
        (x0, y0), (x1, y1) = placed.places[a], placed.places[b]
        assert path[:2] == pytest.approx((x0 + 20, y0 + 20), abs=1)
        assert path[-2:] == pytest.approx((x1 + 20, y1), abs=1)
    assert place([], []).edges == ()


def test_a_model_cannot_break_out_of_the_page() -> None:
    about = {"model": "</script><b>@SCRIPT@", "target": "cpu", "quantization": "keep", "layers": "", "cached": 1}
    text = page(about, [])
    assert "</script><b>" not in text and "&lt;/script&gt;&lt;b&gt;@SCRIPT@" in text
    assert text.count("</script>") == 2


def test_the_same_model_gives_the_same_page(report: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    assert main(["explore", "llama-3.2-1b", "--random-weights", "1", "--quantize", "int4", "-o", str(again)]) == 0
    assert again.read_bytes() == report.read_bytes()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tiny", "--random-weights", "1", "--layers", "0"], "LLC0101"),
        (["tiny", "--random-weights", "1", "--target", "znver9"], "LLC0603"),
        (["tiny", "--random-weights", "1", "--quantize", "int5"], "LLC0104"),
        (["tinny"], "LLC0309"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], code: str) -> None:
    assert main(["explore", *words, "-o", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.startswith(code) and not list(tmp_path.iterdir())


def _numbered(view: str) -> str:
    """The view with the number of its step, which starts at 1, for the name of a pass."""
    from llamac.passes.pipelines import cpu_pipeline, parse_quantization, plain_layers

    name, _, rest = view.partition("/")
    names = [step.run.name for step in cpu_pipeline(plain_layers(2), parse_quantization("int4"), "f16", 512)]
    return f"{names.index(name) + 1 if name in names else name}/{rest}"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(
    "view", ["fuse-gqa/changes", "fuse-gqa/changes/split", "0/ir", "plan-memory/graph", "2/why-not"]
)
def test_a_browser_draws_every_view(report: Path, tmp_path: Path, view: str) -> None:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, f"{report.as_uri()}#{_numbered(view)}"], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in done.stderr, done.stderr  # an error of the script
    drawn = done.stdout
    assert drawn.count('data-step="') >= 4 * 27 and 'class="current' in drawn
    expected = {
        "fuse-gqa/changes": '<span class="op">attention</span>',
        "fuse-gqa/changes/split": '<div class="side add">',
        "0/ir": '<span class="weight" data-name="@layers.1.mlp.down">',
        "plan-memory/graph": '<text class="label"',
        "2/why-not": "expected a weight, found reshape",
    }
    assert expected[view] in drawn

"""Launch plans: expressions, the choice of a bucket, the text form, and what the reader refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.artifact.launch_plan import (
    Bucket,
    Buffer,
    Encoder,
    Expression,
    Kernel,
    KernelParameter,
    Launch,
    LaunchPlan,
    Pointer,
    attention_tiles,
    evaluate,
)
from llamac.artifact.launch_plan_file import read_plan, write_plan
from llamac.errors import LlamacError

STEP = {"tokens": 37, "rows": 3, "sequences": 5, "table_width": 4, "pages.cache": 9}


def small_plan() -> LaunchPlan:
    """One kernel, launched in a decode and in a prefill bucket."""
    parameters = (KernelParameter("x_ptr", "*bf16"), KernelParameter("tokens", "i32"))
    kernel = Kernel(
        "k", "gpu/sm_90/k.cubin", "linear.decode_linear", parameters, {"N": 8, "EPS": 1e-5, "w": None}, 4, 0
    )
    fixed = Launch(0, (2, 1, 1), (Pointer("arena", 256), 4), "layers.0")
    free = Launch(0, (("ceil_div", "tokens", 16), 1, 1), (Pointer("cache", 0), "tokens"), "layers.0")
    buckets = (
        Bucket("decode-4", "decode", 4, 4, (fixed,), {"logits": (fixed,), "greedy": (fixed, fixed)}),
        Bucket("decode-32", "decode", 32, 32, (fixed,), {"logits": (), "greedy": ()}),
        Bucket("prefill-64", "prefill", 64, 64, (free,), {"logits": (free,), "greedy": ()}),
    )
    buffers = (
        Buffer("arena", "scratch", 1024),
        Buffer("cache", "cache", ("mul", ("add", "pages.cache", 1), 64), "bf16", page_bytes=64),
    )
    return LaunchPlan("h100", "cuda", "sm_90", "cubin", 32, "12.9", 100, 256, buffers, (kernel,), buckets)


def test_text_and_back() -> None:
    plan = small_plan()
    text = write_plan(plan)
    assert read_plan(text, "plan") == plan and write_plan(read_plan(text, "plan")) == text


def seeing_plan() -> LaunchPlan:
    """The small plan with an image encoder of one launch."""
    plan = small_plan()
    launch = Launch(0, ("vision_tokens", 2, 1), (Pointer("image.pixels", 0), "vision_tokens"), "vision.layers.0")
    pixels = Buffer("image.pixels", "image_input", 4096, "fp32")
    return replace(plan, buffers=(*plan.buffers, pixels), encoder=Encoder((launch,), 20, (0, 1, 2)))


def test_an_encoder_as_text_and_back() -> None:
    plan = seeing_plan()
    text = write_plan(plan)
    assert read_plan(text, "plan") == plan and b'"encoder"' not in write_plan(small_plan())
    for key, value in (("most_rows", 0), ("shapes", [-1]), ("shapes", [True]), ("launches", 3), ("launches", [[1]])):
        document = json.loads(text)
        document["encoder"][key] = value
        with pytest.raises(LlamacError, match=r"LLC0714.*encoder"):
            read_plan(json.dumps(document).encode(), "plan")


def test_pictures_take_a_bucket_that_places_them() -> None:
    assert small_plan().choose(1, 1, 1, pictures=True).name == "prefill-64"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (7, 7),
        ("tokens", 37),
        (("ceil_div", "tokens", 16), 3),
        (("min", "tokens", ("add", ("mul", "rows", 4), "sequences")), 17),
        (("max", 1, "pages.cache"), 9),
    ],
)
def test_expressions(expression: Expression, value: int) -> None:
    assert evaluate(expression, STEP) == value


@pytest.mark.parametrize("expression", ["batch", ("ceil_div", 1, 0), ("mul", 1 << 40, 1 << 40)])
def test_expressions_without_a_value(expression: Expression) -> None:
    with pytest.raises(LlamacError, match="LLC0714"):
        evaluate(expression, STEP)


@pytest.mark.parametrize(
    ("tokens", "rows", "longest", "name"),
    [
        (1, 1, 1, "decode-4"),
        (4, 0, 3, "decode-4"),
        (5, 5, 1, "decode-32"),
        (17, 1, 17, "prefill-64"),
        (33, 33, 1, "prefill-64"),
    ],
)
def test_choice_of_a_bucket(tokens: int, rows: int, longest: int, name: str) -> None:
    assert small_plan().choose(tokens, rows, longest).name == name


def test_a_step_that_is_too_large() -> None:
    with pytest.raises(LlamacError, match="LLC0715"):
        small_plan().choose(65, 1, 65)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=6), st.integers(1, 20))
def test_attention_tiles(runs: list[tuple[int, int]], most: int) -> None:
    """Every token is in one tile, tiles hold one sequence, and there are no more of them than grids are made for."""
    sequences = [sequence for count, sequence in runs for _ in range(count)]
    tiles = attention_tiles(sequences, most)
    assert [t for first, count in tiles for t in range(first, first + count)] == list(range(len(sequences)))
    assert all(count <= most and len(set(sequences[first : first + count])) == 1 for first, count in tiles)
    assert len(tiles) <= -(-len(sequences) // most) + len(runs)


def changed(*path: Any, to: Any) -> bytes:
    """The text of the small plan with one value replaced."""
    document = json.loads(write_plan(small_plan()))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(document).encode()


LAUNCH = ("buckets", 0, "launches", 0)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("version",), 2, "must say"),
        (("kind",), "metal", "is unknown"),
        (("warp",), 0, "must be an integer in 1..128"),
        (("vocab",), True, "must be an integer"),
        (("buffers", 0, "role"), "stack", "is unknown"),
        (("buffers", 1, "name"), "arena", "two buffers of one name"),
        (("buffers", 1, "bytes"), ["mul", "pages.other", 1], "unknown variable"),
        (("buffers", 0, "bytes"), -1, "is negative"),
        (("kernels", 0, "parameters", 0), ["x_ptr", "f64"], "neither i32 nor a pointer"),
        (("kernels", 0, "dependent_launch"), 1, "must be true or false"),
        (("buckets", 0, "kind"), "train", "must be of a kind"),
        (("buckets", 0, "tails"), {"logits": []}, "end in"),
        ((*LAUNCH, 0), 1, "names a kernel that is not there"),
        ((*LAUNCH, 1), [1, 1], "must have three sizes"),
        ((*LAUNCH, 1, 0), 0, "is no number of blocks"),
        ((*LAUNCH, 1, 0), ["div", "tokens", 2], "is no expression"),
        ((*LAUNCH, 2), [{"arena": 0}], "must have 2 arguments"),
        ((*LAUNCH, 2, 0), 5, "does not fit a parameter"),
        ((*LAUNCH, 2, 0), {"arena": 1024}, "points outside of arena"),
        ((*LAUNCH, 2, 0), {"heap": 0}, "which is no buffer"),
        ((*LAUNCH, 2, 1), 1 << 31, "does not fit 32 bits"),
        ((*LAUNCH, 2, 1), 1.5, "is no expression"),
    ],
)
def test_what_the_reader_refuses(path: tuple[Any, ...], value: Any, reason: str) -> None:
    with pytest.raises(LlamacError, match="LLC0714") as refused:
        read_plan(changed(*path, to=value), "gpu/h100.json")
    assert reason in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[]", b'{"a": 1, "a": 2}', b'{"warp": NaN}', b"[" * 100_000])
def test_text_that_is_no_plan(data: bytes) -> None:
    with pytest.raises(LlamacError, match="LLC0714"):
        read_plan(data, "gpu/h100.json")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_text_is_read_or_refused(data: st.DataObject) -> None:
    """Cut, and with bytes replaced: a plan, or one coded error."""
    text = bytearray(write_plan(small_plan()))
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_plan(bytes(text[: data.draw(st.integers(0, len(text)))]), "plan")
    except LlamacError as error:
        assert error.code == "LLC0714"

"""Prefill and decode steps of whole models as the driver sees them: every launch, its parameters, order and bytes."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from gpu_stub_library import Stub
from planned_models import Planned, Tiny, planned
from planned_runs import PlannedRun, prompt, running

from llamac.artifact.launch_plan import Bucket, Pointer, evaluate
from llamac.models.sources import open_source
from llamac.runtime.session import Feed

PARAMETERS_OF_1B = 1_235_814_400
"""Of Llama 3.2 1B, whose table of embeddings is its head."""

WITHIN = 0.03
"""How far the bytes of a decode step may be above the least possible."""


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("kernel", "number", "grid", "block", "shared", "dependent", "cooperative", "parameters")
    return [{key: row[key] for key in keys} for row in rows]


def check_step(run: PlannedRun, bucket: Bucket, result: str, tokens: int, rows: int, sequences: int) -> None:
    """The launches since the log was cleared are those of the plan, no more, no fewer, and nothing in between."""
    launches = bucket.steps(result) if result != "none" else bucket.launches
    expected = run.expected(bucket, launches, run.sizes(bucket, tokens, rows, sequences))
    assert shown(run.launches()) == expected
    calls = [row["call"] for row in run.stub.log()]
    first, last = calls.index("launch"), len(calls) - calls[::-1].index("launch")
    assert set(calls[first:last]) == {"launch"}, "the host did something between two launches of a step"


def whole_steps(run: PlannedRun) -> None:
    """A prefill, a step of several sequences, decode steps: each as the plan says."""
    session, plan = run.session, run.plan
    first, second = session.open(), session.open()
    run.stub.clear()
    session.step([Feed(first, prompt(19))])
    check_step(run, plan.choose(19, 1, 19), "logits", 19, 1, 2)
    run.stub.clear()
    session.step([Feed(first, [1]), Feed(second, prompt(18), "none")])
    check_step(run, plan.choose(19, 1, 18), "logits", 19, 1, 3)
    for result, count in (("logits", 1), ("none", 1), ("logits", 2)):
        run.stub.clear()
        session.step([Feed(s, [3], "none" if result == "none" else "last") for s in (first, second)[:count]])
        bucket = plan.choose(count, count, 1)
        assert bucket.is_replayed
        if run.stub.log("begin_capture"):
            check_step(run, bucket, result, count, count, count + 1)
        calls = [row["call"] for row in run.stub.log() if row["call"] not in CAPTURE]
        wait = ["copy_out", "finish"] if result == "logits" else []
        assert calls == ["finish_event", "copy_in", "replay", *wait]


CAPTURE = ("begin_capture", "launch", "instantiate")


@pytest.mark.parametrize(
    ("dtype", "quantize", "kv", "experts"),
    [
        ("bf16", "keep", "bf16", 0),
        ("bf16", "int4:g64:asym", "bf16", 0),
        ("bf16", "fp8", "fp8", 0),
        ("f32", "keep", "f32", 4),
    ],
)
def test_every_launch_is_the_plans(
    cuda: Stub, monkeypatch: pytest.MonkeyPatch, dtype: str, quantize: str, kv: str, experts: int
) -> None:
    cuda.be("sm_90")
    model = planned(Tiny(dtype, experts=experts).config(), "sm_90", quantize, kv=kv)
    with running(cuda, model, monkeypatch, context=256, sequences=2) as run:
        whole_steps(run)


def launches_of_layers(model: Planned, bucket: Bucket) -> collections.Counter[str]:
    return collections.Counter(
        ".".join(launch.where.split(".")[:2]) for launch in bucket.launches if launch.where.startswith("layers.")
    )


def test_launches_of_a_layer() -> None:
    """A dense layer decodes in five, one with experts in nine."""
    for experts, most in ((0, {5}), (4, {5, 9})):
        model = planned(Tiny("bf16", experts=experts).config(), "sm_90", kv="bf16")
        counts = launches_of_layers(model, model.plan.choose(1, 1, 1))
        assert len(counts) == 2 and set(counts.values()) <= most, counts


def weight_sections(run: PlannedRun) -> dict[int, int]:
    """Address of each part of the weights that any launch points to -> its bytes, up to the next part."""
    (weights,) = (b for b in run.plan.buffers if b.role == "weights")
    starts = {
        a.offset
        for _, launch in run.plan.all_launches()
        for a in launch.arguments
        if isinstance(a, Pointer) and a.buffer == weights.name
    }
    ends = [*sorted(starts)[1:], evaluate(weights.bytes, {})]
    base = run.device._memory.base[weights.name]
    return {base + start: end - start for start, end in zip(sorted(starts), ends, strict=True)}


def moved_bytes(run: PlannedRun, context: int) -> int:
    """What the launches of a one-token step read and write in memory.

    Every part of the weights that a launch points to is read once, but for the table of embeddings, of which it is one
    row. Each attention reads its layer's keys and values. Scratch and outputs are counted as written and read once.
    """
    sections, moved = weight_sections(run), 0
    (cache,) = run.plan.caches()
    layers = len(launches_of_layers(run.model, run.plan.choose(1, 1, 1)))
    for row in run.launches():
        kernel = run.plan.kernels[row["number"]]
        if kernel.source == "embed.embed_rows":
            moved += 2 * int(kernel.constants["K"] or 0)
            continue
        moved += sum(sections.get(address, 0) for address in row["parameters"])
        if kernel.source == "attention.decode_attention":
            moved += cache.page_bytes // run.plan.page_tokens * context // layers
    return moved + 2 * run.device.needs.output_bytes // max(b.rows for b in run.plan.buckets)


@pytest.mark.parametrize(
    ("preset", "quantize", "kv", "architecture"),
    [
        ("llama-3.2-1b", "keep", "bf16", "sm_90"),
        ("llama-3.2-1b", "keep", "bf16", "sm_80"),
        ("llama-3.1-8b", "int4:g128", "bf16", "sm_90"),
        ("llama-3.1-8b", "fp8", "fp8", "sm_90"),
    ],
)
def test_a_decode_step_moves_little_more_than_it_must(
    cuda: Stub, monkeypatch: pytest.MonkeyPatch, preset: str, quantize: str, kv: str, architecture: str
) -> None:
    """At least: each weight once, but of a table of embeddings that is not the head one row; keys and values once."""
    context = 1024
    source = open_source(preset, random_weights=0)
    model = planned(source, architecture, quantize, kv=kv, max_tokens=512, units=132)
    cuda.be(architecture)
    with running(cuda, model, monkeypatch, context=2048) as run:
        sequence = run.session.open()
        cuda.clear()
        run.session.step([Feed(sequence, [1])])
        rows = run.launches()
        (cache,) = run.plan.caches()
        least = least_weight_bytes(model) + context * cache.page_bytes // run.plan.page_tokens
        moved = moved_bytes(run, context)
        assert least <= moved < (1 + WITHIN) * least, f"{moved} bytes, {least} at least: {moved / least:.4f}"
        assert len(rows) <= source.config.layers * 5 + 4
        check_grids(run, rows)
    if preset == "llama-3.2-1b":
        assert least_weight_bytes(model) == pytest.approx(PARAMETERS_OF_1B * 2, rel=1e-3)


def least_weight_bytes(model: Planned) -> int:
    """All weights as they are stored, but for the table of embeddings where the head is another."""
    tied = model.checkpoint.config.tied_head
    return sum(w.nbytes for w in model.compiled.placed if tied or not w.weight.name.startswith("embed"))


def check_grids(run: PlannedRun, rows: list[dict[str, Any]]) -> None:
    """No part of a matrix is read by two blocks: the blocks of each product cover its rows once."""
    for row in rows:
        kernel = run.plan.kernels[row["number"]]
        if kernel.source == "linear.decode_linear":
            x, y, _ = row["grid"]
            c = kernel.constants
            assert isinstance(c["N"], int) and isinstance(c["BN"], int)
            assert (x, y) == (-(-c["N"] // c["BN"]), c["SPLITS"]), kernel.source

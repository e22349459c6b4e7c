"""Whole plans: published totals, what fits, floors, and what several devices share."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from subjects import request, subject

from llamac.errors import LlamacError
from llamac.models.presets import preset_names
from llamac.passes.pipelines import parse_quantization
from llamac.planning.formats import ROWS16
from llamac.planning.machine import Machine, find_machine, floor_of
from llamac.planning.plan import Plan, make_plan
from llamac.planning.weights import active_fraction, active_parameters, parameters_by_role, read_bytes
from llamac.planning.work import Work
from llamac.target import GPUS

SMALL = Machine("small", "cuda", "a test's", 10**9, 1e9, {"bf16": 1e12, "fp8": 2e12, "f32": 1e11}, 1e8, layout=ROWS16)


def plan(name: str, target: str, scheme: str = "keep", **changes: object) -> Plan:
    found = subject(name)
    return make_plan(
        found, request(found.config, quantization=parse_quantization(scheme), **changes), find_machine(target)
    )


@pytest.mark.parametrize("name", preset_names())
def test_parameters_are_those_of_the_config(name: str) -> None:
    config = subject(name).config
    by_role = parameters_by_role(config, {})
    assert sum(count for role, count in by_role.items() if role != "vision") == config.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.2-11b-vision", 10.64),
        ("llama-3.2-11b-vision-instruct", 10.67),
        ("llama-3.2-90b-vision", 88.59),
        ("llama-4-scout", 108.64),
        ("llama-4-maverick", 401.58),
        ("llama-guard-4-12b", 12.0),
    ],
)
def test_parameters_with_the_image_encoder(name: str, billions: float) -> None:
    """Model cards say 10.6B, 88.8B, 109B, 400B and 12B."""
    assert sum(parameters_by_role(subject(name).config, {}).values()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick"])
def test_active_parameters(name: str) -> None:
    assert active_parameters(subject(name).config, {}) / 1e9 == pytest.approx(17.2, abs=0.05)


def test_expected_experts() -> None:
    scout = subject("llama-4-scout").config
    assert active_fraction(scout, 1) == pytest.approx(1 / 16)
    assert active_fraction(scout, 2) == pytest.approx(1 - (15 / 16) ** 2)
    assert active_fraction(scout, 10000) == pytest.approx(1.0)
    one, many = (plan("llama-4-scout", "h200", batch=n) for n in (1, 64))
    assert one.decode.work.weight_bytes < many.decode.work.weight_bytes < many.memory.weights
    # Operations follow the experts of each token, not those that are read.
    assert many.decode.work.total_operations == pytest.approx(64 * one.decode.work.total_operations)


def test_405b_in_fp8_on_eight_h100() -> None:
    found = plan("llama-3.1-405b", "h100", "fp8", tp=8, context=131072)
    table = 128256 * 16384 * 2  # in bf16; the embedding is on every device, the head is divided
    assert found.memory.weights == pytest.approx((405.853e9 - table + table) / 8 + table, rel=0.01)
    seen = 131072 * 516096 // 8
    assert found.memory.kv == seen + 256 * 516096 // 8, "with the page of padding rows"
    assert found.memory.free is not None and found.memory.free > 0 and found.largest_context == 131072
    assert found.decode.floor.bound == "memory" and found.prefill.floor.bound == "compute"
    read = seen + read_bytes(found.parts, found.subject.config, ROWS16, 1)
    assert found.decode.floor.seconds == pytest.approx(read / 3.352e12, rel=1e-4)
    whole = plan("llama-3.1-405b", "h100", "fp8")
    assert whole.memory.free is not None and whole.memory.free < 0
    assert (whole.largest_context, whole.largest_batch) == (0, 0)


def test_known_floors() -> None:
    """Weights of Llama 3.2 1B in bf16 over the bandwidth of an H200: 0.52 ms at its nominal rate."""
    found = plan("llama-3.2-1b", "h200", context=1, prompt_tokens=1)
    assert found.decode.floor.seconds == pytest.approx(2 * 1.2358e9 / 4.8e12, rel=0.01)


def test_the_largest_context_and_batch_are_exact() -> None:
    found = subject("llama-3.2-1b")
    machine = replace(SMALL, memory_bytes=4 * 10**9)
    asked = request(found.config, context=2048)
    limits = make_plan(found, asked, machine)
    for name in ("context", "batch"):
        most = getattr(limits, f"largest_{name}")
        fits = [make_plan(found, replace(asked, **{name: most + n}), machine, limits=False).memory.free for n in (0, 1)]
        assert fits[0] is not None and fits[1] is not None and fits[0] >= 0 > fits[1]


def test_devices_share_the_weights() -> None:
    one, eight = (plan("llama-3.1-70b", "h100", "int4", tp=n) for n in (1, 8))
    table = next(part for part in one.parts if part.role == "embedding").bytes(ROWS16)
    assert 8 * (eight.memory.weights - table) == pytest.approx(one.memory.weights - table, rel=2e-3)
    assert 8 * eight.memory.kv == one.memory.kv
    assert one.decode.work.exchanged_bytes == 0 < eight.decode.work.exchanged_bytes
    assert 8 * eight.decode.work.total_operations == pytest.approx(one.decode.work.total_operations)
    sixteen = plan("llama-3.1-405b", "h100", tp=16)
    assert sixteen.memory.kv == plan("llama-3.1-405b", "h100", tp=8).memory.kv


def test_a_prefill_counts_every_pair_once() -> None:
    dense, chunked = plan("llama-3.1-8b", "h100", context=16384), plan("llama-4-scout", "b200", context=16384)
    attention = dense.prefill.work.total_operations - 16384 * (
        plan("llama-3.1-8b", "h100", context=1, prompt_tokens=1).decode.work.total_operations
        - 4 * 32 * 128 * 32
        - 2 * 128256 * 4096
    )
    assert attention - 2 * 128256 * 4096 == pytest.approx(32 * 4 * 32 * 128 * 16384 * 16385 / 2)
    pairs = 12 * 16384 * 16385 / 2 + 36 * 2 * 8192 * 8193 / 2
    step = plan("llama-4-scout", "b200", context=1, prompt_tokens=1)
    products = step.decode.work.total_operations - 4 * 40 * 128 * 48 - 2 * 202048 * 5120
    expected = 16384 * products + 2 * 202048 * 5120 + 4 * 40 * 128 * pairs
    assert chunked.prefill.work.total_operations == pytest.approx(expected)


def test_floors() -> None:
    work = Work({"bf16": 1e12, "fp8": 2e12}, weight_bytes=1e9, cache_bytes=5e8, exchanged_bytes=1e8)
    floor = floor_of(work, SMALL)
    assert dict(floor.by_bound) == {"memory": 1.5, "compute": 2.0, "link": 1.0}
    assert (floor.seconds, floor.bound) == (2.0, "compute")
    without = replace(SMALL, peaks={"bf16": 1e12})
    assert floor_of(work, without).by_bound["compute"] == 3.0
    assert floor_of(work, replace(SMALL, peaks={})).bound == "memory"
    unknown = floor_of(work, replace(SMALL, peaks={}, bandwidth=None, link_bandwidth=None))
    assert (unknown.seconds, unknown.bound) == (None, "unknown")


def test_what_is_unknown_is_not_guessed() -> None:
    found = plan("llama-3.1-8b", "aarch64", "int4")
    assert found.memory.device is None and found.memory.free is None
    assert (found.largest_context, found.decode.floor.seconds, found.decode.tokens_per_second) == (None, None, None)


@pytest.mark.parametrize("name", [*GPUS, "cpu"])
def test_every_machine_can_be_planned_for(name: str) -> None:
    found = plan("llama-3.2-1b", name, "int4")
    assert found.memory.total > 0
    if name != "cpu":
        assert found.decode.floor.bound == "memory" and found.decode.floor.seconds


@pytest.mark.parametrize("name", ["llama-3.1-405b", "llama-4-maverick-instruct", "llama-3.2-90b-vision"])
@pytest.mark.parametrize("target", ["x86-64-v4", "mi300x"])
def test_large_presets_are_planned_in_less_than_a_second(name: str, target: str) -> None:
    started = time.process_time()
    plan(name, target, "int4", context=131072)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 0}, "--context: 0 is outside 1..131072"),
        ({"batch": 0}, "--batch: 0 is outside 1..512"),
        ({"batch": 513}, "the rows of one step"),
        ({"tp": 3}, "64 attention heads cannot be shared by 3 devices"),
        ({"tp": 0}, "--tp: 0 is outside"),
        ({"prompt_tokens": 5000}, "--prompt-tokens: 5000 is outside 1..4096"),
        ({"kv_dtype": "f8"}, "unknown cache type 'f8' (did you mean 'fp8'?)"),
        ({"images": 1}, "keeps no images"),
        ({"images": -1}, "--images: -1 is outside"),
        ({"max_step_tokens": 0}, "--max-step-tokens: 0 is outside"),
    ],
)
def test_refusals(changes: dict[str, object], words: str) -> None:
    found = subject("llama-3.1-70b")
    with pytest.raises(LlamacError) as caught:
        make_plan(found, replace(request(found.config), **changes), find_machine("h100"))  # type: ignore[arg-type]
    assert caught.value.code == "LLC0109" and words in str(caught.value)


def test_only_gpus_share_a_model() -> None:
    with pytest.raises(LlamacError, match="LLC0109 --tp: x86-64-v3 is one device"):
        plan("llama-3.1-8b", "x86-64-v3", tp=2)
    with pytest.raises(LlamacError, match=r"LLC0603 h10: unknown target \(did you mean 'h100'"):
        find_machine("h10")

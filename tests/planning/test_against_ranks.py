"""What a plan says of several devices is what compiling for them allots, to the byte."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llamac.analysis.weight_plan import member_bytes
from llamac.cli.main import main
from llamac.driver import compile_graph
from llamac.gpu_side import ALIGNMENT, arena_on
from llamac.ir.kv_groups import kv_groups
from llamac.models.llama.config import LlamaConfig
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import Share, parse_quantization
from llamac.planning.machine import find_machine
from llamac.planning.plan import Subject, make_plan
from llamac.planning.request import Request

DENSE = LlamaConfig(
    name="tiny", hidden_size=256, intermediate_size=512, layers=3, heads=8, kv_heads=2, head_dim=64, vocab_size=516,
    rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, context_length=4096, tied_head=False, dtype="bf16",
    rope_style="half_split",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["keep", "fp8", "int4"])
@pytest.mark.parametrize(
    ("config", "ranks"),
    [(DENSE, 2), (DENSE, 4), (replace(DENSE, tied_head=True), 2), (replace(DENSE, vocab_size=517), 2)],
    ids=["2", "4, shared kv heads", "tied", "whole head"],
)
def test_plan_and_compiler_agree(config: LlamaConfig, ranks: int, scheme: str) -> None:
    """Weights and a page of the cache of every rank, and the arena of the first, which is the largest."""
    quantization = parse_quantization(scheme)
    subject, machine = Subject(config.name, config, {}), find_machine("h100")
    plan = make_plan(subject, Request(quantization, "f16", 1024, 1, ranks, 0, 16, 64), machine, limits=False)
    assert plan.memory.estimated.keys() == {"code"}
    for rank in (0, ranks - 1):
        checkpoint = random_checkpoint(config, 0)
        graph = compile_graph(checkpoint, quantization, "f16", 16, 1024, [], kind="gpu", share=Share(ranks, rank))
        assert member_bytes(graph.placed, ALIGNMENT) == plan.memory.weights
        assert [g.type.page_bytes for g in kv_groups(graph.module.step)] == [g.page_bytes for g in plan.groups]
        arena = arena_on(graph, "h100")  # only the first rank holds residuals across a product
        assert arena == plan.memory.arena if rank == 0 else arena <= plan.memory.arena


def test_eight_of_them_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """`h100:8` is `h100 --tp 8`."""
    words = ["plan", "llama-3.1-70b", "--quantize", "fp8", "--context", "4096", "--json"]
    plans = []
    for target in (["h100:8"], ["h100", "--tp", "8"]):
        assert main([*words, "--target", *target]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1] and plans[0]["request"]["tp"] == 8
    assert main([*words, "--target", "h100:8", "--tp", "2"]) == 2
    assert "LLC0109" in capsys.readouterr().err

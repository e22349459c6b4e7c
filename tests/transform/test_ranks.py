"""Divided models: all ranks together compute what the whole model does, and a mistake in dividing it is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from llamac.errors import LlamacError
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.layer_kinds import is_uniform, layer_counts
from llamac.models.graph import build_graph
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.llama.shrink import SyntheticWeights, small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import Share, parse_quantization, target_pipeline
from llamac.passes.shard_tensors import ShardTensors
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pipeline import Step, run_pipeline
from llamac.transform.rank_validation import validate_ranks
from llamac.transform.scenario import make_scenario
from llamac.transform.validation import Verdict

PAGE = 8


def config(heads: int = 8, kv_heads: int = 4, vocab: int = 64, experts: int = 0, tied: bool = False) -> LlamaConfig:
    """A small model that 2 or 4 ranks can share; with experts a Llama 4."""
    moe = MixtureOfExperts(experts, 2, 64, (1,)) if experts else None
    return LlamaConfig(
        name="small", hidden_size=48, intermediate_size=128, layers=2, heads=heads, kv_heads=kv_heads, head_dim=16,
        vocab_size=vocab, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, context_length=8192, tied_head=tied,
        dtype="f32", moe=moe, attention=AttentionPattern((1,), 12, True, 5.0, 0.1) if experts else None,
        rope_style="interleaved" if experts else "half_split", architecture="llama4" if experts else "llama",
    )  # fmt: skip


def validated(
    small: LlamaConfig, ranks: int, scheme: str, kind: str = "cpu", edit: Callable[[Step], Step] = lambda step: step
) -> list[Verdict]:
    """The verdicts of all passes from `shard-tensors` on."""
    encodings = dict.fromkeys(expected_shapes(small), small.dtype)
    return _validated(small, encodings, ranks, scheme, kind, edit)


def _validated(
    small: LlamaConfig, encodings: dict[str, str], ranks: int, scheme: str, kind: str, edit: Callable[[Step], Step]
) -> list[Verdict]:
    tensors, q = small_tensors(small, encodings), parse_quantization(scheme)
    counts, uniform = layer_counts(small), is_uniform(small, tensors)
    pipelines = [
        [edit(s) for s in target_pipeline(kind, counts, q, "f32", 64, uniform, PAGE, Share(ranks, rank))]
        for rank in range(ranks)
    ]
    modules = [build_graph(small, tensors) for _ in range(ranks)]
    scenario = dataclasses.replace(make_scenario(small.vocab_size, PAGE, 7), far=None)
    return validate_ranks(modules, pipelines, SyntheticWeights(tensors, 7).read_rows, scenario)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("small", "ranks", "scheme"),
    [
        (config(), 2, "f32"),
        (config(), 4, "int4"),
        (config(kv_heads=2), 4, "f32"),
        (config(vocab=61, tied=True), 2, "int8"),
        (config(), 2, "fp8"),
        (config(tied=True), 2, "int4:asym"),
        (config(experts=4), 2, "f32"),
        (config(experts=4), 2, "int4"),
    ],
    ids=["f32", "4 ranks", "shared kv heads", "whole head", "fp8", "tied", "experts", "experts in int4"],
)
def test_ranks_compute_the_whole_model(small: LlamaConfig, ranks: int, scheme: str, kind: str) -> None:
    """After every pass from the division on, on every rank, to rounding in f64."""
    verdicts = validated(small, ranks, scheme, kind)
    assert verdicts[0].after == "shard-tensors" and len(verdicts) >= 6
    assert all(v.passed for v in verdicts)


class Seeded(Pass):
    """A pass that runs another one and then spoils what it did."""

    name = "shard-tensors"
    requires = ShardTensors.requires

    def __init__(self, whole: ShardTensors, spoil: Callable[[Module, int], None]) -> None:
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_spoil", spoil)

    def run(self, module: Module, context: PassContext) -> PassResult:
        whole: ShardTensors = self.__dict__["_whole"]
        result = whole.run(module, context)
        self.__dict__["_spoil"](module, whole.rank)
        return result

    def options(self) -> dict[str, object]:
        return {}


def parts(module: Module, text: str) -> list[str]:
    return [name for name in module.weights if text in name and name.endswith("part")]


def other_heads(module: Module, rank: int) -> None:
    """Rank 1 takes the query heads of rank 0."""
    for name in parts(module, "attn.q") if rank else []:
        producer = module.weights[name].producer
        assert producer is not None
        producer.attributes |= {"start": 0, "stop": producer.attributes["stop"] // 2}


def shifted_columns(module: Module, rank: int) -> None:
    """The parts of o overlap by one column."""
    for name in parts(module, "attn.o") if rank else []:
        producer = module.weights[name].producer
        assert producer is not None
        producer.attributes |= {k: producer.attributes[k] - 1 for k in ("start", "stop")}


def forgotten_sum(module: Module, rank: int) -> None:
    """A product is used before it is summed."""
    reduced = next(op for op in module.step.ops if op.opcode == "all_reduce")
    module.step.replace(reduced.result, reduced.operands[0])
    module.step.remove_dead_ops()


def sum_on_one_rank(module: Module, rank: int) -> None:
    """Rank 1 does not come to a sum that rank 0 waits at."""
    if rank:
        forgotten_sum(module, rank)


def swapped_experts(module: Module, rank: int) -> None:
    """Up of the experts is taken from the wrong half, gate is not."""
    for name in [n for n in module.weights if ".moe.up.part." in n]:
        producer = module.weights[name].producer
        assert producer is not None
        start, stop = producer.attributes["start"], producer.attributes["stop"]
        assert isinstance(start, int) and isinstance(stop, int)
        move = (stop - start) * (1 if rank == 0 else -1)
        producer.attributes |= {"start": start + move, "stop": stop + move}


def turned_head(module: Module, rank: int) -> None:
    """Each rank has the columns of the logits that the other should have."""
    for name in parts(module, "head"):
        producer = module.weights[name].producer
        assert producer is not None
        half = producer.attributes["stop"] - producer.attributes["start"]
        producer.attributes |= {"start": (1 - rank) * half, "stop": (2 - rank) * half}


def added_twice(module: Module, rank: int) -> None:
    """The shared expert is summed, and then once more with the others."""
    reduced = next(op for op in module.step.ops if op.opcode == "all_reduce")
    made = type(reduced)("all_reduce", (reduced.result,), dict(reduced.attributes), [reduced.result.type], "")
    module.step.replace(reduced.result, made.result)
    made.set_operand(0, reduced.result)
    module.step.ops.insert(module.step.ops.index(reduced) + 1, made)


SPOILERS = [other_heads, shifted_columns, forgotten_sum, sum_on_one_rank, swapped_experts, turned_head, added_twice]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda s: s.__name__)
def test_seeded_bugs_are_found(spoil: Callable[[Module, int], None]) -> None:
    """Each mistake is blamed on the pass that divides."""

    def edit(step: Step) -> Step:
        return Step(Seeded(step.run, spoil)) if isinstance(step.run, ShardTensors) else step

    experts = 4 if spoil is swapped_experts else 0
    with pytest.raises(LlamacError) as found:
        validated(config(experts=experts), 2, "f32", edit=edit)
    assert found.value.code in ("LLC0507", "LLC0406"), str(found.value)


@pytest.mark.parametrize(
    ("small", "ranks", "scheme", "words"),
    [
        (config(heads=6, kv_heads=2), 4, "f32", "6 query heads"),
        (config(heads=6, kv_heads=3), 2, "f32", "3 key heads"),
        (dataclasses.replace(config(), intermediate_size=130), 4, "f32", "130 columns of gate and up"),
        (dataclasses.replace(config(), intermediate_size=96), 2, "int4:g64", "a group of 64 columns"),
    ],
    ids=["heads", "kv heads", "mlp", "groups"],
)
def test_what_cannot_be_divided(small: LlamaConfig, ranks: int, scheme: str, words: str) -> None:
    """Refused with the numbers, before anything is compiled."""
    with pytest.raises(LlamacError) as found:
        validated(small, ranks, scheme)
    assert found.value.code == "LLC0616" and words in found.value.reason and "fewer" in found.value.hint


def test_one_rank_alone_has_no_meaning() -> None:
    """A rank's module is refused by an interpreter that has no others."""
    small = config()
    tensors = small_tensors(small, dict.fromkeys(expected_shapes(small), "f32"))
    module = build_graph(small, tensors)
    q = parse_quantization("f32")
    steps = target_pipeline("cpu", layer_counts(small), q, "f32", 64, True, PAGE, Share(2, 1))
    weights = SyntheticWeights(tensors, 7)
    run_pipeline(
        module, steps[: [s.run.name for s in steps].index("shard-tensors") + 1], PassContext(weights.read_rows)
    )
    past = {a.name: [[[]]] for a in module.step.arguments if a.name.startswith("past")}
    import numpy as np

    given = {name: np.zeros((2, 0, 16)) for name in past}
    with pytest.raises(Exception, match="with all ranks only"):
        Interpreter(module, weights.read_rows).run({"ids": [1], "positions": [0], **given})

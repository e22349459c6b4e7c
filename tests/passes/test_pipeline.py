"""The whole CPU pipeline on small Llamas: each pass keeps what the model computes, and does as much as it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llamas import (
    LLAMA3,
    SmallLlama,
    config,
    difference,
    is_ragged,
    logits,
    ragged_logits,
    sequence_logits,
    tokens_of,
)

from llamac.analysis.memory import arena_bytes
from llamac.errors import LlamacError
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify
from llamac.passes.pipelines import Quantization, cpu_pipeline, parse_quantization, plain_layers, raise_and_fuse
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.matrices import matrices
from llamac.transform.pipeline import Step, parse_pipeline, pipeline_text, run_pass, run_pipeline

EXACT = 1e-10
ROUNDED_FREQUENCIES = 2e-5
"""fold-constants rounds the inverse frequencies to f32, as every reference does; exact mode does not before it."""

LLAMAS: dict[str, SmallLlama] = {
    "mha-f32": SmallLlama(config(kv_heads=4)),
    "gqa3-bf16-h80": SmallLlama(config(heads=3, kv_heads=1, head_dim=80, dtype="bf16", hidden_size=40)),
    "gqa4-tied-llama3": SmallLlama(config(heads=4, kv_heads=1, tied_head=True, rope_scaling=LLAMA3)),
    "gqa8-h64-f16": SmallLlama(config(heads=8, kv_heads=1, head_dim=64, dtype="f16", layers=1)),
    "interleaved-bf16-tied": SmallLlama(config(rope_style="interleaved", dtype="bf16", tied_head=True, layers=3)),
    "q4_0": SmallLlama(config(hidden_size=64, intermediate_size=96, rope_style="interleaved"), {"": "q4_0"}),
    "q8_0-q4_1": SmallLlama(
        config(hidden_size=64, intermediate_size=96, rope_style="interleaved", tied_head=True),
        {"embed": "q8_0", "": "q4_1"},
    ),
    "q4_k_m": SmallLlama(
        config(hidden_size=256, intermediate_size=256, heads=4, kv_heads=2, head_dim=64, rope_style="interleaved"),
        {"attn.v": "q6_k", "down": "q6_k", "head": "q6_k", "": "q4_k"},
    ),
    "mixed-gate-up": SmallLlama(
        config(hidden_size=256, intermediate_size=256, heads=4, kv_heads=2, head_dim=64, rope_style="interleaved"),
        {"gate": "q5_k", "up": "q6_k", "attn.q": "q5_0", "attn.k": "q5_1", "attn.v": "q8_0", "": "q4_k"},
    ),
}
MIXED = ("q4_k_m", "mixed-gate-up")


def _steps(llama: SmallLlama, quantize: str = "keep", kv: str = "f32", uniform: bool = True) -> list[Step]:
    return cpu_pipeline(plain_layers(llama.config.layers), parse_quantization(quantize), kv, 32, uniform)


class Checker:
    """Compares the logits after every pass with those before it, in exact mode, and round-trips the text."""

    def __init__(self, module: Module, llama: SmallLlama) -> None:
        self.llama, self.ids = llama, tokens_of(llama, 9)
        self.before = logits(module, llama, self.ids, exact=True)
        self.text = ""

    def after(self, item: Pass, module: Module, result: PassResult) -> None:
        text = print_module(module)
        if text == self.text:
            assert not result.changed, f"{item.name} counts what it did not do"
            return
        again = parse_module(text)
        verify(again)
        assert print_module(again) == text
        found = logits(again, self.llama, self.ids, exact=True)
        bound = ROUNDED_FREQUENCIES if item.name == "fold-constants" else EXACT
        assert difference(found, self.before) <= bound, item.name
        self.before, self.text = found, text
        if again.level in item.requires:
            assert not run_pass(again, item, PassContext(self.llama.read_rows)).changed, f"{item.name} runs twice"
            assert print_module(again) == text, f"{item.name} changes something the second time"


@pytest.mark.parametrize("name", LLAMAS)
def test_every_pass_keeps_the_function(name: str) -> None:
    llama = LLAMAS[name]
    module = llama.module()
    checker = Checker(module, llama)
    steps = _steps(llama, uniform=name not in MIXED)
    records = run_pipeline(module, steps, PassContext(llama.read_rows), checker.after)
    counts = {r.name: r.result.counts for r in records if r.name not in ("dedupe-ops", "eliminate-dead")}
    layers, interleaved = llama.config.layers, llama.config.rope_style == "interleaved"
    assert counts["fold-rope"]["half_split"] == (2 * layers if interleaved else 0)
    assert counts["fold-constants"] == {"constant": 1}
    assert counts["fuse-qkv"]["qkv"] == (0 if name in MIXED else layers)
    assert counts["fuse-gate-up"]["gate_up"] == (0 if name == "mixed-gate-up" else layers)
    assert counts["pack-weights"]["swiglu"] == (layers if name == "mixed-gate-up" else 0)
    assert counts["roll-layers"]["layer"] == (layers if layers > 1 else 0)
    assert module.level == "kernel" and is_ragged(module)
    assert arena_bytes(module, 32) > 0


SCHEMES = ["f32", "f16", "bf16", "fp8", "int8", "int8:g64:asym", "int4", "int4:g128", "int4:asym"]
QUANTIZED = [("interleaved-bf16-tied", s) for s in SCHEMES] + [("gqa3-bf16-h80", "int4"), ("q4_k_m", "int4:g64")]


@pytest.mark.parametrize(("name", "scheme"), [*QUANTIZED, ("q4_k_m", "f32"), ("q4_k_m", "fp8")])
def test_quantizing_passes_compute_with_their_own_weights(name: str, scheme: str) -> None:
    """After quantization the graph equals the captured one run on the new weights."""
    llama = LLAMAS[name]
    module, reference = llama.module(), parse_module(print_module(llama.module()))
    ids = tokens_of(llama, 7)
    expected: list[np.ndarray] = []

    def after(item: Pass, module: Module, result: PassResult) -> None:
        if item.name.startswith(("quantize-", "cast-weights")):
            expected.append(_on_new_weights(reference, module, llama, ids))
            if item.produces is None:
                assert not run_pass(module, item, PassContext(llama.read_rows)).changed

    uniform = name != "q4_k_m" or scheme != "fp8"
    run_pipeline(module, _steps(llama, scheme, uniform=uniform), PassContext(llama.read_rows), after)
    found = logits(module, llama, ids, exact=True)
    assert difference(found, expected[-1]) <= ROUNDED_FREQUENCIES
    error = difference(logits(reference, llama, ids, exact=True), expected[-1])
    assert error < {"f32": 1e-9, "f16": 1e-2, "bf16": 0.1, "fp8": 0.3}.get(scheme, 0.05 if "int8" in scheme else 0.8)


def _on_new_weights(reference: Module, module: Module, llama: SmallLlama, ids: np.ndarray) -> np.ndarray:
    evaluator, interpreter = WeightEvaluator(llama.read_rows), Interpreter(reference, llama.read_rows, exact=True)
    for weight in matrices(module, "all"):
        values = evaluator.whole(weight).astype(np.float64)
        name = weight.name
        while name not in reference.weights:
            name = name.rpartition(".")[0]
        if ".half_split" in weight.name:
            # Back from half-split to interleaved rows, so that the captured graph can use them.
            h = llama.config.head_dim
            values = values.reshape(-1, 2, h // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        interpreter._weights[reference.weights[name]] = values
    return sequence_logits(reference, llama, ids, True, [2 * len(ids) // 3], interpreter)


@pytest.mark.parametrize("name", LLAMAS)
def test_optimized_graphs_round_no_worse_than_captured_ones(name: str) -> None:
    """Dtype mode: the error against exact arithmetic is at most 1.5 times the captured graph's."""
    llama = LLAMAS[name]
    ids = tokens_of(llama, 24, seed=3)
    captured, module = llama.module(), llama.module()
    exact = logits(captured, llama, ids, exact=True)
    steps = _steps(llama, uniform=name not in MIXED)
    # Up to the last model-level pass: integer activations are another function, bounded elsewhere.
    run_pipeline(module, steps[: [s.run.name for s in steps].index("select-kernels")], PassContext(llama.read_rows))
    before = _rms(logits(captured, llama, ids, exact=False) - exact)
    after = _rms(logits(module, llama, ids, exact=False) - exact)
    # In f32 both are a few units in the last place; a floor keeps chance out of it.
    assert after <= 1.5 * max(before, 1e-7 * np.abs(exact).max())


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


_COMPILED: dict[str, tuple[Module, Module]] = {}


def _compiled(name: str) -> tuple[Module, Module]:
    """The captured module after fold-constants, and the kernel-level one with small pages."""
    if name not in _COMPILED:
        llama = LLAMAS[name]
        captured, module = llama.module(), llama.module()
        run_pipeline(captured, parse_pipeline("fold-constants"), PassContext())
        run_pipeline(module, _steps(llama, uniform=name not in MIXED), PassContext(llama.read_rows))
        small = print_module(module).replace("page = 256", "page = 4")
        _COMPILED[name] = captured, parse_module(small)
    return _COMPILED[name]


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["gqa4-tied-llama3", "interleaved-bf16-tied", "mixed-gate-up"]),
    st.lists(st.integers(1, 11), min_size=1, max_size=4),
    st.integers(0, 1 << 32),
)
def test_the_ragged_law(name: str, lengths: list[int], seed: int) -> None:
    """For every partition of the rows into steps and sequences the step equals the captured graph per sequence."""
    llama, (captured, kernel) = LLAMAS[name], _compiled(name)
    sequences = [tokens_of(llama, n, seed=i) for i, n in enumerate(lengths)]
    random, position = np.random.default_rng(seed), [0] * len(sequences)
    steps = []
    while any(p < len(s) for p, s in zip(position, sequences, strict=True)):
        rows = []
        for index in random.permutation(len(sequences)).tolist():
            take = int(random.integers(0, len(sequences[index]) - position[index] + 1))
            rows += [(index, position[index] + i) for i in range(take)]
            position[index] += take
        if random.random() < 0.5:  # rows of different sequences may alternate
            rows.sort(key=lambda row: (row[1], row[0]))
        steps += [rows] if rows else []
    found = ragged_logits(kernel, llama, sequences, steps, exact=True)
    for ids, rows in zip(sequences, found, strict=True):
        assert difference(rows, sequence_logits(captured, llama, ids, exact=True)) <= EXACT


def test_a_broken_graph_names_the_first_near_match() -> None:
    """A second layer whose norm averages over the wrong axis: the fusion count is off, and the message says why."""
    llama = LLAMAS["mha-f32"]
    text = print_module(llama.module())
    head, line, tail = _split_at(text, "reduce_mean", 3)
    module = parse_module(head + line.replace("axis = -1", "axis = 0").replace("T x 1 x", "1 x 24 x") + tail)
    with pytest.raises(LlamacError) as caught:
        run_pipeline(module, raise_and_fuse(plain_layers(llama.config.layers)), PassContext())
    assert caught.value.code == "LLC0501" and caught.value.where == "fuse-rms-norm"
    assert "'rms_norm' fired 4 times, the architecture has 5; first near match, layers.1.mlp" in caught.value.reason
    assert "the mean is not over the last axis" in caught.value.reason


def _split_at(text: str, word: str, occurrence: int) -> tuple[str, str, str]:
    """Text before, at, and after the lines of the norm that the nth `word` belongs to."""
    lines = text.split("\n")
    at = [i for i, line in enumerate(lines) if word in line][occurrence]
    # The mean, eps, sum and rsqrt have the same type: all four lines change.
    return "\n".join(lines[:at]) + "\n", "\n".join(lines[at : at + 4]), "\n" + "\n".join(lines[at + 4 :])


def test_wrong_counts_without_a_near_match() -> None:
    llama = LLAMAS["mha-f32"]
    steps = parse_pipeline("fuse-swiglu")
    with pytest.raises(LlamacError, match=r"LLC0501 fuse-swiglu: 'swiglu' fired 2 times, the architecture has 3\. "):
        run_pipeline(llama.module(), [Step(steps[0].run, {"swiglu": 3})], PassContext())


@pytest.mark.parametrize("scheme", ["keep", "f32", "fp8", "int8:g64:asym", "int4:g128"])
def test_pipelines_are_text(scheme: str) -> None:
    steps = cpu_pipeline(plain_layers(3), parse_quantization(scheme), "bf16", 77, True)
    text = pipeline_text(steps)
    assert [s.run for s in parse_pipeline(text)] == [s.run for s in steps]
    assert pipeline_text(parse_pipeline(text)) == text
    assert "lower-kv-cache{dtype=bf16}" in text and "plan-memory{tokens=77}" in text


@pytest.mark.parametrize("text", ["keep", "fp8", "int4", "int4:asym", "int8:g128:asym", "bf16"])
def test_quantizations_are_text(text: str) -> None:
    assert str(parse_quantization(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int5", "unknown scheme 'int5' (did you mean 'int"),
        ("int4:g16", "unknown option 'g16'"),
        ("fp8:g64", "'fp8' takes no groups"),
        ("", "unknown scheme ''"),
    ],
)
def test_quantizations_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_quantization(text)
    assert caught.value.code == "LLC0104" and reason in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fuse-gqa2", "unknown pass (did you mean 'fuse-gqa'?)"),
        ("quantize-int4{grup=64}", "has no option 'grup' (did you mean 'group'?)"),
        ("quantize-int4{group=64,group=32}", "option 'group' is given twice"),
        ("quantize-int4{group=big}", "option 'group' is like 32, not 'big'"),
        ("quantize-int4{group}", "option 'group' is like 32, not ''"),
        ("quantize-int4{asymmetric=1}", "option 'asymmetric' is like False, not '1'"),
        ("quantize-int4{group=64", "expected a pass name, with options"),
        ("quantize-int4}{", "expected a pass name, with options"),
        ("dedupe-ops eliminate-dead", "unknown pass"),
    ],
)
def test_pipelines_that_do_not_parse(text: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_pipeline(text)
    assert caught.value.code == "LLC0502" and reason in caught.value.reason


def test_options_are_validated_when_a_pass_runs() -> None:
    llama = LLAMAS["mha-f32"]
    module = llama.module()
    run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext())
    for text, reason in (
        ("quantize-int4{group=48}", "must be one of 32, 64, 128, not 48"),
        ("quantize-int8{weights=block}", "must be all, blocks, tables, not 'block' (did you mean 'blocks'?)"),
        ("cast-weights{dtype=f64}", "must be f32, f16, bf16"),
        ("lower-kv-cache{dtype=i8}", "the cache can be f32, f16 or bf16, not 'i8'"),
    ):
        with pytest.raises(LlamacError) as caught:
            run_pipeline(parse_module(print_module(module)), parse_pipeline(text), PassContext())
        assert caught.value.code == "LLC0502" and reason in caught.value.reason


def test_passes_run_at_their_levels_only() -> None:
    with pytest.raises(LlamacError, match="LLC0503 roll-layers: needs a module at level kernel, this one"):
        run_pipeline(LLAMAS["mha-f32"].module(), parse_pipeline("roll-layers"), PassContext())


def test_a_pass_that_leaves_a_malformed_graph_is_named() -> None:
    class Breaks(Pass):
        name, requires = "breaks", ("captured",)

        def run(self, module: Module, context: PassContext) -> PassResult:
            module.step.ops.reverse()
            return PassResult({"op": 1})

    with pytest.raises(LlamacError, match=r"LLC0504 .*after breaks: .* is used before it is defined"):
        run_pipeline(LLAMAS["mha-f32"].module(), [Step(Breaks())], PassContext())


def test_a_pass_without_run_says_so() -> None:
    class Empty(Pass):
        name, requires = "empty", ("captured",)

    with pytest.raises(TypeError, match="Empty does not define run"):
        run_pass(LLAMAS["mha-f32"].module(), Empty(), PassContext())


def test_the_default_pipeline_reads_as_a_table_of_contents() -> None:
    names = [s.run.name for s in cpu_pipeline(plain_layers(1), Quantization(), "f16", 512)]
    wanted = ["raise-linear", "fuse-gqa", "enter-model", "fold-rope", "fuse-qkv"]
    wanted += ["lower-kv-cache", "select-kernels", "pack-weights", "roll-layers", "plan-memory"]
    assert [n for n in names if n in wanted] == wanted

"""`--kv fp8` and `--quantize fp8:fp8-activations`: what they mean, where scales come from, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from planned_models import Array, Planned, Tiny, planned, relative_error

from llamac import compiled_graph
from llamac.backends.gpu.architectures import architecture
from llamac.backends.gpu.legality import check_legal
from llamac.certificate import validate
from llamac.driver import compile_graph
from llamac.errors import LlamacError
from llamac.ir.dtypes import E4M3FN, round_to
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import empty_caches, whole_sequences
from llamac.ir.ops.row_kernels import E4M3_ABOVE, rounded_rows
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization

EIGHT = "fp8:fp8-activations"
SCALES = {0: (0.02, 0.5), 1: (1.7, 0.01)}
IDS = np.random.default_rng(1).integers(0, 37, 70).tolist()


def test_the_recipe_is_text_both_ways() -> None:
    assert str(parse_quantization(EIGHT)) == EIGHT and parse_quantization("keep:fp8-activations").eight
    for text in ("bf16:fp8-activations", "int8:fp8-activations", "fp8:f32-activations:fp8-activations"):
        with pytest.raises(LlamacError, match="LLC0104 --quantize"):
            parse_quantization(text)


@pytest.mark.parametrize(("quantize", "kv", "words"), [(EIGHT, "f16", "fp8-activations"), ("fp8", "fp8", "--kv int8")])
def test_a_cpu_has_neither(quantize: str, kv: str, words: str) -> None:
    checkpoint = random_checkpoint(Tiny().config(), 3)
    with pytest.raises(LlamacError, match="LLC0605") as caught:
        compile_graph(checkpoint, parse_quantization(quantize), kv, 8, None, [], kind="cpu")
    assert words in caught.value.message()


def test_a_gpu_has_no_cache_of_integers() -> None:
    module = compile_graph(
        random_checkpoint(Tiny().config(), 3), parse_quantization("keep"), "int8", 8, None, [], kind="gpu"
    ).module
    with pytest.raises(LlamacError, match=r"LLC0611 .* no GPU kernel reads a cache of i8") as caught:
        check_legal(module, architecture("sm_90"), "h100")
    assert caught.value.hint == "--kv f16, bf16, f32, fp8"


@pytest.mark.parametrize("experts", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_every_pass_keeps_the_meaning(experts: int) -> None:
    """Translation validation of the whole pipeline."""
    checkpoint = random_checkpoint(Tiny("bf16", experts=experts).config(), 3)
    recipe = parse_quantization(EIGHT)
    verdicts, text = validate(checkpoint.config, checkpoint.tensors, recipe, "fp8", 5, kind="gpu")
    assert all(v.passed for v in verdicts) and {"quantize-kv", "round-activations"} <= {v.after for v in verdicts}
    assert "quantize-kv{dtype=e4m3fn}" in text


@pytest.fixture(scope="module")
def plain() -> Planned:
    return planned(Tiny().config(), kv="f32")


def test_scales_change_roundings_alone(plain: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, a cache over scales is one without; rounded, each of them is another, and near."""
    wanted = plain.logits([IDS])[0]
    found: list[Array] = []
    for scales in ({}, SCALES):
        monkeypatch.setattr(compiled_graph, "scales_of_cache", lambda *given, scales=scales: scales)
        model = planned(Tiny().config(), kv="fp8")
        assert relative_error(exact_logits(model), exact_logits(plain)) < 1e-12
        found.append(model.logits([IDS])[0])
        assert 1e-5 < relative_error(found[-1], wanted) < 0.1
    assert not np.allclose(*found, rtol=1e-4)


def exact_logits(model: Planned) -> Array:
    """In f64, nothing rounded, of a few ids."""
    interpreter = Interpreter(model.compiled.module, model.checkpoint.read_rows, exact=True)
    step = model.compiled.module.step
    (found, *_) = interpreter.run(whole_sequences(step, [IDS[:9]]) | empty_caches(step, [1], exact=True))
    return np.asarray(found)


def test_activations_are_rounded_in_large_steps_alone() -> None:
    """64 tokens give what they give without the recipe, 65 do not; only products of 8-bit floats say so."""
    config = Tiny("bf16", experts=4, top=2).config()
    eight, plain = (planned(config, quantize=q, kv="f32", max_tokens=8) for q in (EIGHT, "fp8"))
    np.testing.assert_array_equal(eight.logits([IDS[:64]])[0], plain.logits([IDS[:64]])[0])
    assert relative_error(eight.logits([IDS[:65]])[0], plain.logits([IDS[:65]])[0]) > 1e-4
    products = [op for _, op in eight.compiled.module.ops() if "format" in op.attributes]
    assert all((op.attributes["format"] == "e4m3fn") == (E4M3_ABOVE in op.attributes) for op in products)


def test_rounded_rows() -> None:
    """The largest of a row becomes 448 of its scale; a row of zeros stays one; each row has a scale of its own."""
    rows = np.array([[1.0, -3.5, 0.01], [0, 0, 0], [1e-30, 1e-31, -1e-30], [448, 1, 17.3]], np.float32)
    found = rounded_rows(rows)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_array_equal(found[3], round_to(rows[3], E4M3FN))
    np.testing.assert_allclose(np.abs(found).max(1), np.abs(rows).max(1), rtol=1e-6)
    np.testing.assert_allclose(found, rows, rtol=2**-4)

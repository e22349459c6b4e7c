"""`fold-norm-scale`, which is in no pipeline, put into that of small models: validated, explained, and made wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from mutations import LOGITS, caught_by
from small_models import BASE, LLAMA4, SmallModel, encodings_of

from llamac.certificate import validate
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import F32
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Attribute, DataSource, Module, Op, Value, Weight
from llamac.ir.types import tensor
from llamac.models.llama.shrink import small_tensors
from llamac.passes import fold_norm_scale
from llamac.passes.fold_norm_scale import FoldNormScale
from llamac.passes.pipelines import parse_quantization
from llamac.transform.pipeline import Step
from llamac.transform.rounding import rounding_ratio, stand_in

NAME = FoldNormScale.name


def folded(norms: int) -> Callable[[list[Step]], list[Step]]:
    """A pipeline with the pass behind `fold-rope`; as many `norms` must lose their weight."""

    def edit(steps: list[Step]) -> list[Step]:
        at = [step.run.name for step in steps].index("fold-rope") + 1
        return [*steps[:at], Step(FoldNormScale(), {"norm": norms}), *steps[at:]]

    return edit


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (SmallModel(), 5),
        (SmallModel(replace(BASE, tied_head=True)), 4),
        (SmallModel(matrix="bf16"), 0),
        (SmallModel(special=(("v", "bf16"),)), 3),
        (SmallModel(quantize="int4"), 5),
        (SmallModel(replace(BASE, hidden_size=64, intermediate_size=96), "q8_0", special=(("head", "f32"),)), 1),
        (SmallModel(LLAMA4), 7),
    ],
    ids=["f32", "tied", "bf16", "one-matrix-bf16", "then-int4", "stored-integers", "experts"],
)
def test_models_compute_what_they_did(model: SmallModel, norms: int) -> None:
    verdicts = model.run(folded(norms))
    assert all(verdict.passed for verdict in verdicts)
    judged = [v.against for v in verdicts if v.after == "fold-norm-scale"]
    assert judged == (["the weights before", "its own weights"] if norms else ["the graph before"])


def test_the_norm_of_ones_is_still_fused() -> None:
    """Kernels for GPUs take norms with a weight inside their products: the shared ones must not be in the way."""
    tensors = small_tensors(BASE, encodings_of(BASE, "f32"))
    verdicts, _ = validate(BASE, tensors, parse_quantization("keep"), "f16", 3, folded(5), kind="gpu")
    assert all(verdict.passed for verdict in verdicts)


def _keep_the_factors(module: Module, norm: Op) -> Weight:
    assert isinstance(norm.operands[1], Weight)
    return norm.operands[1]


def _factors_of_the_last_norm(
    module: Module, name: str, opcode: str, matrix: Value, factors: Value, **attributes: Attribute
) -> Weight:
    return define_weight(module, name, opcode, matrix, module.weights["norm"], **attributes)


@pytest.mark.parametrize(
    ("function", "wrong"),
    [("_ones", _keep_the_factors), ("define_weight", _factors_of_the_last_norm)],
    ids=["factors-applied-twice", "factors-of-another-norm"],
)
def test_a_wrong_fold_is_caught(function: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_norm_scale, function, wrong)
    with pytest.raises(LlamacError) as raised:
        SmallModel().run(folded(5))
    assert raised.value.where == "fold-norm-scale" and caught_by(raised.value) == LOGITS


def test_scaled_columns_are_the_nearest_values_or_wrong() -> None:
    random, module = np.random.default_rng(2), Module("m", "model")
    old, factors = random.standard_normal((3, 4)).astype("<f4"), np.array([0.3, -7, 0, 1], "<f4")
    weight = module.add_weight(Weight("w", tensor(3, 4, F32), DataSource(old.tobytes())))
    given = module.add_weight(Weight("g", tensor(4, F32), DataSource(factors.tobytes())))
    made, evaluator = define_weight(module, "w.scaled", "scale_columns", weight, given), WeightEvaluator()
    exact, found = old.astype(np.float64) * factors.astype(np.float64), evaluator.whole(made)
    assert rounding_ratio(made, exact, found, FoldNormScale()) == 0
    assert rounding_ratio(made, exact, np.nextafter(found, np.float32(9)), FoldNormScale()) == float("inf")
    stands = stand_in(made, old, evaluator)
    assert np.allclose(stands * factors.astype(np.float64), found, rtol=1e-15, atol=0)
    assert (stands[:, 2] == old[:, 2]).all()  # nothing is known of what a factor of 0 hides


def test_opt_explains_why_norms_keep_their_weight(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["opt", "--from", "tiny", "--random-weights", "1"]
    before = "raise-linear,fuse-rms-norm,fuse-rope,fuse-gqa,fuse-swiglu,dedupe-ops,fold-constants,eliminate-dead"
    assert main([*words, "--passes", f"canonicalize,{before},enter-model,fold-norm-scale", "--explain", NAME]) == 0
    told = capsys.readouterr().err
    assert "fold-norm-scale: norm 4\n  left alone in norm: @embed has another use, in embedding" in told

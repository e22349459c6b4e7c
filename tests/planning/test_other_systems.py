"""Plans of targets that another system runs: the bytes of the weights that `compile` writes for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import llamac
from llamac.errors import LlamacError
from llamac.passes.pipelines import parse_quantization
from llamac.planning.machine import find_machine
from llamac.planning.plan import make_plan, plan_to_json
from llamac.planning.request import Request
from llamac.planning.source import open_subject

MODEL = Path(__file__).parents[1] / "capture" / "optimum_model"


def request(scheme: str) -> Request:
    return Request(parse_quantization(scheme), "f16", 128, 1, 1, 0, 64, 128)


@pytest.mark.parametrize("scheme", ["f32", "f16", "int8", "int4", "int4:asym"])
def test_weights_for_onnx_runtime_are_those_of_the_compiler(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    made = llamac.compile(MODEL, target="onnxruntime", output=tmp_path / "m.llamac", quantize=scheme, validate=False)
    plan = make_plan(open_subject(str(MODEL)), request(scheme), find_machine("onnxruntime"))
    (entry,) = made.manifest["weights"]
    assert plan.memory.weights == entry["bytes"]
    assert [group.dtype for group in plan.groups] == ["f32"]
    assert "ONNX Runtime itself" in plan_to_json(plan)["memory"]["estimated"]["arena"]
    assert plan.memory.arena == 0


def test_weights_for_tvm_are_those_of_the_cpu() -> None:
    subject = open_subject(str(MODEL))
    plans = [make_plan(subject, request("int4"), find_machine(name)) for name in ("tvm:llvm", "x86-64-v3")]
    assert plans[0].memory.weights == plans[1].memory.weights and plans[0].memory.kv == plans[1].memory.kv
    assert "TVM itself" in plans[0].memory.estimated["arena"]
    longer = make_plan(subject, replace(request("int4"), batch=2), find_machine("tvm:llvm"))
    assert longer.memory.kv == 2 * plans[0].memory.kv


def test_a_target_of_source_alone_is_refused() -> None:
    with pytest.raises(LlamacError, match=r"LLC0603 tvm:metal: the file keeps the source of its kernels alone"):
        find_machine("tvm:metal")

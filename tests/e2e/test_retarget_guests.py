"""Code of TVM and of ONNX Runtime in files that are retargeted: what `compile` makes, byte for byte, or one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

import llamac
from llamac.artifact.read import Artifact
from llamac.errors import LlamacError
from llamac.retarget import retarget

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")

MODEL = Path(__file__).parents[1] / "capture" / "optimum_model"
CPU, TVM, ONNX = "x86-64-v3", "tvm:llvm", "onnxruntime"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The model for some targets, compiled once."""
    folder = tmp_path_factory.mktemp("retargeted")

    @cache
    def take(*targets: str) -> Path:
        path = folder / f"{'-'.join(targets).replace(':', '_')}.llamac"
        return llamac.compile(MODEL, target=list(targets), output=path, quantize="f32").path

    return take


def changed(path: Path, out: Path, targets: Sequence[str] = (), remove: Sequence[str] = ()) -> bytes:
    retarget(path, targets, remove=remove, output=out)
    return out.read_bytes()


@pytest.mark.slow
def test_onnx_runtime_is_taken_out_and_stays(compiled: Callable[..., Path], tmp_path: Path) -> None:
    both = compiled(CPU, ONNX)
    assert changed(both, tmp_path / "cpu.llamac", remove=[ONNX]) == compiled(CPU).read_bytes()
    retarget(both, ["x86-64-v4"], remove=[CPU], output=tmp_path / "other.llamac")
    with Artifact.open(tmp_path / "other.llamac", check="full") as now, Artifact.open(both) as before:
        assert [row["name"] for row in now.manifest["targets"]] == ["x86-64-v4", ONNX]
        for name in ("onnx/model.onnx", "weights/onnx.bin", "ir/step.onnx.ir"):
            assert now.manifest["members"][name] == before.manifest["members"][name]
        assert now.manifest["onnx"] == before.manifest["onnx"]


@pytest.mark.slow
def test_tvm_is_added_and_taken_out(compiled: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llamac[tvm]'")
    both = compiled(CPU, TVM)
    assert changed(compiled(CPU), tmp_path / "both.llamac", [TVM]) == both.read_bytes()
    assert changed(both, tmp_path / "cpu.llamac", remove=[TVM]) == compiled(CPU).read_bytes()
    alone = tmp_path / "tvm.llamac"
    assert changed(both, alone, remove=[CPU]) == compiled(TVM).read_bytes()
    assert changed(alone, tmp_path / "again.llamac", [CPU]) == both.read_bytes()


@pytest.mark.parametrize(
    ("targets", "change", "remove", "message"),
    [
        ([CPU], [ONNX], [], "LLC0614 onnxruntime: its graph and weights are made from a checkpoint only"),
        ([ONNX], [CPU], [], "LLC0614 x86-64-v3: the file holds weights as ONNX Runtime wants them alone"),
        ([ONNX], [TVM], [], "LLC0614 tvm:llvm: its code works on the weights of CPU targets, which the file does not"),
        ([CPU, ONNX], [], [CPU], "LLC0614 onnxruntime: its memory plan is counted for the weights of the other"),
        ([ONNX], [], [ONNX], "LLC0613 "),
    ],
)
def test_what_the_stored_graphs_do_not_allow_is_one_error(
    compiled: Callable[..., Path],
    tmp_path: Path,
    targets: list[str],
    change: list[str],
    remove: list[str],
    message: str,
) -> None:
    with pytest.raises(LlamacError) as caught:
        retarget(compiled(*targets), change, remove=remove, output=tmp_path / "out.llamac")
    assert caught.value.message().startswith(message)
    assert not (tmp_path / "out.llamac").exists()

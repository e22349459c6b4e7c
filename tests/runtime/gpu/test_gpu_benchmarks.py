"""The benchmark programs without a GPU: made weights, torch's reference model, the page, and a compiled case opened."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from planned_models import Tiny, planned, relative_error
from planned_runs import prompt

from llamac.ir.evaluator import WeightEvaluator
from llamac.materialize import write_weights
from llamac.models.random_weights import random_checkpoint
from llamac.runtime.gpu.upload import host_bytes
from llamac.runtime.session import Feed

sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "gpu"))
from compile_cases import _row, write_case
from gpu_cases import CASES, ROWS, Case
from gpu_page import write_page
from made_weights import DEVIATION, MadeWeights, values_of
from opened_case import OpenedCase

ROOT = Path(__file__).parents[3]


def described(formats: list[str]) -> list[dict[str, Any]]:
    from llamac.ir.layouts import format_of
    from llamac.ir.row_layouts import RowLayout

    rows, offset = [], 0
    for number, name in enumerate(formats):
        size = RowLayout(format_of(name), 30, 200).bytes
        rows.append(
            {"name": f"w{number}", "offset": offset, "bytes": size, "format": name, "shape": [30, 200], "small": False}
        )
        offset += size
    return [*rows, {"name": "norm", "offset": offset, "bytes": 32, "format": "f32", "shape": [8], "small": True}]


@pytest.mark.parametrize("name", ["bf16", "f16", "f32", "e4m3fn", "i8g32s16", "u4g32s16m16", "i4g64s16"])
def test_made_weights_are_like_a_models(name: str) -> None:
    rows = described([name, name])
    small = np.arange(8, dtype=np.float32)
    made = MadeWeights(rows, {rows[-1]["offset"]: small.tobytes()})
    values = made.values("w0")
    assert values.shape == (30, 200) and np.isfinite(values).all()
    assert 0.5 * DEVIATION < values.std() < 2 * DEVIATION
    assert not np.array_equal(values, made.values("w1"))
    np.testing.assert_array_equal(made.values("norm"), small)
    np.testing.assert_array_equal(values, values_of(rows[0], made[0 : rows[0]["bytes"]]))
    whole = made[0 : made.nbytes]
    for start, stop in ((0, 1), (1, 4097), (5000, 9000), (made.nbytes - 40, made.nbytes)):
        np.testing.assert_array_equal(made[start:stop], whole[start:stop])


class TrueWeights:
    """The weights of a planned model, by the same names."""

    def __init__(self, model: Any) -> None:
        sink = io.BytesIO()
        write_weights(model.compiled.placed, WeightEvaluator(model.checkpoint.read_rows), sink, 1 << 26, lambda n: None)
        self.rows = {row["name"]: row for row in map(_row, model.compiled.placed)}
        self.data = np.frombuffer(sink.getvalue() + bytes(4096), np.uint8)

    def values(self, name: str) -> Any:
        row = self.rows[name]
        return values_of(row, self.data[row["offset"] : row["offset"] + row["bytes"]].copy())


@pytest.mark.parametrize("tied", [False, True])
def test_torchs_reference_is_the_model_of_the_ir(tied: bool) -> None:
    import torch
    from torch_llama import TorchLlama

    model = planned(Tiny("f32", tied=tied).config(), "sm_90", kv="f32")
    config = model.checkpoint.config
    names = ("hidden_size", "heads", "kv_heads", "head_dim", "layers", "rms_norm_eps")
    weights = TrueWeights(model)
    about = {"config": {name: getattr(config, name) for name in names}, "weights": list(weights.rows.values())}
    ids = prompt(9)
    llama = TorchLlama(about, weights, torch.float32, 1, 16, "cpu")
    with torch.no_grad():
        first = llama(torch.tensor([ids[:6]]), torch.arange(6))[0]
        rest = [llama(torch.tensor([[token]]), torch.tensor([6 + n]))[0] for n, token in enumerate(ids[6:])]
    found = torch.cat([first, *rest]).numpy()
    assert relative_error(found, model.logits([ids], exact=True)[0]) < 1e-5


def test_the_page_is_what_the_program_writes(tmp_path: Path) -> None:
    """Until it has been filled on a GPU; then only its rows must be those of the table."""
    write_page(tmp_path / "gpu.md", None)
    empty = (tmp_path / "gpu.md").read_text()
    kept = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    if "Nothing has been measured" in kept:
        assert kept == empty, "python bench/gpu/gpu_page.py docs/benchmarks/gpu.md"
    assert [line.split(" | ")[:2] for line in kept.splitlines() if line.startswith("| ")][1:] == [
        line.split(" | ")[:2] for line in empty.splitlines() if line.startswith("| ")
    ][1:]


def test_the_page_of_a_result(tmp_path: Path) -> None:
    row = {"case": "1b-bf16", "batch": 1, "context": 128, "prefill": 0}
    result = row | {"seconds": 0.0007, "floor": 0.00056, "peer_seconds": 0.001}
    refused = row | {"case": "70b-fp8", "refused": "LLC0866 GPU memory: too little"}
    limits = {"read": 4.5e12, "copy": 4.3e12, "bf16": 7.9e14}
    write_page(tmp_path / "gpu.md", {"gpu": "Stub", "date": "2026-01-01", "limits": limits, "rows": [result, refused]})
    text = (tmp_path / "gpu.md").read_text()
    assert "| 1b-bf16 | batch 1, context 128 | 0.700 | 0.560 | 0.80 | 1.000 | 0.690 ms |" in text
    assert "refused: LLC0866" in text and "reading 4.50 TB/s" in text


def test_every_row_has_a_case_that_holds_it() -> None:
    assert {row.case for row in ROWS} <= CASES.keys()
    assert all(row.prefill <= CASES[row.case].max_tokens for row in ROWS)


@pytest.mark.slow
def test_a_case_from_file_to_steps(cuda: Stub, tmp_path: Path) -> None:
    """Compiled for real, opened on the stub: weights arrive as they were made, steps of both kinds are timed."""
    path = tmp_path / "tiny-h100.zip"
    write_case(path, Case("tiny", "", "keep", "bf16", 16), "h100", random_checkpoint(Tiny("bf16").config(), 3))
    cuda.be("sm_90")
    with OpenedCase(path, 512, 2) as case:
        base = case.device._memory.base["weights"]
        np.testing.assert_array_equal(host_bytes(base, case.weights.nbytes), case.weights[0 : case.weights.nbytes])
        assert len(case.decode_seconds(2, 300, 5)) == 5
        assert len(case.prefill_seconds(16, 3)) == 3
        case.session.step([Feed(case.session.open(), [1, 2, 3])])
        assert case.least_bytes(1, 0) > case.weights.nbytes // 2 and case.prefill_operations(16) > 0


@pytest.mark.parametrize("name", ["bf16", "e4m3fn", "i4g64s16"])
def test_rows_that_repeat_are_unpacked_once(name: str) -> None:
    """More rows than a pattern has: as if all had been; and a row that lies a power of two away is another."""
    from llamac.ir.layouts import format_of
    from llamac.ir.row_layouts import RowLayout

    size = RowLayout(format_of(name), 5000, 512).bytes
    row = {"name": "w", "offset": 4096, "bytes": size, "format": name, "shape": [5000, 512], "small": False}
    made = MadeWeights([row], {})
    values = made.values("w")
    np.testing.assert_array_equal(values, values_of(row, made[4096 : 4096 + size]))
    assert not any(np.array_equal(values[0], values[1 << n]) for n in range(12))

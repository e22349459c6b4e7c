"""What peers are given: weights in their own form, a protocol that survives chatter, results that are merged by row."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import compare
import gguf
import limits
import measure
import numpy as np
import pytest
from _peer import Peer
from gguf_weights import GgufWeights, packed_nibbles
from random_gguf import write_random_gguf
from rows import Point, Row

from llamac.models.presets import preset
from llamac.runtime.read_bandwidth import ReadBandwidth

BENCH = Path(__file__).parents[2] / "bench"
CONFIG = replace(preset("tiny-llama3"), intermediate_size=192, context_length=128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> GgufWeights:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_random_gguf(CONFIG, "q4_0", "q8_0", path)
    return GgufWeights(path)


def _file_rows(weights: GgufWeights, name: str) -> np.ndarray:
    tensor = next(t for t in weights._tensors.values() if t.name == f"{name}.weight")
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What converters of llama.cpp do to queries and keys: the inverse of what `GgufWeights` does."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("name", ["blk.0.attn_v", "blk.2.attn_output"])
def test_blocks_keep_their_integers_and_scales(weights: GgufWeights, name: str) -> None:
    integers, scales = weights.quantized(name, 4)
    assert integers.min() == -8 and integers.max() == 7
    np.testing.assert_array_equal(
        (integers * scales[:, :, None]).reshape(scales.shape[0], -1), _file_rows(weights, name)
    )


def test_queries_and_keys_come_in_halves(weights: GgufWeights) -> None:
    for name, heads in (("blk.1.attn_q", CONFIG.heads), ("blk.1.attn_k", CONFIG.kv_heads)):
        integers, scales = weights.quantized(name, 4)
        rows = (integers * scales[:, :, None]).reshape(scales.shape[0], -1)
        np.testing.assert_array_equal(_interleaved(rows, heads), _file_rows(weights, name))
        np.testing.assert_array_equal(rows, weights.floats(name))


def test_tables_of_equal_scales_are_exact_a_row(weights: GgufWeights) -> None:
    integers, scales = weights.quantized("token_embd", 8, None)
    assert scales.shape == (CONFIG.vocab_size, 1)
    np.testing.assert_array_equal(integers[:, 0] * scales, _file_rows(weights, "token_embd"))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, None)])
def test_what_is_rounded_anew_is_close(weights: GgufWeights, bits: int, group: int | None) -> None:
    values = _file_rows(weights, "token_embd" if bits == 4 else "blk.0.ffn_up")
    integers, scales = weights.quantized("token_embd" if bits == 4 else "blk.0.ffn_up", bits, group)
    groups = values.reshape(integers.shape)
    # The largest becomes the most negative integer, so one of the other sign as large loses a step; f16 rounds scales.
    assert (np.abs(integers * scales[:, :, None] - groups) <= np.abs(scales)[:, :, None] * 1.1).all()
    assert np.mean(np.abs(integers * scales[:, :, None] - groups) <= np.abs(scales)[:, :, None] * 0.6) > 0.97


def test_shape_and_frequencies_are_those_of_the_config(weights: GgufWeights) -> None:
    from llamac.models.llama.graph import inverse_frequencies

    shape = weights.shape
    assert (shape.hidden, shape.inner, shape.layers) == (CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.layers)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim)
    np.testing.assert_allclose(shape.frequencies, inverse_frequencies(CONFIG), rtol=1e-6)


@pytest.mark.parametrize("offset", [0, 8])
def test_nibbles(offset: int) -> None:
    integers = np.random.default_rng(0).integers(-8, 8, (3, 2, 32)).astype(np.int8)
    packed = packed_nibbles(integers, offset)
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(integers.shape).astype(np.int16)
    found = both - 8 if offset else (both ^ 8) - 8  # two's complement of four bits without an offset
    np.testing.assert_array_equal(found, integers)


WORKER = """
import sys
sys.path.insert(0, {folder!r})
from _worker import serve
import numpy as np, os
class Engine:
    def run(self, prompt, new):
        print("chatter of the engine")
        os.write(1, b"chatter of its library\\n")
        return {{"first": len(prompt) / 10, "rest": float(new), "ids": []}}
    def together(self, prompt, new, sequences):
        return {{"rest": float(sequences)}}
    def logits(self, ids, path):
        np.save(path, np.eye(len(ids), dtype=np.float32))
        return {{}}
    def fail(self):
        sys.exit(3)
serve(Engine(), "1.2")
"""


def test_the_protocol(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "worker.py"
    program.write_text(WORKER.format(folder=str(BENCH)))
    with Peer("fake", sys.executable, program) as peer:
        assert peer.version == "1.2"
        assert peer.run([1, 2, 3], 5) == (0.3, 5.0)
        assert peer.together([1], 2, 8) == 8.0
        np.testing.assert_array_equal(peer.logits([4, 5]), np.eye(2))
        with pytest.raises(SystemExit, match="fake ended with exit code 3"):
            peer._ask(do="fail")
    assert "chatter of its library" in capfd.readouterr().err


def test_results_replace_rows_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    compare.Results(path).put("rows", "a", {"value": 1})
    compare.Results(path).put("rows", "b", {"value": 2})
    compare.Results(path).put("rows", "a", {"value": 3})
    compare.Results(path).put("quality", "q", {"value": 4})
    found = json.loads(path.read_text())
    assert found["rows"] == {"a": {"value": 3}, "b": {"value": 2}}
    assert found["quality"] == {"q": {"value": 4}}
    assert found["machine"]["cores"] >= 1


@pytest.mark.slow
def test_a_whole_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = (Point(12, 4), Point(12, 4, 3))
    monkeypatch.setitem(measure.ROWS, "tiny", Row("Tiny", "tiny", "q4_0", "int8", points))
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "ReadBandwidth", lambda threads: ReadBandwidth(threads, 1 << 20))
    monkeypatch.setattr(limits, "ROUNDS", 10_000)
    found = measure.measure("tiny", SimpleNamespace(models=tmp_path, threads=1, pairs=2))  # type: ignore[arg-type]
    assert found["pairs"] == 2
    assert [point["sequences"] for point in found["points"]] == [1, 3]
    assert all(value > 0 for point in found["points"] for value in point["shares"]["mapped_read"])
    assert found["points"][1]["multiple"]["llamac"][1] > 0
    assert "prefill" not in found["points"][1]["speeds"]["llamac"]
    json.dumps(found)

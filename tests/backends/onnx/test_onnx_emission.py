"""What the ONNX backend writes: places in the file, encodings, refusals, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_llama4
from emitted_models import Notes, Running, emitted, interpreted, lowered, written
from onnx import TensorProto, numpy_helper
from tiny_gguf import Type, write_tiny_gguf
from tiny_llama import TinyShape, relative_error, some_ids
from tiny_llama4 import Tiny4

from llamac.backends.onnx import encodings, external_data, library
from llamac.backends.onnx.emit import MODEL, emit_standard
from llamac.backends.onnx.emitter import Settings
from llamac.backends.onnx.external_data import ExternalData
from llamac.backends.onnx.graph_writer import DATA
from llamac.backends.onnx.reading import WrittenModel, covered
from llamac.errors import LlamacError
from llamac.ir.dtypes import F32
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import DataSource, Weight
from llamac.ir.types import tensor
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source

FORMS = ("standard", "contributed")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A tiny Llama 4 with a tied head: every op of the family but cross-attention."""
    shape = Tiny4(tied=True)
    config = shape.config()
    return tiny_llama4.checkpoint_of(tiny_llama4.weights_of(tiny_llama4.make_model(shape), config), config)


def sample(rows: int, columns: int) -> Weight:
    """An f32 matrix of numbers that tell their place."""
    values = np.arange(rows * columns, dtype=np.float32)
    return Weight("sample", tensor(rows, columns, F32), DataSource(values.tobytes()))


def test_a_tensor_beyond_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its offset is right in the file: a huge tensor before it has its place, and is never written."""
    data, weight = ExternalData(), sample(6, 4)
    size = (1 << 20, 1200)
    huge = data.place("huge", "FLOAT", size, weight, (0, 0), encodings.as_stored, size, np.dtype("f4"))
    small = data.place("small", "FLOAT", (6, 4), weight, (0, 6), encodings.as_stored, (6, 4), np.dtype("f4"))
    turned = data.place(
        "turned", "FLOAT", (4, 6), weight, (0, 6), encodings.transposed, (4, 6), np.dtype("f4"), transposed=True
    )
    assert small.offset == huge.nbytes > 1 << 32
    assert turned.offset % external_data.ALIGNMENT == 0
    monkeypatch.setattr(external_data, "_reserve", lambda file, nbytes: external_data.os.truncate(file, nbytes))
    written_bytes: list[int] = []
    data.write(tmp_path / DATA, WeightEvaluator(), 1 << 20, written_bytes.append)
    assert sum(written_bytes) == small.nbytes + turned.nbytes
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    for tensor_, expected in ((small, values), (turned, values.T)):
        found = np.fromfile(tmp_path / DATA, np.float32, 24, offset=tensor_.offset).reshape(tensor_.dims)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("memory", [1, 4096, 1 << 20])
def test_blocks_of_any_size_give_the_same_bytes(memory: int, tmp_path: Path) -> None:
    data, weight = ExternalData(), sample(10, 6)
    data.place("a", "FLOAT", (6, 10), weight, (0, 10), encodings.transposed, (6, 10), np.dtype("f4"), transposed=True)
    data.place("b", "FLOAT", (4, 6), weight, (4, 8), encodings.as_stored, (4, 6), np.dtype("f4"))
    data.write(tmp_path / "data", WeightEvaluator(), memory, lambda nbytes: None)
    values = np.arange(60, dtype=np.float32).reshape(10, 6)
    expected = np.zeros(data.nbytes // 4, np.float32)
    expected[:60] = values.T.reshape(-1)
    expected[data.tensors[1].offset // 4 :] = values[4:8].reshape(-1)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "data", np.float32), expected)
    assert external_data.rows_per_block(data.tensors[0], memory) * 6 * 40 <= max(memory, 2 * 6 * 40)


def test_a_full_disk_is_known_before_a_weight_is_read(tmp_path: Path) -> None:
    data = ExternalData()
    rows = 1 << 30
    data.place("huge", "FLOAT", (rows, rows), sample(2, 2), (0, 2), encodings.as_stored, (rows, rows), np.dtype("f4"))
    with pytest.raises(OSError, match=r"."):
        data.write(tmp_path / "data", WeightEvaluator(), 1 << 20, lambda nbytes: pytest.fail("it wrote"))


def test_nibbles_are_onnxs_own() -> None:
    """A transposed matrix of 4-bit integers reads as onnx reads INT4, the first of two in the low half."""
    quants = np.random.default_rng(0).integers(-8, 8, (6, 5)).astype(np.int8)
    packed = encodings.transposed_nibbles(quants)
    proto = TensorProto(name="q", data_type=TensorProto.INT4, dims=(5, 6), raw_data=packed.tobytes())
    np.testing.assert_array_equal(numpy_helper.to_array(proto).astype(np.int8), quants.T)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_fill_a_short_group_with_zero(bits: int) -> None:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    quants = np.random.default_rng(0).integers(low, high, (3, 40)).astype(np.int8)
    found = encodings.blocks(quants, bits, 32)
    assert found.shape == (3, 64 * bits // 8) and found.dtype == np.uint8
    values = found if bits == 8 else np.stack([found & 15, found >> 4], axis=-1).reshape(3, -1)
    np.testing.assert_array_equal(values[:, :40].astype(int) + low, quants)
    assert (values[:, 40:] == high).all()


@pytest.mark.parametrize("scheme", ["keep", "f16", "bf16", "int8", "int4:asym"])
@pytest.mark.parametrize("form", FORMS)
def test_every_weight_reads_back_as_it_was_meant(
    form: str, scheme: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made, evaluator = written(checkpoint, tmp_path, form, scheme), WeightEvaluator(checkpoint.read_rows)
    model = WrittenModel(tmp_path)
    assert covered(made.stored) == model.external
    for stored in made.stored.values():
        rows = np.concatenate([part.reshape(-1) for _, part in model.rows(stored)])
        meant = evaluator.rows(stored.weight, *stored.rows)
        np.testing.assert_array_equal(rows, meant.astype(np.float32).reshape(-1))


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_head_is_stored_once(form: str, checkpoint: Checkpoint) -> None:
    for scheme in ("keep", "int4"):
        places = emitted(checkpoint, form, scheme).data.tensors
        name = "embed" if scheme == "keep" else "embed.i8.quants"
        assert [place.weight.name for place in places].count(name) == 1
        assert not [place for place in places if "head" in place.weight.name]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_every_time(form: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written(checkpoint, tmp_path / folder, form, "int4")
    for file in (MODEL, DATA):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_the_interface_is_that_of_transformers(form: str, checkpoint: Checkpoint) -> None:
    graph = emitted(checkpoint, form).model.graph

    def shapes(values: object) -> dict[str, list[str | int]]:
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values  # type: ignore[attr-defined]
        }

    inputs, outputs = shapes(graph.input), shapes(graph.output)
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["past_key_values.3.value"] == ["batch", 2, "past", 16]
    assert outputs["logits"] == ["batch", "tokens", 131]
    assert outputs["present.0.key"] == ["batch", 2, "total", 16]
    assert len(inputs) == 3 + 8 and len(outputs) == 1 + 8


def test_the_standard_form_has_standard_operators(checkpoint: Checkpoint) -> None:
    model = emitted(checkpoint, "standard", "int4").model
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert {node.domain for node in model.graph.node} == {""}


def test_the_contributed_form_uses_the_contributed_operators(checkpoint: Checkpoint) -> None:
    kinds = {node.op_type for node in emitted(checkpoint, "contributed", "int4").model.graph.node if node.domain}
    assert kinds >= {"GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization"}


def test_an_unknown_op_is_named_with_its_layer_and_the_opset(checkpoint: Checkpoint) -> None:
    module = lowered(checkpoint)
    op = next(op for op in module.step.ops if op.opcode == "temper")
    op.opcode = "astrology"
    with pytest.raises(LlamacError) as caught:
        emit_standard(module, Settings(), lambda *entry: None, {})
    assert caught.value.code == "LLC0931"
    assert caught.value.where == "layers.3.attn"
    assert "astrology" in caught.value.reason and "21" in caught.value.reason


def test_an_input_without_a_place_is_refused(checkpoint: Checkpoint) -> None:
    module = lowered(checkpoint)
    module.step.arguments[2].name = "pictures"
    with pytest.raises(LlamacError, match="LLC0932 pictures"):
        emit_standard(module, Settings(), lambda *entry: None, {})


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library.INSTALL, "onnx_of_nowhere", "pip install nowhere")
    with pytest.raises(LlamacError) as caught:
        library.library("onnx_of_nowhere")
    assert (caught.value.code, caught.value.hint) == ("LLC0930", "pip install nowhere")


def test_a_table_of_four_bits_is_widened_with_a_word(tmp_path: Path) -> None:
    """GGUF files may hold the embedding in 4 bits: standard ONNX looks up bytes, which the ledger says."""
    path = tmp_path / "tiny.gguf"
    shape = TinyShape(group=2, head_dim=64, width=128, inner=128, tied=True)
    write_tiny_gguf(path, shape, lambda name: Type.F32 if "norm" in name else Type.Q4_0)
    source, ids = open_source(path), some_ids(131, 9)
    reference = interpreted(lowered(source), source, ids)
    for form, widened in (("standard", {"embed"}), ("contributed", set())):
        notes: Notes = []
        written(source, tmp_path, form, notes=notes)
        assert {where for _, where, *_ in notes} == widened
        assert relative_error(Running(tmp_path).step([ids])[0], reference) < 1e-4
    assert onnx.load(tmp_path / MODEL, load_external_data=False).ir_version == 10

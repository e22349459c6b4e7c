"""ONNX models that cannot be imported: each is one coded error that says which node, file or tensor is at fault."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.models.llama.graph import inverse_frequencies
from llamac.models.onnx_import.entry import onnx_file, open_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
from onnx import TensorProto, helper  # noqa: E402

FOLDER = Path(__file__).parent / "optimum_model"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """The model that optimum made, after a change."""

    def make(change: Callable[[Any], object], **options: Any) -> Path:
        shutil.copytree(FOLDER, tmp_path / "model")
        model = onnx.load(FOLDER / "model.onnx")
        change(model)
        path = tmp_path / "model" / "model.onnx"
        onnx.save(model, path, **options)
        return path

    return make


def node_of(model: Any, op: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op)


def refusal(path: Path) -> str:
    with pytest.raises(LlamacError) as caught:
        open_onnx(path)
    return caught.value.message()


def test_an_op_outside_the_set_names_itself_its_node_and_the_opset(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        node_of(model, "Softmax").op_type = "Hardmax"

    found = refusal(changed(change))
    assert found.startswith(
        "LLC0935 /model/layers.0/self_attn/Softmax: Hardmax (opset 18) is outside the supported set"
    )


def test_an_op_of_another_domain_names_that(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        node = node_of(model, "Softmax")
        node.domain, node.op_type = "com.acme", "Attend"
        model.opset_import.append(helper.make_opsetid("com.acme", 3))

    assert "com.acme.Attend (opset 3 of com.acme) is outside" in refusal(changed(change))


@pytest.mark.parametrize(
    ("op", "attribute", "value", "reason"),
    [
        ("Softmax", "axis", 2, "a softmax over another axis than the last"),
        ("ReduceMean", "keepdims", 0, "a mean over another axis than the last, or without keeping it"),
        ("Cast", "to", 17, "a cast to ONNX type 17"),
        ("Transpose", "perm", [0, 0, 1], "the permutation [0, 0, 1] of rank 3"),
    ],
)
def test_a_known_op_in_another_form_says_what_is_wrong(
    changed: Callable[..., Path], op: str, attribute: str, value: Any, reason: str
) -> None:
    def change(model: Any) -> None:
        node = node_of(model, op)
        kept = [a for a in node.attribute if a.name != attribute]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(attribute, value)])

    found = refusal(changed(change))
    assert found.startswith("LLC0935 ") and f"{op} (opset 18): " in found and reason in found


def test_sizes_that_do_not_fit_are_told_of_the_node(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        node = next(n for n in model.graph.node if n.name.endswith("layers.0/mlp/Mul"))
        node.input[1] = "/model/layers.0/self_attn/o_proj/MatMul_output_0"

    found = refusal(changed(change))
    assert found.startswith("LLC0935 /model/layers.0/mlp/Mul: Mul (opset 18): ")


def test_weights_that_do_not_make_a_llama_are_refused_as_those_of_a_module(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        node = next(n for n in model.graph.node if n.name.endswith("layers.1/mlp/act_fn/Sigmoid"))
        node.op_type = "Cos"

    assert refusal(changed(change)).startswith("LLC0318 ")


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../b", "", ".", "C:\\x", "link.bin"])
def test_data_outside_the_folder_is_refused(changed: Callable[..., Path], location: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))

    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        _make_external(tensor, {"location": location})

    path = changed(change)
    (path.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    assert "LLC0936" in refusal(path) and "which is not in the model's folder" in refusal(path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "gone.bin"}, "LLC0205 gone.bin: missing"),
        ({"location": "w.bin", "offset": "64"}, "bytes 64 to 192 of w.bin (128 bytes)"),
        ({"location": "w.bin", "length": "127"}, "bytes 0 to 127"),
        ({"location": "w.bin", "offset": "-1"}, "its offset is '-1'"),
        ({"location": "w.bin", "offset": "9" * 30}, "its offset is"),
    ],
)
def test_external_data_must_be_there_and_fit(
    changed: Callable[..., Path], entries: dict[str, str], reason: str
) -> None:
    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [32])
        _make_external(tensor, entries)

    path = changed(change)
    (path.parent / "w.bin").write_bytes(bytes(128))
    assert reason in refusal(path)


def _make_external(tensor: Any, entries: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        made = tensor.external_data.add()
        made.key, made.value = key, value


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [32])
        tensor.raw_data = tensor.raw_data[:-4]

    assert "124 bytes are stored, its shape [32] needs 128" in refusal(changed(change))


def test_a_model_that_returns_no_keys_for_those_it_takes_is_no_step(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        del model.graph.output[1:]

    found = refusal(changed(change))
    assert found.startswith("LLC0937 model.onnx: it takes 4 tensors of keys and values and returns 0")


@pytest.mark.parametrize("change", [None, "epsilon"], ids=["plain", "epsilon"])
def test_a_model_alone_says_its_config(tmp_path: Path, change: str | None) -> None:
    """Every fact is in the ledger, and so is what no graph says."""
    model = onnx.load(FOLDER / "model.onnx")
    _set(_constants(model, 1e-5), 1e-6 if change else 1e-5)
    onnx.save(model, tmp_path / "alone.onnx")
    config, expected = open_onnx(tmp_path / "alone.onnx").config, open_onnx(FOLDER / "model.onnx").config
    same = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size", "tied_head")
    assert [getattr(config, name) for name in same] == [getattr(expected, name) for name in same]
    np.testing.assert_allclose(inverse_frequencies(config), inverse_frequencies(expected), rtol=1e-6)
    assert config.rms_norm_eps == pytest.approx(1e-6 if change else 1e-5)
    ledger = open_onnx(tmp_path / "alone.onnx").checkpoint.ledger
    said = {entry["where"] for entry in ledger}
    assert {f"config {name}" for name in (*same[:-1], "rope_theta", "rope_scaling", "context_length")} <= said
    assert {"stop ids", "tokenizer"} <= said


def test_a_model_alone_whose_products_are_not_those_of_layers_is_refused(tmp_path: Path) -> None:
    model = onnx.load(FOLDER / "model.onnx")
    del model.graph.node[-1]
    onnx.save(model, tmp_path / "alone.onnx")
    assert "products with weights, and no config.json says how many layers" in refusal(tmp_path / "alone.onnx")


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"head_dim": 8', '"head_dim": 16'))
    assert refusal(tmp_path / "m" / "model.onnx").startswith("LLC0937 model.onnx: past_key_values.0.key has the shape")


def test_several_models_in_a_folder_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(FOLDER / "model.onnx", tmp_path / name)
    with pytest.raises(LlamacError, match=r"LLC0201 .*2 ONNX models in one folder: a\.onnx, b\.onnx"):
        onnx_file(tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it holds no graph"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field ends at byte"),
        (b"\x3a" + b"\xff" * 11, "a number of more than 10 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LLC0202"),
        (b"PK\x03\x04 no model at all", "LLC0936"),
    ],
)
def test_files_that_are_no_model_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    assert reason in refusal(tmp_path / "model.onnx")


def test_damage_anywhere_is_a_coded_error_or_harmless(tmp_path: Path) -> None:
    """Bytes of the structure changed, cut off or doubled; weights may change without notice, as in any format."""
    shutil.copytree(FOLDER, tmp_path / "m")
    path, whole = tmp_path / "m" / "model.onnx", (FOLDER / "model.onnx").read_bytes()
    choose = random.Random(1)
    structure = len(whole) - 60_000
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 4)):
            place = choose.choice((choose.randrange(structure), choose.randrange(4000)))
            what = choose.random()
            if what < 0.7:
                data[place] = choose.randrange(256)
            elif what < 0.85:
                del data[place : place + choose.randint(1, 40)]
            else:
                data[place:place] = data[place : place + choose.randint(1, 40)]
        path.write_bytes(data)
        try:
            open_onnx(path)
        except LlamacError:
            refused += 1
    assert refused > 20


def _constants(model: Any, near: float) -> list[Any]:
    """The constant tensors, float32 scalars, that hold about `near`."""
    found = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    return [t for t in found if t.data_type == 1 and not t.dims and abs(float(_value(t)) - near) < near / 100]


def _value(tensor: Any) -> Any:
    return onnx.numpy_helper.to_array(tensor)


def _set(tensors: list[Any], value: float) -> None:
    for tensor in tensors:
        tensor.raw_data = np.float32(value).tobytes()


def test_the_graphs_epsilon_counts_and_one_that_varies_is_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    path = changed(lambda model: _set(_constants(model, 1e-5), 1e-6))
    model = open_onnx(path)
    assert model.config.rms_norm_eps == pytest.approx(1e-6)
    assert any(e["where"] == "rms_norm_eps" and "1e-06 instead of 1e-05" in e["what"] for e in model.checkpoint.ledger)
    model = onnx.load(path)
    _set(_constants(model, 1e-6)[:1], 2e-6)
    onnx.save(model, path)
    assert "LLC0937 model.onnx: its norms add 1e-06, 2e-06" in refusal(path)


def test_another_scale_than_that_of_a_llama_is_refused(changed: Callable[..., Path]) -> None:
    path = changed(lambda model: _set(_constants(model, 8**-0.25)[:1], 0.5))
    assert "LLC0937 model.onnx: scores are scaled by 0.297301" in refusal(path)


def test_frequencies_that_the_config_does_not_give_are_those_of_the_graph(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        held = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
        (tensor,) = [t for t in held if list(t.dims) == [1, 4, 1]]
        tensor.raw_data = (_value(tensor) / np.float32([1, 2, 2, 4])[None, :, None]).astype("<f4").tobytes()

    model = open_onnx(changed(change))
    assert model.config.rope_scaling is not None and model.config.rope_scaling.kind == "divisors"
    assert any("rotary frequencies as the graph has them" in e["what"] for e in model.checkpoint.ledger)


def _with_bits(tensors: dict[str, Any], **attributes: int) -> Callable[[Any], None]:
    """The head as MatMulNBits of 64 outputs and 32 inputs."""

    def change(model: Any) -> None:
        sizes = {"K": 32, "N": 64, "bits": 4, "block_size": 32} | attributes
        last = model.graph.node[-1]
        node = helper.make_node(
            "MatMulNBits", [last.input[0], *tensors], ["logits"], "head", domain="com.microsoft", **sizes
        )
        del model.graph.node[-1]
        model.graph.node.append(node)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in tensors.items())
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    return change


_BITS = {"q": np.zeros((64, 1, 16), np.uint8), "s": np.ones((64, 1), np.float32), "z": np.zeros((64, 1), np.uint8)}


@pytest.mark.parametrize(
    ("tensors", "attributes", "reason"),
    [
        (_BITS | {"q": np.zeros((64, 1, 15), np.uint8)}, {}, "LLC0936 q: 960 stored integers for 64 x 32"),
        (_BITS | {"s": np.ones((63, 1), np.float32)}, {}, "63 scales or zero points for 64 rows of 1 groups"),
        (_BITS | {"z": np.zeros((63, 1), np.uint8)}, {}, "LLC0936 z: 63 stored integers for 64 x 2"),
        (_BITS | {"z": np.zeros((64, 3), np.float32)}, {}, "192 scales or zero points for 64 rows of 1 groups"),
        (_BITS | {"s": np.ones((64, 1), np.int64)}, {}, "no stored scales or zero points"),
        (_BITS, {"block_size": 24}, "4 bits in blocks of 24"),
        (_BITS, {"bits": 2}, "2 bits in blocks of 32"),
        (_BITS, {"N": -64}, "-64 x 32"),
        (_BITS, {"K": 1 << 40}, "stored integers for 64 x 1099511627776"),
        (_BITS | {"order": np.zeros(32, np.int32)}, {}, "an order of groups, or a bias"),
    ],
)
def test_integers_that_do_not_fit_are_refused(
    changed: Callable[..., Path], tensors: dict[str, Any], attributes: dict[str, int], reason: str
) -> None:
    assert reason in refusal(changed(_with_bits(tensors, **attributes)))


def _with_scaled(scale: Any, quants: Any, **attributes: int) -> Callable[[Any], None]:
    """The head as DequantizeLinear of a matrix [32, 64]."""

    def change(model: Any) -> None:
        arrays = {"head.q": quants, "head.s": scale}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
        node = helper.make_node("DequantizeLinear", list(arrays), ["head.w"], "head.dq", **attributes)
        model.graph.node[-1].input[1] = "head.w"
        model.graph.node.insert(len(model.graph.node) - 1, node)

    return change


_SCALED = np.zeros((32, 64), np.int8)


@pytest.mark.parametrize(
    ("scale", "quants", "attributes", "reason"),
    [
        (np.ones(32, np.float32), _SCALED, {"axis": 1}, "scales or zero points of shape [32], expected [64]"),
        (np.ones(32, np.float32), _SCALED, {"axis": 0}, "minima of shape [1, 32] for 64 rows of 1 groups"),
        (np.ones((2, 64), np.float32), _SCALED, {"axis": 0, "block_size": 8}, "shape [2, 64], expected [4, 64]"),
        (np.ones((4, 64), np.float32), _SCALED, {"axis": 0, "block_size": 8}, "groups of 8, and kernels have those of"),
        (np.ones((4, 64), np.float32), _SCALED, {"axis": 0, "block_size": -8}, "block_size -8"),
        (np.ones(64, np.float32), _SCALED, {"axis": 7}, "axis 7 of a tensor of rank 2"),
        (np.ones(64, np.float32), np.zeros((1, 32, 64), np.int8), {"axis": 1}, "a tensor of shape [1, 32, 64]"),
        (np.ones(64, np.float32), np.zeros((32, 64), np.int32), {"axis": 1}, "it does not read stored integers"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    changed: Callable[..., Path], scale: Any, quants: Any, attributes: dict[str, int], reason: str
) -> None:
    found = refusal(changed(_with_scaled(scale, quants, **attributes)))
    assert reason in found and found.startswith("LLC0935 ")


def test_activations_that_are_rounded_by_fixed_scales_are_refused(changed: Callable[..., Path]) -> None:
    def change(model: Any) -> None:
        last = model.graph.node[-1]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "a.s"))
        made = [
            helper.make_node("QuantizeLinear", [last.input[0], "a.s"], ["a.q"], "a.round"),
            helper.make_node("DequantizeLinear", ["a.q", "a.s"], ["a.dq"], "a.back"),
        ]
        last.input[0] = "a.dq"
        for node in made:
            model.graph.node.insert(len(model.graph.node) - 1, node)

    found = refusal(changed(change))
    assert found.startswith("LLC0935 a.round: QuantizeLinear (opset 18): activations that are rounded by fixed scales")
    assert found.endswith("quantize the weights alone")

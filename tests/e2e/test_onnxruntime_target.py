"""`--target onnxruntime`: artifacts whose device is ONNX Runtime give what transformers and llamac's own code give."""

from __future__ import annotations

import builtins
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepping import in_chunks, side_by_side
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_llama4 import reference_logits as llama4_logits

import llamac
from llamac.artifact.read import Artifact
from llamac.artifact.write import ArtifactWriter
from llamac.errors import LlamacError
from llamac.models.sources import embedded_model
from llamac.runtime.golden import replay
from llamac.runtime.loader import load
from llamac.runtime.onnx_places import moved

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[test]'")

SHAPE = TinyShape(tied=True)
IDS = some_ids(SHAPE.vocab, 90)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime's graph and llamac's own code in one file."""
    path = tmp_path_factory.mktemp("made") / "model.llamac"
    options: dict[str, Any] = {"quantize": "f32", "kv": "f32", "tokenizer": False, "max_step_tokens": 32}
    llamac.compile(checkpoint, target=["cpu", "onnxruntime"], output=path, **options)
    return path


def test_logits_are_those_of_transformers_however_the_ids_are_cut(artifact: Path) -> None:
    expected = reference_logits(make_reference(SHAPE), IDS)
    with load(artifact, device="onnxruntime", sequences=3) as model:
        assert model.target.kind == "onnxruntime"
        assert relative_error(model.logits(IDS), expected) < 1e-5
        assert relative_error(in_chunks(model, IDS, [1, 7, 1, 1]), expected) < 1e-5
        texts = [IDS[:20], IDS[30:61], IDS[5:29]]
        for ids, found in zip(texts, side_by_side(model, texts, [[3, 9], [1, 2, 20], []]), strict=True):
            assert relative_error(found, reference_logits(make_reference(SHAPE), ids)) < 1e-5


def test_greedy_text_is_that_of_llamacs_own_code(artifact: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0, "ignore_stop_ids": True}
    found = []
    for device in ("cpu", "onnxruntime"):
        with load(artifact, device=device, sequences=2) as model:
            found.append([g.token_ids for g in model.generate_batch([IDS[:9], IDS[20:50]], **options)])
            guessed = model.generate(IDS[:9], speculate="lookup", **options)
            assert guessed.token_ids == found[-1][0]
    assert found[0] == found[1]


def test_a_file_for_onnxruntime_alone_holds_no_other_code_or_weights(checkpoint: Path, tmp_path: Path) -> None:
    made = llamac.compile(
        checkpoint, target="onnxruntime", output=tmp_path / "m.llamac", quantize="f32", tokenizer=False
    )
    with Artifact.open(made.path, "full") as opened:
        names = set(opened.members)
    assert {"onnx/model.onnx", "weights/onnx.bin", "ir/step.onnx.ir"} <= names
    assert not any(name.startswith(("code/", "weights/cpu")) for name in names)
    (target,), (weights,) = made.manifest["targets"], made.manifest["weights"]
    assert (target["kind"], target["layout"], weights["member"]) == ("onnxruntime", "onnx", "weights/onnx.bin")
    assert made.manifest["memory"]["kv_dtype"] == "f32"
    assert made.manifest["onnx"]["ir"] == "ir/step.onnx.ir" and made.manifest["onnx"]["passes"]
    with load(made.path) as model:
        assert model.target.name == "onnxruntime"
        assert relative_error(model.logits(IDS), reference_logits(make_reference(SHAPE), IDS)) < 1e-5


def test_the_same_input_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"target": "onnxruntime", "quantize": "int4", "tokenizer": False, "validate": False}
    paths = [tmp_path / "a.llamac", tmp_path / "b.llamac"]
    for path in paths:
        llamac.compile(checkpoint, output=path, **options)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(("scheme", "bound"), [("f16", 1e-5), ("bf16", 3e-2), ("int8", 2e-2), ("int4", 4e-2)])
def test_quantized_weights_are_those_of_llamacs_own_code(
    checkpoint: Path, tmp_path: Path, scheme: str, bound: float
) -> None:
    """Both round activations to 8 bits before integers are multiplied, in other groups; llamac's to bf16 for bf16."""
    options: dict[str, Any] = {"quantize": scheme, "kv": "f32", "tokenizer": False, "validate": False}
    made = llamac.compile(checkpoint, target=["cpu", "onnxruntime"], output=tmp_path / "m.llamac", **options)
    found = []
    for device in ("cpu", "onnxruntime"):
        with load(made.path, device=device) as model:
            found.append(model.logits(IDS))
    assert relative_error(found[1], found[0]) < bound


def test_llama4_runs_with_its_chunks_and_experts(tmp_path: Path) -> None:
    shape = Tiny4()
    reference = make_model(shape)
    source = save_model(reference, shape, tmp_path / "source")
    options: dict[str, Any] = {"quantize": "f32", "tokenizer": False, "validate": False}
    made = llamac.compile(source, target="onnxruntime", output=tmp_path / "m.llamac", **options)
    ids = some_ids(131, 40)
    with load(made.path) as model:
        assert relative_error(in_chunks(model, ids, [9, 1]), llama4_logits(reference, ids)) < 1e-4


@pytest.mark.slow
def test_smollm2_writes_the_same_text(tmp_path: Path) -> None:
    found = []
    for target in ("cpu", "onnxruntime"):
        path = tmp_path / f"{target}.llamac"
        llamac.compile(embedded_model(), target=target, output=path, quantize="f32", validate=False)
        with load(path) as model:
            text = model.generate("The capital of France is", max_new_tokens=48, temperature=0, ignore_stop_ids=True)
            found.append(text.token_ids)
            assert all(verdict.passed for verdict in replay(model))
    assert found[0] == found[1]


def test_without_onnxruntime_the_error_says_what_to_install(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return whole(name, package)

    monkeypatch.setattr("llamac.runtime.device_onnxruntime.import_module", without)
    with pytest.raises(
        LlamacError, match=r"LLC0938 onnxruntime: it cannot be imported: .*Next: pip install onnxruntime"
    ):
        load(artifact, device="onnxruntime")
    load(artifact, device="cpu").close()


def test_without_onnx_nothing_is_compiled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("llamac.backends.onnx.library.import_module", without)
    with pytest.raises(LlamacError, match=r"LLC0930 onnx: it cannot be imported"):
        llamac.compile(checkpoint, target="onnxruntime", output=tmp_path / "m.llamac", tokenizer=False)
    assert not list(tmp_path.iterdir())


def test_the_device_must_be_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    llamac.compile(checkpoint, output=tmp_path / "m.llamac", tokenizer=False, validate=False)
    with pytest.raises(LlamacError, match=r"LLC0801 .*no code that onnxruntime runs.*--target onnxruntime"):
        load(tmp_path / "m.llamac", device="onnxruntime")


@pytest.mark.parametrize(
    ("graph", "code"),
    [
        (b"\x3a\x05\x2a\x7f", "LLC0711"),
        (b"\x3f", "LLC0711"),
        (b"\x08\x0a", "LLC0938"),
    ],
)
def test_a_damaged_graph_is_one_coded_error(artifact: Path, tmp_path: Path, graph: bytes, code: str) -> None:
    path = tmp_path / "damaged.llamac"
    with Artifact.open(artifact) as opened, ArtifactWriter(path) as writer:
        for name in opened.members:
            if name != "onnx/model.onnx" and not name.startswith("manifest"):
                writer.add_bytes(name, opened.member_bytes(name))
        writer.add_bytes("onnx/model.onnx", graph)
        manifest = {key: value for key, value in opened.manifest.items() if key != "members"}
        writer.finish(manifest)
    with pytest.raises(LlamacError, match=code):
        load(path, device="onnxruntime")


def test_only_places_of_weights_are_changed_in_the_graph(artifact: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    with Artifact.open(artifact) as opened:
        graph = opened.member_bytes("onnx/model.onnx")
    before, after = (onnx.load_model_from_string(g) for g in (graph, moved(graph, "other.bin", 4096, "graph")))
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        places = [{e.key: e.value for e in t.external_data} for t in (old, new)]
        if places[0]:
            assert places[1]["location"] == "other.bin"
            assert int(places[1]["offset"]) == int(places[0]["offset"]) + 4096
        for tensor in (old, new):
            tensor.ClearField("external_data")
    assert before == after


def test_nothing_is_imported_for_other_devices(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def watched(name: str, *rest: Any) -> Any:
        assert not name.startswith("onnx"), f"{name} is imported for the CPU"
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    with load(artifact, device="cpu") as model:
        assert np.isfinite(model.logits(IDS[:3])).all()

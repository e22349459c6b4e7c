"""Llama 4's image encoder beside a GGUF file: names from the package `gguf`, values, and the two read as one model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_images import logits
from tiny_llama import relative_error
from tiny_pictures import IDS4, SHAPE4, TILE, llama4_logits, make_llama4, picture

import llamac
from llamac.errors import LlamacError
from llamac.export.entry import ExportResult, export
from llamac.export.gguf import llama_cpp_images
from llamac.export.gguf.image_checks import by_columns, interpreted_tokens
from llamac.export.model_weights import ModelWeights
from llamac.models.llama.vision_config import Llama4Vision
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import open_source

WAY = {"pre": "llama4"}
"""How the tiny tokenizer's text is cut, which its file does not say."""
SAMPLES = np.random.default_rng(5).integers(0, 256, (TILE, TILE, 3), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, ExportResult]:
    """A Llama 4 that sees, of llama.cpp's constants, and its export as it is stored."""
    place = tmp_path_factory.mktemp("images")
    model = make_llama4(place / "m", replace(SHAPE4, chunk=8192, floor=8192))
    whole_tokenizer(place / "m")
    return place, model, export(place / "m", to="gguf", output=place / "out", options=WAY, check=True)


def whole_tokenizer(folder: Path) -> None:
    """GGUF knows no vocabulary without merges, and one end of texts. No text in UTF-8 has the byte 255."""

    def merged(document: Any) -> None:
        vocabulary = {token: number for token, number in document["model"]["vocab"].items() if number != 255}
        document["model"].update(vocab=vocabulary | {"he": 255}, merges=[["h", "e"]])

    edits: dict[str, Callable[[Any], Any]] = {
        "tokenizer.json": merged,
        "tokenizer_config.json": lambda d: d.update(clean_up_tokenization_spaces=False),
        "config.json": lambda d: d["text_config"].update(eos_token_id=IDS4["<|eot|>"], bos_token_id=256),
    }
    for name, edit in edits.items():
        document = json.loads((folder / name).read_text())
        edit(document)
        (folder / name).write_text(json.dumps(document))


def test_every_tensor_arrives(made: tuple[Path, Any, ExportResult]) -> None:
    """Under the names that llama.cpp's converter gives transformers' weights, with the same values."""
    place, model, result = made
    assert result.checks is not None
    checks = {check.name: check for check in result.checks}
    assert {"image encoder, table", "image encoder, config", "image encoder, values"} <= set(checks)
    assert not [entry for entry in result.ledger if entry.where == "vision"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 34)
    wanted = {}
    for name, value in model.state_dict().items():
        if name.startswith(("vision_model", "multi_modal_projector")):
            # The converter has two rules beside the table; and the table of gguf 0.19 has for one norm the place that
            # another encoder has for it, behind the attention, where clip.cpp does not look for Llama 4's.
            full = name.replace("positional_embedding_vlm", "positional_embedding_vlm.weight")
            stored = names.get_name(full, try_suffixes=(".weight", ".bias"))
            assert stored is not None, name
            stored = "mm.model.fc.weight" if "linear_1" in name else stored.replace("attn_post_norm", "ln2")
            wanted[stored] = value.numpy()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(place / "out" / "mmproj.gguf").tensors}
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        assert np.array_equal(tensor.data, wanted[name]), name


def test_the_keys_are_those_that_clip_reads(made: tuple[Path, Any, ExportResult]) -> None:
    fields = {name: field.contents() for name, field in gguf.GGUFReader(made[0] / "out" / "mmproj.gguf").fields.items()}
    keys = gguf.Keys
    expected = {
        keys.General.ARCHITECTURE: "clip",
        keys.General.TYPE: gguf.GGUFType.MMPROJ,
        keys.Clip.PROJECTOR_TYPE: gguf.VisionProjectorType.LLAMA4,
        keys.Clip.HAS_VISION_ENCODER: True,
        keys.ClipVision.USE_GELU: True,
        keys.ClipVision.IMAGE_SIZE: TILE,
        keys.ClipVision.PATCH_SIZE: 7,
        keys.ClipVision.EMBEDDING_LENGTH: 32,
        keys.ClipVision.FEED_FORWARD_LENGTH: 128,
        keys.ClipVision.BLOCK_COUNT: 2,
        keys.ClipVision.PROJECTION_DIM: 64,
        keys.ClipVision.Attention.HEAD_COUNT: 2,
        keys.ClipVision.Attention.LAYERNORM_EPS: float(np.float32(1e-5)),
        keys.ClipVision.Projector.SCALE_FACTOR: 2,
        keys.ClipVision.IMAGE_MEAN: [0.5] * 3,
        keys.ClipVision.IMAGE_STD: [0.5] * 3,
    }
    assert {name: fields.get(name) for name in expected} == expected


def test_it_is_read_back_as_one_model(made: tuple[Path, Any, ExportResult]) -> None:
    """The folder, and the file in it, see: the tokens of a tile are transformers'."""
    place, model, _ = made
    source, back = open_source(place / "m"), open_source(place / "out")
    assert back.config.vision == source.config.vision
    assert open_source(place / "out" / "model.gguf").config.vision == source.config.vision
    pixels = torch.from_numpy(((SAMPLES.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        seen = model.vision_model(pixels).last_hidden_state
        expected = model.multi_modal_projector(seen.reshape(-1, seen.shape[-1])).numpy()
    found = interpreted_tokens(back, SAMPLES)
    assert relative_error(found, expected) < 1e-5
    assert np.array_equal(by_columns(found), found[[0, 2, 1, 3]])


@pytest.mark.slow
def test_pictures_in_compiled_code(made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    """Both files through the compiler: a prompt with a picture of several tiles has transformers' logits."""
    options = {"quantize": "f32", "kv": "f32", "context": 512, "validate": False, "max_step_tokens": 128}
    llamac.compile(made[0] / "out", output=tmp_path / "m.llamac", **options)
    with llamac.load(tmp_path / "m.llamac", images=4) as model:
        prompt = model.encode_with_images("Look: <|image|>what is it?", [picture(60, 50, 1)])
        assert len(prompt.ids) > 40
        assert relative_error(logits(model, prompt), llama4_logits(made[1], prompt)) < 1e-5


@pytest.mark.parametrize(
    ("quantize", "options", "kind"),
    [("f16", {}, "F16"), ("q8_0", {}, "F32"), ("q8_0", {"mmproj": "bf16"}, "BF16"), ("keep", {"mmproj": "f16"}, "F16")],
    ids=str,
)
def test_types(
    quantize: str, options: dict[str, str], kind: str, made: tuple[Path, Any, ExportResult], tmp_path: Path
) -> None:
    options = WAY | options
    result = export(made[0] / "m", to="gguf", output=tmp_path / "o", quantize=quantize, options=options, check=True)
    assert result.checks is not None
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "o" / "mmproj.gguf").tensors}
    plain = {name for name in types if "ln" in name or "position" in name or not name.endswith("weight")}
    assert {types[name] for name in plain} == {"F32"} and {types[name] for name in set(types) - plain} == {kind}
    said = [entry.what for entry in result.ledger if entry.where == "vision"]
    assert said == (["mmproj.gguf has its matrices as F32"] if quantize == "q8_0" and "mmproj" not in options else [])


@pytest.mark.parametrize(
    ("output", "options", "changes", "reason"),
    [
        ("m.gguf", {}, {}, "has to be a folder"),
        ("out", {"mmproj": "none"}, {}, "--option mmproj=none"),
        ("out", {}, {"rope_theta": 5000.0}, "its rotary base is 5000, and llama.cpp has 10000"),
        ("out", {}, {"norm_eps": 1e-6}, "its blocks' epsilon is 1e-06"),
    ],
    ids=["one file", "not wanted", "another base", "another epsilon"],
)
def test_what_is_left_out_is_said(
    output: str, options: dict[str, str], changes: dict[str, Any], reason: str,
    made: tuple[Path, Any, ExportResult], tmp_path: Path,
) -> None:  # fmt: skip
    checkpoint = open_source(made[0] / "m")
    assert isinstance(checkpoint.config.vision, Llama4Vision)
    config = replace(checkpoint.config, vision=replace(checkpoint.config.vision, **changes))
    result = export(replace(checkpoint, config=config), to="gguf", output=tmp_path / output, options=WAY | options)
    (left,) = [entry for entry in result.ledger if entry.where == "vision"]
    assert left.kind == "absent" and reason in left.reason
    assert not (tmp_path / output / "mmproj.gguf").exists()


def test_a_type_that_it_cannot_have(made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0947 --option mmproj: 'q8_0' is no type of matrices in it"):
        export(made[0] / "m", to="gguf", output=tmp_path / "o", options=WAY | {"mmproj": "q8_0"})
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    """The file is written and compared; whose pictures' tokens are unknown, the text is read alone."""
    vision = preset("llama-4-scout").vision
    assert isinstance(vision, Llama4Vision)
    small = replace(vision, hidden_size=32, intermediate_size=64, layers=1, heads=2, image_size=28, patch_size=7,
                    adapter_hidden=16, adapter_output=16)  # fmt: skip
    config = replace(SHAPE4.config(), vision=small)
    assert config.attention is not None
    config = replace(config, attention=replace(config.attention, chunk=8192, temperature_floor=8192.0))
    result = export(random_checkpoint(config, 0), to="gguf", output=tmp_path / "out", check=True)
    assert result.checks is not None and any(check.name == "image encoder, values" for check in result.checks)
    back = open_source(tmp_path / "out")
    assert back.config.vision is None and any("<|patch|>" in entry["reason"] for entry in back.ledger)


PEER = """
import runpy, sys
import numpy as np
code, text, images, samples, out = sys.argv[1:]
name, found = runpy.run_path(code)["llama_cpp_embeddings"](text, images, np.load(samples), 64)
np.save(out, found)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bound"), [("f32", 2e-3), ("f16", 1e-2), ("bf16", 3e-2)])
def test_llama_cpp_sees_the_same(kind: str, bound: float, made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    """Its own code on the written files: the tokens of a tile, which it hands on by columns."""
    own = sys.executable if importlib.util.find_spec("llama_cpp") else None
    peer = os.environ.get("LLAMAC_BENCH_LLAMA_CPP", own)
    if peer is None:
        pytest.skip("no llama.cpp: make bench-peers, or LLAMAC_BENCH_LLAMA_CPP=PYTHON with llama-cpp-python")
    export(made[0] / "m", to="gguf", output=tmp_path / "o", options=WAY | {"mmproj": kind})
    np.save(tmp_path / "samples.npy", SAMPLES)
    files = [llama_cpp_images.__file__, *(tmp_path / "o" / name for name in ("model.gguf", "mmproj.gguf"))]
    files += [tmp_path / name for name in ("samples.npy", "found.npy")]
    run = subprocess.run([peer, "-c", PEER, *map(str, files)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    ours = interpreted_tokens(open_source(tmp_path / "o"), SAMPLES)
    theirs = np.load(tmp_path / "found.npy")
    assert theirs.shape == ours.shape
    assert min(relative_error(theirs, tokens) for tokens in (ours, by_columns(ours))) < bound


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """The same file with other keys and tensors."""
    reader = gguf.GGUFReader(path)
    keys = {name: (field.contents(), field.types[0]) for name, field in reader.fields.items() if "." in name}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(keys, tensors)
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture")[0])
    for name, (value, kind) in keys.items():
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _key(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda keys, tensors: keys.update({name: (value, keys[name][1])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, t: t.pop("v.blk.1.ffn_up.bias"), r"LLC0206 vision\.layers\.1\.mlp\.up\.bias: .*v\.blk\.1\.ffn_up"),
        (lambda k, t: t.update({"v.extra": t["v.class_embd"]}), "LLC0207 vision: v.extra"),
        (lambda k, t: t.update({"v.class_embd": t["v.class_embd"][:5]}), r"LLC0208 vision\.class_token"),
        (_key("clip.vision.block_count", 3), r"LLC0206 vision\.layers\.2"),
        (_key("clip.vision.block_count", 0), "LLC0303 mmproj.gguf"),
        (lambda k, t: k.pop("clip.vision.image_size"), "LLC0302 mmproj.gguf"),
        (_key("clip.vision.image_size", 30), "LLC0304 mmproj.gguf"),
        (_key("clip.vision.attention.head_count", 5), "LLC0304 mmproj.gguf"),
        (_key("clip.vision.image_mean", [0.4] * 3), "LLC0308 mmproj.gguf"),
        (_key("clip.use_gelu", False), "LLC0306 mmproj.gguf"),
    ],
    ids=["lost", "surplus", "short", "more blocks", "no blocks", "no size", "odd size", "odd heads", "mean", "silu"],
)  # fmt: skip
def test_a_damaged_encoder(
    change: Callable[[Any, Any], None], message: str, made: tuple[Path, Any, ExportResult], tmp_path: Path
) -> None:
    shutil.copytree(made[0] / "out", tmp_path / "m")
    rewritten(tmp_path / "m" / "mmproj.gguf", change)
    with pytest.raises(LlamacError, match=message):
        open_source(tmp_path / "m")


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projection_dim"])
def test_an_encoder_of_another_model(key: str, made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "out", tmp_path / "m")
    rewritten(tmp_path / "m" / "mmproj.gguf", _key(key, "pixtral" if key.endswith("type") else 128))
    back = open_source(tmp_path / "m")
    assert back.config.vision is None
    assert any(entry["where"] == "vision" and key in entry["reason"] for entry in back.ledger)


def test_two_encoders(made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "out", tmp_path / "m")
    shutil.copy(tmp_path / "m" / "mmproj.gguf", tmp_path / "m" / "mmproj-F16.gguf")
    back = open_source(tmp_path / "m")
    assert back.config.vision is None and any("2 image encoders" in entry["reason"] for entry in back.ledger)


def test_a_file_that_ends_early(made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "out", tmp_path / "m")
    path = tmp_path / "m" / "mmproj.gguf"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(LlamacError, match=r"LLC02(03|13)"):
        open_source(tmp_path / "m")


def test_back_to_hugging_face(made: tuple[Path, Any, ExportResult], tmp_path: Path) -> None:
    """By way of GGUF every weight of the encoder is what it was."""
    export(made[0] / "out", to="hf", output=tmp_path / "hf", check=True)
    before, after = ModelWeights(open_source(made[0] / "m")), ModelWeights(open_source(tmp_path / "hf"))
    for name in before.names:
        if name.startswith("vision."):
            rows = before.stored(name).rows
            assert np.array_equal(before.rows(name, 0, rows), after.rows(name, 0, rows)), name

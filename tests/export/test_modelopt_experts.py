"""ModelOpt's form of Llama 4: experts fused, with the scales of its published checkpoints, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import captured_logits, kernel_graph
from safetensors.torch import load_file, save_file
from tiny_llama import relative_error, some_ids
from tiny_llama4 import Tiny4, make_model, reference_logits, save_model
from tiny_pictures import make_llama4

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.model_weights import ModelWeights
from llamac.models.sources import open_source

SHAPE = Tiny4()
EXPERTS = "model.layers.1.feed_forward.experts."
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plain folder, and what became of it."""
    place = tmp_path_factory.mktemp("experts")
    source = save_model(make_model(SHAPE), SHAPE, place / "m")
    result = export(source, to="modelopt", output=place / "out", check=True)
    assert result.checks is not None and [check.name for check in result.checks] == ["config", "weights", "logits"]
    made_up = [entry for entry in result.ledger if entry.kind == "default"]
    assert [entry.where for entry in made_up] == ["layers.N.moe"] and made_up[0].what.startswith("4 scales")
    return source, place / "out"


def edited(folder: Path, target: Path, edit: Callable[[State], State]) -> Path:
    """A copy of a folder with other tensors."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    state = edit(load_file(folder / "model.safetensors"))
    save_file({name: value.contiguous() for name, value in state.items()}, target / "model.safetensors")
    return target


def test_the_layout_of_published_checkpoints(folders: tuple[Path, Path]) -> None:
    """[experts, in, out] in e4m3fn, and single numbers beside it, under the names that ModelOpt gives its buffers."""
    state = load_file(folders[1] / "model.safetensors")
    config = SHAPE.config()
    assert config.moe is not None
    sizes = {"gate_up_proj": (4, 64, 192), "down_proj": (4, 96, 64)}
    assert {name for name in state if ".experts." in name} == {
        f"model.layers.{layer}.feed_forward.experts.{kind}{suffix}"
        for layer in config.moe.layers for kind in sizes for suffix in ("", "_weight_scale", "_input_scale")
    }  # fmt: skip
    for kind, shape in sizes.items():
        stored, scale = state[EXPERTS + kind], state[f"{EXPERTS}{kind}_weight_scale"]
        assert stored.dtype == torch.float8_e4m3fn and tuple(stored.shape) == shape
        assert scale.shape == () and scale.dtype == torch.float32
        assert state[f"{EXPERTS}{kind}_input_scale"].item() == 1
        plain = load_file(folders[0] / "model.safetensors")[EXPERTS + kind]
        assert scale.item() == pytest.approx(plain.abs().max().item() / 448, rel=1e-6)
        assert (stored.float() * scale - plain).abs().max() <= 2**-4 * plain.abs().max()
    assert state["model.layers.1.feed_forward.router.weight"].dtype == torch.float32
    assert state["model.layers.1.feed_forward.shared_expert.up_proj.weight_scale"].shape == ()
    settings = json.loads((folders[1] / "hf_quant_config.json").read_text())["quantization"]
    assert settings["quant_algo"] == "FP8" and settings["exclude_modules"] == ["lm_head", "*router*"]


def test_it_compiles_and_computes(folders: tuple[Path, Path]) -> None:
    """transformers on the dequantized numbers is the oracle; the compiler keeps the integers of every expert."""
    model = make_model(SHAPE)
    state = load_file(folders[1] / "model.safetensors")
    floats: State = {}
    for name, value in state.items():
        scale = state.get(f"{name}_weight_scale", state.get(f"{name.removesuffix('.weight')}.weight_scale"))
        if not name.endswith("_scale"):
            floats[name] = value.float() if scale is None else value.float() * scale
    model.load_state_dict(floats)
    checkpoint, ids = open_source(folders[1]), some_ids(SHAPE.vocab, 16)
    assert relative_error(captured_logits(checkpoint, ids), reference_logits(model, ids)) < 1e-5
    for name in ("gate", "up", "down"):
        assert checkpoint.tensors[f"layers.1.moe.{name}"].encoding == "fp8-tensor-sym-f32"
    formats = {p.format for p in kernel_graph(checkpoint, "keep").placed if ".moe." in p.weight.name}
    assert "e4m3fnx2" in formats


def test_it_is_exported_again_as_it_is(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Integers and scales stay; measured scales of activations are the source's, and nothing is made up."""

    def measured(state: State) -> State:
        return state | {name: torch.tensor(0.25) for name in state if name.endswith("proj_input_scale")}

    source = edited(folders[1], tmp_path / "m", measured)
    result = export(source, to="modelopt", output=tmp_path / "out", check=True)
    assert not [entry for entry in result.ledger if entry.kind == "default"]
    before, after = (load_file(place / "model.safetensors") for place in (source, tmp_path / "out"))
    assert set(before) == set(after)
    for name in before:
        assert before[name].float().equal(after[name].float()), name


@pytest.mark.parametrize("form", ["rows", "flat rows", "experts", "one by one"])
def test_other_forms_of_scales(form: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Per channel, as FP8_PER_CHANNEL_PER_TOKEN has it, and one number for each expert."""
    expected: dict[str, torch.Tensor] = {}

    def scaled(state: State) -> State:
        found = dict(state)
        for name, value in state.items():
            if value.ndim != 3:
                continue
            experts, _, outputs = value.shape
            numbers = torch.rand(experts, outputs if "rows" in form else 1) + 0.5
            expected[name] = value.float() * numbers[:, None]
            shape = {"rows": (experts, 1, outputs), "flat rows": (experts, outputs)}.get(form, (experts,))
            found[f"{name}_weight_scale"] = numbers.reshape(shape)
            if form == "one by one":
                found |= one_by_one(found.pop(name), name, found.pop(f"{name}_weight_scale"))
        return found

    source = edited(folders[1], tmp_path / "m", scaled)
    weights = ModelWeights(open_source(source))
    for name, value in expected.items():
        place = f"layers.{name.split('.')[2]}.moe."
        kinds = ("gate", "up") if name.endswith("gate_up_proj") else ("down",)
        for kind, part in zip(kinds, value.chunk(len(kinds), dim=2), strict=True):
            wanted = part.transpose(1, 2).reshape(-1, part.shape[1]).numpy()
            for lo, hi in ((0, len(wanted)), (5, 7), (60, 150)):
                assert np.array_equal(weights.rows(place + kind, lo, hi), wanted[lo:hi]), (name, kind)


def one_by_one(value: torch.Tensor, name: str, scale: torch.Tensor) -> State:
    """The matrices of a fused tensor by themselves, [out, in], each with one number."""
    place, _, kind = name.rpartition(".")
    modules = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    found: State = {}
    for expert in range(len(value)):
        for module, matrix in zip(modules, value[expert].float().chunk(len(modules), dim=1), strict=True):
            found[f"{place}.{expert}.{module}.weight"] = matrix.T.to(torch.float8_e4m3fn)
            found[f"{place}.{expert}.{module}.weight_scale"] = scale[expert].clone()
    return found


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != f"{EXPERTS}gate_up_proj_weight_scale"},
         r"LLC0206 layers\.1\.moe\.gate: its part weight_scale is missing beside"),
        (lambda s: s | {f"{EXPERTS}down_proj_weight_scale": torch.ones(3)},
         r"LLC0208 layers\.1\.moe: .*down_proj_weight_scale has the shape \[3\], expected scales of 4 experts"),
        (lambda s: s | {f"{EXPERTS}down_proj_weight_scale": torch.ones((), dtype=torch.int32)}, "LLC0209"),
        (lambda s: s | {f"{EXPERTS}down_proj": s[f"{EXPERTS}down_proj"][:3]}, r"LLC0208 layers\.1\.moe\.down"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith(f"{EXPERTS}down_proj")},
         r"LLC0206 layers\.1\.moe\.down"),
    ],
    ids=["no scale", "short scales", "whole numbers", "an expert is missing", "all are missing"],
)  # fmt: skip
def test_damaged_experts(
    edit: Callable[[State], State], message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(LlamacError, match=message):
        open_source(edited(folders[1], tmp_path / "m", edit))


def test_a_file_that_ends_early(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = edited(folders[1], tmp_path / "m", dict) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LlamacError, match="LLC0203"):
        open_source(tmp_path / "m")


def test_an_input_scale_that_is_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wrong = {f"{EXPERTS}down_proj_input_scale": torch.tensor(-1.0)}
    source = edited(folders[1], tmp_path / "m", lambda state: state | wrong)
    with pytest.raises(LlamacError, match=r"LLC0953 .*down_proj_input_scale"):
        export(source, to="modelopt", output=tmp_path / "out")


def test_experts_of_int4_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0951 layers\.N\.moe: no ModelOpt checkpoint of Llama 4 .*choose fp8"):
        export(folders[0], to="modelopt", output=tmp_path / "out", quantize="int4:g128")


def test_with_images(tmp_path: Path) -> None:
    """The encoder stays what it is, byte for byte; the text side has the prefix of models that see."""
    make_llama4(tmp_path / "m")
    result = export(tmp_path / "m", to="modelopt", output=tmp_path / "out", check=True)
    assert result.checks is not None and all(check.passed for check in result.checks)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "out"))
    pictures = {name: value for name, value in before.items() if "vision_model" in name or "projector" in name}
    assert len(pictures) > 20 and all(after[name].equal(value) for name, value in pictures.items())
    assert "language_model.model.layers.1.feed_forward.experts.down_proj_weight_scale" in after
    excluded: Any = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert excluded["exclude_modules"] == ["*lm_head", "*router*", "*vision_model*", "*multi_modal_projector*"]
    assert len(after["language_model.model.layers.1.feed_forward.experts.gate_up_proj"]) == SHAPE.experts

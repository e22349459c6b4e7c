"""Plain Hugging Face folders: transformers and llamac read back the same model, whatever it was made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file
from tiny_gguf import write_tiny_gguf
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_pictures import make_llama4, make_mllama

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.transformers_check import load_folder, text_logits
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source

SHAPE = TinyShape(layers=2)
SAME_F32 = 2e-5
"""Between two graphs of torch, or llama3 parameters and the divisors made of them, over the largest logit."""


def saved(folder: Path, shape: TinyShape = SHAPE) -> Path:
    return save_checkpoint(make_reference(shape), shape, folder)


def names_of(checks: Any) -> list[str]:
    return [check.name.split(" ")[0] if "logits" not in check.name else check.name for check in checks]


def loaded_logits(folder: Path, ids: list[int]) -> Any:
    model, missing, unexpected = load_folder(folder, "transformers")
    assert not missing and not unexpected
    return text_logits(model, ids)


@pytest.mark.parametrize(
    "shape",
    [SHAPE, TinyShape(tied=True, scaled=False), TinyShape(dtype="bf16", kv_heads=1, group=2)],
    ids=lambda shape: shape.name,
)
def test_a_folder_comes_back_bit_for_bit(tmp_path: Path, shape: TinyShape) -> None:
    source = saved(tmp_path / "m", shape)
    result = export(source, to="hf", output=tmp_path / "out", check=True)
    assert result.checks is not None and len(result.checks) == 5
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    for name, value in before.items():
        assert value.dtype == after[name].dtype and np.array_equal(value, after[name]), name
    ids = some_ids(shape.vocab, 16)
    assert relative_error(loaded_logits(tmp_path / "out", ids), reference_logits(make_reference(shape), ids)) < SAME_F32


def test_the_config_is_that_of_transformers(tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    export(source, to="hf", output=tmp_path / "out")
    from transformers import AutoConfig, GenerationConfig

    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (tmp_path / "out", source))
    assert {k for k in theirs if ours[k] != theirs[k]} <= {"_name_or_path", "transformers_version"}
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_a_dtype_of_choice(tmp_path: Path, dtype: str) -> None:
    result = export(saved(tmp_path / "m"), to="hf", output=tmp_path / "out", quantize=dtype, check=True)
    checkpoint = open_source(tmp_path / "out")
    assert {tensor.encoding for tensor in checkpoint.tensors.values()} == {dtype} == {checkpoint.config.dtype}
    assert result.checks is not None and all(check.passed for check in result.checks)


def test_shards_and_their_index(tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    export(source, to="hf", output=tmp_path / "out", options={"shard": "100K"}, check=True)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    parts = {name: load_file(tmp_path / "out" / name) for name in files}
    assert index["weight_map"] == {name: file for file, part in parts.items() for name in part}
    assert index["metadata"]["total_size"] == sum(value.nbytes for part in parts.values() for value in part.values())
    assert all(sum(v.nbytes for v in part.values()) <= 100_000 for part in parts.values() if len(part) > 1)
    ids = some_ids(SHAPE.vocab, 9)
    assert relative_error(loaded_logits(tmp_path / "out", ids), reference_logits(make_reference(SHAPE), ids)) < SAME_F32


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export("tiny", to="hf", output=tmp_path / name, random_weights=5)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0, Type.Q4_K], ids=lambda kind: str(kind.name))
def test_gguf_with_its_divisors(tmp_path: Path, kind: Type) -> None:
    """Rows change their order, blocks become floats, and the divisors the parameters they were made of."""
    shape = TinyShape(group=2, head_dim=64, width=256, inner=256, kv_heads=2, layers=2)
    tiny = write_tiny_gguf(tmp_path / "m.gguf", shape, lambda name: kind, llama3=True)
    result = export(tiny.path, to="hf", output=tmp_path / "out", check=True)
    assert result.checks is not None and names_of(result.checks)[:3] == ["config", "weights", "logits"]
    scaling = json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"]
    assert scaling == {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }
    ids = some_ids(shape.vocab, 100)
    assert relative_error(loaded_logits(tmp_path / "out", ids), reference_logits(tiny.reference, ids)) < SAME_F32
    noted = [entry.kind for entry in result.ledger]
    assert ("dequantized" in noted) == (kind is not Type.F32)


@pytest.mark.parametrize(
    "shape",
    [
        Tiny4(),
        Tiny4(tied=True, top_k=2, step=1, dtype="bf16"),
        Tiny4(experts=0, chunk=0, interval=0, tempered=False, qk_norm=False),
    ],
    ids=["scout", "every layer", "guard"],
)
def test_llama4(tmp_path: Path, shape: Tiny4) -> None:
    model = make_model(shape)
    save_model(model, shape, tmp_path / "m")
    result = export(tmp_path / "m", to="hf", output=tmp_path / "out", check=True)
    assert result.checks is not None and len(result.checks) == 5
    before, after = load_file(tmp_path / "m" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []


@pytest.mark.parametrize("make", [make_llama4, make_mllama])
def test_models_that_see(tmp_path: Path, make: Any) -> None:
    """The image encoder, the projector and the processor's settings too; transformers takes every weight."""
    model = make(tmp_path / "m")
    result = export(tmp_path / "m", to="hf", output=tmp_path / "out", check=True)
    assert result.checks is not None and "tokenizer" in names_of(result.checks)
    loaded, missing, unexpected = load_folder(tmp_path / "out", "transformers")
    assert not missing and not unexpected
    state = dict(loaded.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 28, "width": 28}
    assert processor["image_processor_type"] in ("MllamaImageProcessor", "Llama4ImageProcessorFast")


def test_rope_divisors_that_no_parameters_give(tmp_path: Path) -> None:
    checkpoint = _with_divisors([1.0, 1.5, 3.0, 3.1, 3.2, 4.0, 7.0, 8.0])
    with pytest.raises(LlamacError, match="LLC0951 rope: its rope divisors are those of no llama3 scaling"):
        export(checkpoint, to="hf", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _with_divisors(divisors: list[float]) -> Checkpoint:
    from llamac.models.llama.config import RopeScaling
    from llamac.models.presets import preset
    from llamac.models.random_weights import random_checkpoint

    config = preset("tiny")
    values = (divisors * config.head_dim)[: config.head_dim // 2]
    return random_checkpoint(replace(config, rope_scaling=RopeScaling("divisors", divisors=tuple(values))), 1)


@pytest.mark.parametrize("size", ["", "0", "5T", "-1", "1.5G"])
def test_a_size_that_is_none(tmp_path: Path, size: str) -> None:
    with pytest.raises(LlamacError, match=r"LLC0950 --option shard: .* is no size"):
        export("tiny", to="hf", output=tmp_path / "out", random_weights=1, options={"shard": size})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_transformers_cannot_load(tmp_path: Path) -> None:
    export("tiny", to="hf", output=tmp_path / "out", random_weights=1)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "camel"}))
    with pytest.raises(LlamacError, match=r"LLC0954 transformers: transformers does not load it: .*camel"):
        load_folder(tmp_path / "out", "transformers")


def test_a_value_too_large_for_the_dtype(tmp_path: Path) -> None:
    shape = TinyShape()
    model = make_reference(shape)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e6
    save_checkpoint(model, shape, tmp_path / "m")
    with pytest.raises(LlamacError, match=r"LLC0219 layers\.1\.mlp\.up: .*too large for f16"):
        export(tmp_path / "m", to="hf", output=tmp_path / "out", quantize="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_damaged_folder_fails_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong row in the files: the check names the weight, and nothing is left."""
    from llamac.export import hf_folder, hf_plain

    real = hf_plain.plain_job

    def spoiled(weights: Any, config: Any, tensor: Any, dtype: str) -> Any:
        job = real(weights, config, tensor, dtype)
        if tensor.weights[0] != "layers.1.mlp.down":
            return job
        return replace(job, blocks=lambda: ((values[0][::-1],) for values in job.blocks()))

    monkeypatch.setattr(hf_folder, "plain_job", spoiled)
    with pytest.raises(LlamacError, match=r"LLC0921 weights: .*layers\.1\.mlp\.down"):
        export("tiny", to="hf", output=tmp_path / "out", random_weights=1, check=True)
    assert list(tmp_path.iterdir()) == []


def test_tiles_of_metas_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta stores what a tile adds by its place in a grid, Hugging Face for each shape of a picture."""
    from test_meta_images import SMALL, _mllama_folder

    from llamac.models.mllama import meta_config

    monkeypatch.setattr(meta_config, "ENCODER", SMALL)
    folder, state = _mllama_folder(tmp_path / "m", 1)
    export(folder, to="hf", output=tmp_path / "out", check=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    place = "vision_model.gated_positional_embedding.tile_embedding.weight"
    grid, table = state["vision.tile_position.grid"].numpy().reshape(4, 4, -1), stored[place].reshape(9, 4, -1)
    assert not table[0].any()
    for number, (high, wide) in enumerate(SMALL.supported_aspect_ratios, start=1):
        tiles = grid[:high, :wide].reshape(high * wide, -1)
        assert np.array_equal(table[number, : high * wide], tiles) and not table[number, high * wide :].any()
    _, missing, unexpected = load_folder(tmp_path / "out", "transformers")
    assert not missing and not unexpected

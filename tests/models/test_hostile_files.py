"""Checkpoint files made to harm whoever reads them: each ends quickly, in little memory, with one coded error."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.gguf_file import GgufFile
from llamac.models.gguf_mmproj import _vision
from llamac.models.input_files import parse_json_object
from llamac.models.llama.config_json import config_from_json
from llamac.models.llama.hf_config import config_from_hf
from llamac.models.llama.meta_config import config_from_meta
from llamac.models.llama.tiktoken_format import read_ranks
from llamac.models.mllama.hf_vision_config import vision_from_hf
from llamac.models.safetensors_reader import read_hf_directory
from llamac.models.torch_file import read_torch_file
from llamac.models.torch_pickle import read_pickle

Weights = dict[str, NDArray[Any]]
WriteHf = Callable[..., Path]


@pytest.fixture(autouse=True)
def little_memory_and_time() -> Iterator[None]:
    """6 GB of address space, so that no test takes the machine along; none may take seconds."""
    before, start = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - start < 4


def refusal(read: Callable[..., Any], *arguments: Any) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        read(*arguments)
    assert caught.value.message().isprintable() and len(caught.value.message()) < 1000
    return caught.value


# JSON.


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b',"299999":1}',
    ],
    ids=["deep objects", "deep lists", "half a pair", "half a pair as a key", "the last of many keys twice"],
)
def test_json(data: bytes) -> None:
    assert refusal(parse_json_object, data, "config.json").code == "LLC0214"


def test_json_with_whole_pairs_is_read() -> None:
    assert parse_json_object(b'{"a": ["\\ud83d\\ude00", "\\\\ud800"]}', "x") == {"a": ["\U0001f600", "\\ud800"]}


def test_messages_never_steer_the_terminal(raw_config: dict[str, Any]) -> None:
    error = refusal(config_from_hf, raw_config | {"hidden_act": "\x1b[2J\u202e\n\x9b31m"})
    assert error.code == "LLC0306"
    assert LlamacError("LLC0201", "a\x1b]0;b", "c\nd\x7f").message() == "LLC0201 a\\x1b]0;b: c\\nd\\x7f"


def test_a_very_long_name_is_compared_with_nothing(raw_config: dict[str, Any]) -> None:
    assert refusal(config_from_hf, raw_config | {"hidden_act": "s" * 30_000_000}).code == "LLC0306"


# Safetensors.


def _safetensors(path: Path, tensors: dict[str, Any]) -> None:
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [[0, 4, 4], [1 << 60, 0, 0], [1 << 60, 0], [0], [1, 2, 0, 4], [0, 1 << 61, 1 << 61]])
def test_tensors_without_values(shape: list[int], fused: bool, raw_config: dict[str, Any], write_hf: WriteHf) -> None:
    """No bytes are needed to claim any number of matrices, for a plain weight or for fused experts."""
    name = "model.layers.0.mlp.up_proj.weight"
    if fused:
        raw_config |= {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "num_local_experts": 4}
        name = "model.layers.0.feed_forward.experts.gate_up_proj"
    folder = write_hf(raw_config)
    _safetensors(folder / "model.safetensors", {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    assert refusal(read_hf_directory, folder).code in ("LLC0206", "LLC0208")


def test_chat_templates_without_names(raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf) -> None:
    rows = [{"name": ["a"], "template": "x"}, {"name": "default", "template": "y"}, 3]
    folder = write_hf(raw_config, hf_weights, {"tokenizer_config.json": {"chat_template": rows}})
    assert read_hf_directory(folder).chat_template == "y"


def test_sampling_settings_are_those_that_the_runtime_takes(
    raw_config: dict[str, Any], hf_weights: Weights, write_hf: WriteHf
) -> None:
    """What it would refuse at every prompt is left out when the model is compiled, and noted."""
    from llamac.runtime.sampler import SamplerOptions

    given = {"temperature": 200, "top_k": 2.5, "top_p": 0, "min_p": 1.5, "repetition_penalty": True}
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights, {"generation_config.json": given}))
    assert checkpoint.generation.sampling == {}
    assert sum(item["where"] == "generation_config.json" for item in checkpoint.ledger) == 5
    given = {"temperature": 0.6, "top_k": 50.0, "top_p": 1, "min_p": 0, "repetition_penalty": 1.1}
    checkpoint = read_hf_directory(write_hf(raw_config, hf_weights, {"generation_config.json": given}))
    assert SamplerOptions.from_mapping(checkpoint.generation.sampling).top_k == 50


# Pickles.


def _pickle(path: Path, data: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": data, **members}.items():
            archive.writestr(f"m/{name}", content)
    return path


def test_a_name_that_prints_without_end() -> None:
    nested = b"(t" + b"q\x00h\x00\x86q\x00" * 60
    assert refusal(read_pickle, b"\x80\x02" + nested + b"\x93.", "m.pth").code == "LLC0220"
    named = b"\x80\x04" + nested + b"\x8c\x01a\x93."
    assert refusal(read_pickle, named, "m.pth").code == "LLC0220"


def test_many_groups_above_many_values() -> None:
    data = b"\x80\x02" + b"N" * 400_000 + b"(t" * 400_000 + b"."
    assert read_pickle(data, "m.pth") == ()
    assert refusal(read_pickle, b"\x80\x02" + b"N" * 99_999 + b"t.", "m.pth").code == "LLC0220"


def test_a_number_of_many_digits_as_a_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    for key in (10**5000, True):
        assert refusal(read_torch_file, _pickle(path, pickle.dumps({key: 1}, 2))).code == "LLC0220"


def test_a_long_byteorder(tmp_path: Path) -> None:
    path = _pickle(tmp_path / "m.pth", pickle.dumps({}, 2), byteorder=b"little" * 1000)
    assert refusal(read_torch_file, path).code == "LLC0220"


# Configs.


META = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32, "vocab_size": 40}


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 1 << 61, "ffn_dim_multiplier": 1e300},
        {"ffn_dim_multiplier": 1e-320},
        {"dim": 1 << 61, "ffn_exp": 1e308, "moe_args": {"num_experts": 2}},
        {"vision_args": {"dim": 1 << 61, "output_dim": 4, "mlp_ratio": 1e308}},
        {"norm_eps": float("inf")},
        {"n_heads": True},
        {"rope_theta": "10000"},
    ],
)
def test_params(change: dict[str, Any]) -> None:
    assert refusal(config_from_meta, META | change, 40, "bf16").code in ("LLC0303", "LLC0304")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1 << 20}, {"num_global_layers": 1 << 20}])
def test_encoders_of_very_many_layers(change: dict[str, Any]) -> None:
    assert refusal(vision_from_hf, change, 128256, []).code == "LLC0303"


def test_a_gguf_encoder_of_very_many_layers(tmp_path: Path) -> None:
    keys = {"embedding_length": 64, "feed_forward_length": 64, "block_count": (1 << 32) - 1, "image_size": 56}
    keys |= {"patch_size": 14, "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5}
    keys |= {"projector.scale_factor": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    metadata: dict[str, object] = {f"clip.vision.{key}": value for key, value in keys.items()}
    file = GgufFile(tmp_path / "mmproj.gguf", 3, metadata | {"clip.use_gelu": True}, [])
    assert refusal(_vision, file, (1, 2, 3), []).code == "LLC0303"


def test_ranks_without_end() -> None:
    lines = b"".join(b"QQ== %d\n" % i for i in range(1_000_002))
    assert refusal(read_ranks, lines, "tokenizer.model").code == "LLC0214"


STORED = {
    "name": "x", "hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16,
    "vocab_size": 40, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rope_scaling": None, "context_length": 64,
    "tied_head": False, "dtype": "f32", "rope_style": "half_split",
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 1 << 40},
        {"layers": True},
        {"heads": "4"},
        {"rope_theta": None},
        {"name": 5},
        {"dtype": "f64"},
        {"architecture": "gpt2"},
        {"unknown": 1},
        {"moe": {"experts": 2}},
        {"moe": 5},
        {"moe": {"experts": 1 << 40, "experts_per_token": 1, "intermediate_size": 8, "layers": [0]}},
        {"moe": {"experts": 4, "experts_per_token": 1, "intermediate_size": 8, "layers": [[0]]}},
        {"rope_scaling": {"kind": "linear", "factor": "2"}},
        {"rope_scaling": {"kind": "linear", "factor": -2.0}},
        {"vision": {"taps": 3}},
        {"cross_layers": [0.5]},
        {"rms_norm_eps": float("nan")},
    ],
    ids=str,
)
def test_stored_configs(change: dict[str, Any]) -> None:
    """Those of manifests and certificates, which come with a file that nobody need trust."""
    assert config_from_json(STORED).layers == 2
    error = refusal(config_from_json, STORED | change)
    assert error.code in ("LLC0303", "LLC0304")


def test_a_stored_config_without_a_field() -> None:
    assert refusal(config_from_json, {key: STORED[key] for key in STORED if key != "layers"}).code == "LLC0303"


def test_opaque_state_is_never_looked_into(tmp_path: Path) -> None:
    path = _pickle(tmp_path / "m.pth", pickle.dumps({"x": io.BytesIO(b"state")}, 2))
    assert read_torch_file(path).others == ("x",)

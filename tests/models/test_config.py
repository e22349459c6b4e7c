"""config.json -> LlamaConfig: both spellings, every default in the ledger, every refusal with its code."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from llamac.errors import LlamacError
from llamac.models.ledger import LedgerEntry
from llamac.models.llama.config import RopeScaling
from llamac.models.llama.hf_config import config_from_hf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def refusal(raw: dict[str, Any]) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        config_from_hf(raw)
    return caught.value


def wheres(ledger: list[LedgerEntry], kind: str) -> set[str]:
    return {item["where"] for item in ledger if item["kind"] == kind}


def test_complete_config_takes_no_default(raw_config: dict[str, Any]) -> None:
    config, ledger = config_from_hf(raw_config, "tiny")
    assert ledger == []
    assert (config.name, config.hidden_size, config.layers, config.heads, config.kv_heads) == ("tiny", 64, 2, 4, 2)
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (10000.0, None, "f32")
    assert (config.rope_style, config.tied_head) == ("half_split", False)


def test_old_and_new_spelling_mean_the_same(raw_config: dict[str, Any]) -> None:
    new = raw_config | {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "dtype": "bfloat16"}
    old = raw_config | {"rope_scaling": LLAMA3, "rope_theta": 5e5, "torch_dtype": "bfloat16"}
    del old["rope_parameters"], old["dtype"]
    older = old | {"rope_scaling": {**LLAMA3, "type": "llama3"}, "torch_dtype": "torch.bfloat16"}
    del older["rope_scaling"]["rope_type"]
    expected = config_from_hf(new)
    assert expected[0].rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert expected[0].dtype == "bf16"
    assert config_from_hf(old) == expected == config_from_hf(older)


def test_config_that_transformers_writes(raw_config: dict[str, Any]) -> None:
    written = transformers.LlamaConfig(
        **{key: raw_config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")},
        vocab_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
        dtype="float16",
        rope_parameters={**LLAMA3, "rope_theta": 5e5},
        max_position_embeddings=131072,
    ).to_dict()
    config, ledger = config_from_hf(written)
    assert (config.dtype, config.rope_theta, config.context_length) == ("f16", 5e5, 131072)
    assert ledger == []


def test_linear_rope(raw_config: dict[str, Any]) -> None:
    raw_config["rope_parameters"] = {"rope_type": "linear", "factor": 4, "rope_theta": 1e4}
    assert config_from_hf(raw_config)[0].rope_scaling == RopeScaling("linear", 4.0)


def test_every_default_is_in_the_ledger(raw_config: dict[str, Any]) -> None:
    required = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    config, ledger = config_from_hf({"model_type": "llama", **{key: raw_config[key] for key in required}})
    assert wheres(ledger, "default") == {
        "config.json architectures",
        "config.json hidden_act",
        "config.json num_key_value_heads",
        "config.json head_dim",
        "config.json rms_norm_eps",
        "config.json max_position_embeddings",
        "config.json tie_word_embeddings",
        "config.json dtype",
        "config.json rope rope_theta",
    }
    assert (config.kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_missing_size(raw_config: dict[str, Any], key: str) -> None:
    del raw_config[key]
    error = refusal(raw_config)
    assert error.code == "LLC0302" and key in str(error)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "LLC0301", ["MistralForCausalLM", "LlamaForCausalLM"]),
        ({"architectures": ["LlamaForCausalLM", "X"]}, "LLC0301", ["X"]),
        ({"architectures": None, "model_type": "mistral"}, "LLC0301", ["mistral"]),
        ({"model_type": "mistral"}, "LLC0301", ["mistral"]),
        ({"hidden_size": 0}, "LLC0303", ["hidden_size is 0"]),
        ({"hidden_size": -64}, "LLC0303", ["hidden_size is -64"]),
        ({"hidden_size": True}, "LLC0303", ["hidden_size is True"]),
        ({"hidden_size": "64"}, "LLC0303", ["hidden_size is '64'"]),
        ({"num_hidden_layers": 10**9}, "LLC0303", ["layers", "1000000000"]),
        ({"rms_norm_eps": float("nan")}, "LLC0303", ["rms_norm_eps"]),
        ({"rms_norm_eps": 10**400}, "LLC0303", ["rms_norm_eps"]),
        ({"tie_word_embeddings": "yes"}, "LLC0303", ["tie_word_embeddings"]),
        ({"num_key_value_heads": 3}, "LLC0304", ["4 attention heads", "3 key/value heads"]),
        ({"head_dim": 15}, "LLC0304", ["head_dim is 15"]),
        ({"head_dim": None, "num_attention_heads": 6, "num_key_value_heads": 6}, "LLC0304", ["hidden_size 64"]),
        ({"hidden_act": "gelu"}, "LLC0306", ["layers.N.mlp", "gelu"]),
        ({"hidden_act": "silo"}, "LLC0306", ["did you mean 'silu'?"]),
        ({"attention_bias": True}, "LLC0307", ["layers.N.attn", "attention_bias"]),
        ({"mlp_bias": True}, "LLC0307", ["layers.N.mlp", "mlp_bias"]),
        ({"sliding_window": 4096}, "LLC0308", ["sliding_window"]),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "LLC0308", ["quantization_config"]),
        ({"partial_rotary_factor": 0.5}, "LLC0308", ["partial_rotary_factor"]),
        ({"num_local_experts": 8}, "LLC0308", ["num_local_experts"]),
        ({"layer_types": ["sliding_attention"]}, "LLC0308", ["layer_types"]),
        ({"dtype": "float8_e4m3fn"}, "LLC0310", ["float8_e4m3fn"]),
        ({"dtype": "bfloat61"}, "LLC0310", ["did you mean 'bfloat16'?"]),
    ],
)
def test_refusals(raw_config: dict[str, Any], change: dict[str, Any], code: str, words: list[str]) -> None:
    error = refusal(raw_config | change)
    assert error.code == code
    assert all(word in str(error) for word in words), str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("rope", "code", "words"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "LLC0305", ["yarn", "default, linear, llama3"]),
        ({"rope_type": "dynamic", "factor": 2.0}, "LLC0305", ["dynamic"]),
        ({"rope_type": "longrope"}, "LLC0305", ["longrope"]),
        ({"rope_type": "lama3"}, "LLC0305", ["did you mean 'llama3'?"]),
        ({"rope_type": ["llama3"]}, "LLC0305", ["['llama3']"]),
        ({"rope_type": "linear"}, "LLC0302", ["factor"]),
        ({"rope_type": "linear", "factor": 0}, "LLC0303", ["factor is 0"]),
        ({**LLAMA3, "low_freq_factor": None}, "LLC0302", ["low_freq_factor"]),
        ({**LLAMA3, "low_freq_factor": 8.0}, "LLC0304", ["low_freq_factor 8.0"]),
        ({**LLAMA3, "type": "linear"}, "LLC0304", ["rope_type is given twice"]),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "LLC0308", ["partial_rotary_factor"]),
        ("llama3", "LLC0303", ["rope_parameters"]),
    ],
)
def test_rope_refusals(raw_config: dict[str, Any], rope: object, code: str, words: list[str]) -> None:
    error = refusal(raw_config | {"rope_parameters": rope})
    assert error.code == code
    assert all(word in str(error) for word in words), str(error)


def test_rope_theta_given_twice(raw_config: dict[str, Any]) -> None:
    assert config_from_hf(raw_config | {"rope_theta": 10000})[0].rope_theta == 10000.0
    error = refusal(raw_config | {"rope_theta": 5e5})
    assert error.code == "LLC0304" and "rope_theta" in str(error)


def test_keys_nobody_knows_and_keys_without_effect(raw_config: dict[str, Any]) -> None:
    extra = {"shiny_new_thing": 3, "pretraining_tp": 2, "sliding_window": None, "use_cache": True, "num_experts": 0}
    _, ledger = config_from_hf(raw_config | extra)
    assert wheres(ledger, "unknown-key") == {"config.json shiny_new_thing"}
    assert [item["what"] for item in ledger if item["kind"] == "ignored"] == ["pretraining_tp 2"]
    raw_config["rope_parameters"]["factor"] = 8.0
    assert "factor 8.0" in config_from_hf(raw_config)[1][0]["what"]


def test_names_never_come_from_a_path(raw_config: dict[str, Any]) -> None:
    assert config_from_hf(raw_config | {"_name_or_path": "meta-llama/Llama-3.2-1B"})[0].name == "Llama-3.2-1B"
    for path in ("/home/someone/model", "./model", "../a/b", 5, None):
        assert config_from_hf(raw_config | {"_name_or_path": path})[0].name == "llama-66.9k"

"""config.json of a Llama 3.2 Vision: what transformers writes, what it leaves out, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from test_mllama import CONFIG, hf_config
from transformers import MllamaConfig, MllamaTextConfig

from llamac.errors import LlamacError
from llamac.models.mllama.hf_config import mllama_config_from_hf
from llamac.models.presets import preset

LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def raw() -> dict[str, Any]:
    """What transformers writes for the tiny model; its taps are one off, see test_vision_mllama."""
    written: dict[str, Any] = json.loads(hf_config().to_json_string())
    written |= {"architectures": ["MllamaForConditionalGeneration"], "dtype": "float32"}
    written["vision_config"]["intermediate_layers_indices"] = [1, 3]
    return written


def test_the_tiny_config(raw: dict[str, Any]) -> None:
    found, _ = mllama_config_from_hf(raw, "tiny")
    assert found == CONFIG


def test_the_released_config_in_old_and_new_spelling() -> None:
    """transformers' defaults are the 11B's, but for the scaling of RoPE."""
    new = json.loads(
        MllamaConfig(
            text_config=MllamaTextConfig(rope_parameters=LLAMA31_ROPE | {"rope_theta": 5e5}).to_dict()
        ).to_json_string()
    )
    old = {**new, "torch_dtype": "bfloat16", "text_config": {**new["text_config"], "torch_dtype": "bfloat16"}}
    rope = old["text_config"].pop("rope_parameters", None)
    assert rope is not None
    old["text_config"] |= {"rope_scaling": LLAMA31_ROPE, "rope_theta": 5e5}
    new |= {"dtype": "bfloat16"}
    expected = preset("llama-3.2-11b-vision")
    for spelling in (old, new):
        found, _ = mllama_config_from_hf(spelling, expected.name)
        assert found == expected


def test_what_is_left_out_is_in_the_ledger(raw: dict[str, Any]) -> None:
    sparse = {
        "model_type": "mllama",
        "dtype": "bfloat16",
        "text_config": {"rope_scaling": LLAMA31_ROPE, "rope_theta": 5e5, "surprise": 1},
        "vision_config": {"mystery": [2]},
    }
    found, ledger = mllama_config_from_hf(sparse)
    assert replace(found, name="") == replace(preset("llama-3.2-11b-vision"), name="")
    assert found.name == "llama-9.78b", "a name from the size of the text model, cross-attention layers included"
    noted = {item["where"]: item for item in ledger}
    assert noted["config.json text_config cross_attention_layers"]["kind"] == "default"
    assert noted["config.json vision_config vision_output_dim"]["what"] == "7680"
    assert noted["config.json image_token_index"]["what"] == "128256"
    for where in ("config.json text_config surprise", "config.json vision_config mystery"):
        assert noted[where]["kind"] == "unknown-key"


WRONG: list[tuple[str, str, Any, str, str]] = [
    ("", "architectures", ["LlavaForConditionalGeneration"], "LLC0301", "is no Llama 3.2 Vision"),
    ("", "model_type", "llava", "LLC0301", "is no Llama 3.2 Vision"),
    ("", "text_config", None, "LLC0302", "text_config is None"),
    ("", "vision_config", 3, "LLC0303", "vision_config is 3"),
    ("", "image_token_index", 255, "LLC0304", "one of the 8 ids from 256"),
    ("text_config", "cross_attention_layers", [1, 6], "LLC0303", "rising numbers of the 6 layers"),
    ("text_config", "cross_attention_layers", [4, 1], "LLC0303", "rising numbers"),
    ("text_config", "cross_attention_layers", [True], "LLC0303", "rising numbers"),
    ("text_config", "cross_attention_layers", "all", "LLC0303", "rising numbers"),
    ("text_config", "num_hidden_layers", "6", "LLC0303", "rising numbers of the '6' layers"),
    ("text_config", "tie_word_embeddings", True, "LLC0304", "8 rows more than the head"),
    ("text_config", "hidden_act", "gelu", "LLC0306", "the activation 'gelu'"),
    ("text_config", "sliding_window", 4, "LLC0308", "sliding_window is 4"),
    ("vision_config", "hidden_act", "quick_gelu", "LLC0306", "the activation 'quick_gelu'"),
    ("vision_config", "vision_output_dim", 95, "LLC0304", "where 96 channels come out"),
    ("vision_config", "attention_heads", 5, "LLC0304", "hidden_size 32 in 5 heads"),
    ("vision_config", "image_size", 30, "LLC0304", "images of 30 in patches of 14 pixels"),
    ("vision_config", "image_size", [28, 56], "LLC0303", "expected one number"),
    ("vision_config", "image_size", -28, "LLC0303", "expected a positive number"),
    ("vision_config", "num_hidden_layers", 1 << 40, "LLC0303", "expected at most"),
    ("vision_config", "intermediate_layers_indices", [1, 4], "LLC0303", "rising numbers of the 4 layers"),
    ("vision_config", "max_num_tiles", 3, "LLC0303", "pairs of at most 3 tiles"),
    ("vision_config", "max_num_tiles", 1 << 50, "LLC0303", "pairs of at most"),
    ("vision_config", "supported_aspect_ratios", [[1, 0]], "LLC0303", "pairs of at most 4 tiles"),
    ("vision_config", "supported_aspect_ratios", [], "LLC0303", "pairs of at most 4 tiles"),
    ("vision_config", "supported_aspect_ratios", {"a": 1}, "LLC0303", "pairs of at most 4 tiles"),
]


@pytest.mark.parametrize(("part", "key", "value", "code", "reason"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be(raw: dict[str, Any], part: str, key: str, value: Any, code: str, reason: str) -> None:
    (raw[part] if part else raw)[key] = value
    with pytest.raises(LlamacError) as caught:
        mllama_config_from_hf(raw)
    assert caught.value.code == code and reason in caught.value.reason and caught.value.hint


def test_square_sizes_may_be_pairs(raw: dict[str, Any]) -> None:
    raw["vision_config"]["image_size"] = [28, 28]
    assert mllama_config_from_hf(raw, "tiny")[0] == CONFIG

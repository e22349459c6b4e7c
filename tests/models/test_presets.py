"""Presets against the family's published figures, and against the model list of Meta's own package."""

from __future__ import annotations

from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.official_names import RELEASES_APART, REPOSITORIES, bare_name
from llamac.models.presets import find_preset, preset, preset_names
from llamac.models.sources import open_source

MILLIONS = {
    "llama-2-7b": 6738,
    "llama-2-13b": 13016,
    "llama-2-70b": 68977,
    "llama-3-8b": 8030,
    "llama-3-70b": 70554,
    "llama-3.1-8b": 8030,
    "llama-3.1-70b": 70554,
    "llama-3.1-405b": 405853,
    "llama-3.2-1b": 1236,
    "llama-3.2-3b": 3213,
    "llama-3.3-70b": 70554,
    "llama-guard-2-8b": 8030,
    "llama-guard-3-1b": 1236,
    "llama-guard-3-8b": 8030,
    "llama-4-scout": 107770,
    "llama-4-maverick-instruct": 400712,
    "llama-guard-4-12b": 11129,
    "smollm2-135m": 135,
}
"""Text parameters in millions, a tied head counted once: model cards round these."""

CONTEXTS_OF_THEIR_OWN = {"llama-4-scout-instruct": 10485760, "llama-4-maverick-instruct": 1048576}


@pytest.mark.parametrize("name", preset_names())
def test_presets(name: str) -> None:
    config = preset(name)
    assert config.name == name and config.heads % config.kv_heads == 0
    if name in MILLIONS:
        assert round(config.parameters / 1e6) == MILLIONS[name]


def test_llama4_layers() -> None:
    scout, maverick, guard = (preset(f"llama-{n}") for n in ("4-scout", "4-maverick", "guard-4-12b"))
    assert scout.moe is not None and maverick.moe is not None and guard.moe is None
    assert scout.moe.layers == tuple(range(48)) and maverick.moe.layers == tuple(range(1, 48, 2))
    assert scout.attention is not None and maverick.attention is not None
    assert scout.attention.unrotated == tuple(range(3, 48, 4)) and scout.attention.chunk == 8192
    assert scout.attention.qk_norm and not maverick.attention.qk_norm
    assert scout.rope_scaling is not None and (scout.rope_scaling.factor, maverick.rope_scaling) == (16.0, None)
    assert (guard.intermediate_size, guard.context_length) == (8192, 8192)
    assert isinstance(scout.vision, Llama4Vision) and scout.vision.tile_tokens == 144
    assert (scout.vision.image_token, scout.vision.image_start_token) == (200092, 200080)


@pytest.mark.parametrize(("name", "layers", "last", "tokens"), [("11b", 40, 38, 1025), ("90b", 100, 98, 1601)])
def test_cross_attention_layers(name: str, layers: int, last: int, tokens: int) -> None:
    config = preset(f"llama-3.2-{name}-vision")
    assert (config.layers, config.architecture, config.rope_style) == (layers, "mllama", "half_split")
    assert config.cross_layers == tuple(range(3, layers, 5)) and config.cross_layers[-1] == last
    assert isinstance(config.vision, MllamaVision) and config.vision.tile_tokens == tokens
    assert config.vision.output_size == config.vision.hidden_size * (1 + len(config.vision.taps))
    assert preset(f"llama-3.2-{name}-vision").vision is not None


def registered() -> list[Any]:
    """Every model of the list in Meta's package."""
    sku_list = pytest.importorskip("llama_models.sku_list")
    return [model for model in sku_list.all_registered_models() if model.huggingface_repo]


def test_every_official_repository_is_known() -> None:
    seen = set()
    for model in registered():
        bare = bare_name(model.huggingface_repo)
        found = find_preset(model.huggingface_repo)
        assert (found is None) == (bare in RELEASES_APART), model.huggingface_repo
        if found is not None:
            seen.add(found)
            assert preset(found).context_length == model.max_seq_length, model.huggingface_repo
    assert seen == REPOSITORIES.keys()


def test_widths_are_those_of_the_official_list() -> None:
    """Left out: rows known to be wrong (Llama 2 heads, the vocabulary of Guard 2), and shards that repeat KV heads."""
    checked = 0
    for model in registered():
        name = find_preset(model.huggingface_repo)
        arch = model.arch_args
        left_out = str(name).startswith(("llama-2", "llama-guard-2")) or model.descriptor().endswith("mp16")
        if name is None or "dim" not in arch or left_out:
            continue
        config = preset(name)
        layers = config.layers - len(config.cross_layers)
        found = (config.hidden_size, layers, config.heads, config.kv_heads, config.vocab_size, config.rope_theta)
        keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "rope_theta")
        assert found == tuple(arch[key] for key in keys), name
        assert config.intermediate_size == inner_size(config, arch), name
        checked += 1
    assert checked >= 20


def inner_size(config: LlamaConfig, arch: dict[str, Any]) -> int:
    """The MLP's width as Meta's model code derives it."""
    width = int(2 * 4 * config.hidden_size / 3)
    multiplier, multiple = arch.get("ffn_dim_multiplier"), int(arch["multiple_of"])
    width = int(multiplier * width) if multiplier else width
    return multiple * -(-width // multiple)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-4-Scout-17B-16E", "llama-4-scout"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("META-LLAMA/llama-3.2-1b", "llama-3.2-1b"),
    ],
)
def test_official_names_are_spellings_of_presets(name: str, found: str) -> None:
    assert find_preset(name) == found and open_source(name, random_weights=0).name == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.2-1bb", "did you mean 'llama-3.2-1b'?"),
        ("scout", "did you mean 'llama-4-scout' or 'llama-4-scout-instruct'?"),
        ("meta-llama/Llama-3.1-8C", "did you mean 'llama-3.1-8b'?"),
        ("Llama-3.1-405B-FP8", "stores part of its weights as fp8"),
        ("meta-llama/Llama-Guard-3-1B-INT4", "is pruned to 12 layers"),
        ("meta-llama/quite-another", "presets: llama-2-7b"),
        ("x" * 5000, "neither a file or folder nor a preset"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    for look in (preset, open_source):
        with pytest.raises(LlamacError) as caught:
            look(name)
        assert caught.value.code == "LLC0309" and words in str(caught.value), str(caught.value)
        assert len(str(caught.value)) < 1000

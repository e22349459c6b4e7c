"""GGUF files of architecture llama4, written by the reference writer: every weight, and transformers' logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from interpreted import captured_logits
from tiny_llama import relative_error, some_ids
from tiny_llama4 import Tiny4, make_model, reference_logits, weights_of

from llamac.errors import LlamacError
from llamac.models.sources import open_source

TOLERANCE_F32 = 1e-5
SHAPE = Tiny4(chunk=8192, tempered=False)
"""What llama.cpp has as constants; below 8192 positions no query is tempered."""
IDS = some_ids(SHAPE.vocab, 20)
NAMES = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attn_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "moe.router": "ffn_gate_inp",
    "moe.gate": "ffn_gate_exps",
    "moe.up": "ffn_up_exps",
    "moe.down": "ffn_down_exps",
    "moe.shared.gate": "ffn_gate_shexp",
    "moe.shared.up": "ffn_up_shexp",
    "moe.shared.down": "ffn_down_shexp",
}
METADATA: dict[str, Any] = {
    "block_count": SHAPE.layers,
    "context_length": 262144,
    "embedding_length": SHAPE.hidden,
    "feed_forward_length": SHAPE.inner,
    "vocab_size": SHAPE.vocab,
    "attention.head_count": SHAPE.heads,
    "attention.head_count_kv": SHAPE.kv_heads,
    "attention.key_length": SHAPE.head_dim,
    "attention.value_length": SHAPE.head_dim,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 5e5,
    "rope.dimension_count": SHAPE.head_dim,
    "expert_count": SHAPE.experts,
    "expert_used_count": 1,
    "expert_feed_forward_length": SHAPE.expert_inner,
    "interleave_moe_layer_step": SHAPE.step,
}


def gguf_name(name: str) -> str:
    if not name.startswith("layers."):
        return f"{NAMES[name]}.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.weight"


def write(path: Path, model: Any, metadata: dict[str, Any], kind: gguf.GGMLQuantizationType | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama4")
    for key, value in metadata.items():
        if value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama4.{key}", value)
    for name, values in weights_of(model, SHAPE.config()).items():
        if name.endswith((".moe.gate", ".moe.up", ".moe.down")):
            values = values.reshape(SHAPE.experts, -1, values.shape[1])
        if kind is not None and values.ndim > 1 and "router" not in name:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.add_tensor("rope_freqs.weight", _divisors())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _divisors() -> np.ndarray:
    """Scout's scaling: a hard step at a wavelength of 8192."""
    inverse = [5e5 ** -(2 * i / SHAPE.head_dim) for i in range(SHAPE.head_dim // 2)]
    return np.array([16.0 if 2 * math.pi / f > 8192 else 1.0 for f in inverse], np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(SHAPE)


def test_weights_and_logits(model: Any, tmp_path: Path) -> None:
    checkpoint = open_source(write(tmp_path / "m.gguf", model, METADATA))
    config = checkpoint.config
    assert config.moe == SHAPE.config().moe and config.rope_style == "interleaved"
    assert config.attention is not None and config.attention.unrotated == (3,) and config.attention.qk_norm
    assert config.attention.chunk == 8192 and config.attention.temperature_scale == 0.1
    assert any(item["where"] == "gguf llama4 attention" for item in checkpoint.ledger)
    for name, values in weights_of(model, SHAPE.config()).items():
        tensor = checkpoint.tensors[name]
        assert tensor.shape == values.shape
        assert checkpoint.read_rows(name, 0, tensor.rows).tobytes() == values.tobytes()
    assert relative_error(captured_logits(checkpoint, IDS), reference_logits(model, IDS)) < TOLERANCE_F32


def test_experts_in_blocks(model: Any, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    checkpoint = open_source(write(tmp_path / "m.gguf", model, METADATA, kind))
    experts = checkpoint.tensors["layers.1.moe.down"]
    assert (experts.encoding, experts.shape) == ("q8_0", (SHAPE.experts * SHAPE.hidden, SHAPE.expert_inner))
    stored = checkpoint.read_rows("layers.1.moe.down", 70, 90)
    values = weights_of(model, SHAPE.config())["layers.1.moe.down"][70:90]
    assert stored.tobytes() == gguf.quants.quantize(values, kind).tobytes()
    assert relative_error(captured_logits(checkpoint, IDS), reference_logits(model, IDS)) < 0.2


def test_constants_that_depend_on_the_metadata(model: Any, tmp_path: Path) -> None:
    checkpoint = open_source(write(tmp_path / "a.gguf", model, METADATA | {"attention.sliding_window": 0}))
    pattern = checkpoint.config.attention
    assert pattern is not None and (pattern.chunk, pattern.unrotated, pattern.qk_norm) == (0, (), True)
    with pytest.raises(LlamacError, match="LLC0208") as caught:
        open_source(write(tmp_path / "b.gguf", model, METADATA | {"expert_count": 128}))
    assert caught.value.where == "layers.1.moe.router"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expert_count": None}, "LLC0302"),
        ({"expert_count": 0}, "LLC0303"),
        ({"expert_used_count": 5}, "LLC0304"),
        ({"interleave_moe_layer_step": 1}, "LLC0207"),
        ({"expert_feed_forward_length": 64}, "LLC0208"),
        ({"expert_shared_feed_forward_length": 64}, "LLC0308"),
    ],
    ids=str,
)
def test_files_that_cannot_be(changes: dict[str, Any], code: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(LlamacError) as caught:
        open_source(write(tmp_path / "m.gguf", model, METADATA | changes))
    assert caught.value.code == code

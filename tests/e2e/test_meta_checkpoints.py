"""Meta's own checkpoints against Meta's own code: every kind of shard, one or several ranks, the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import captured_logits, kernel_graph, kernel_logits
from tiny_gguf import to_halves, to_pairs
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_meta import PARAMS, VOCABULARY, State, llama3, llama4, meta_logits, published_llama4, sharded, write_meta

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.weights import META, stored_name
from llamac.models.sources import open_source

TOLERANCE_F32 = 1e-5
IDS = some_ids(VOCABULARY, 24)
LLAMA3 = PARAMS | {"vocab_size": VOCABULARY}


def values(checkpoint: Checkpoint, name: str) -> Any:
    tensor = checkpoint.tensors[name]
    found = checkpoint.read_rows(name, 0, tensor.rows).view("<f4").reshape(tensor.shape)
    return found


def refusal(folder: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        open_source(folder)
    return caught.value


@pytest.fixture(scope="module")
def model() -> Any:
    return llama3(LLAMA3)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_llama3(model: Any, ranks: int, tmp_path: Path) -> None:
    state = {**model.state_dict(), "rope.freqs": torch.ones(8)}
    checkpoint = open_source(write_meta(tmp_path / "m", sharded(state, ranks, LLAMA3), LLAMA3))
    config = checkpoint.config
    assert checkpoint.format == "meta" and config.rope_style == "interleaved" and config.dtype == "f32"
    assert (config.hidden_size, config.heads, config.kv_heads, config.head_dim) == (64, 8, 4, 8)
    assert config.intermediate_size == model.layers[0].feed_forward.w1.weight.shape[0] == 224
    assert config.rope_scaling is not None and config.rope_scaling.factor == 8 and not config.tied_head
    for name, stored in (("attn.o", "attention.wo"), ("attn.k", "attention.wk"), ("mlp.down", "feed_forward.w2")):
        assert np.array_equal(values(checkpoint, f"layers.1.{name}"), state[f"layers.1.{stored}.weight"].numpy())
    # Its code computes the rope's angles as 2 * pi / f, scaled over 8192 positions that 24 ids never leave.
    assert relative_error(captured_logits(checkpoint, IDS), meta_logits(model, IDS)) < TOLERANCE_F32
    compiled = kernel_graph(checkpoint, "keep", "f32")
    assert relative_error(kernel_logits(checkpoint, compiled, IDS), meta_logits(model, IDS)) < TOLERANCE_F32


def test_llama2_embeds_by_columns(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 1, "n_heads": 4, "multiple_of": 32, "norm_eps": 1e-6, "vocab_size": -1}
    model = llama3({**params, "rope_theta": 10000.0})
    shards = sharded(model.state_dict(), 2, params, embed_by_columns=True)
    assert shards[0]["tok_embeddings.weight"].shape == (VOCABULARY, 32)
    checkpoint = open_source(write_meta(tmp_path / "m", shards, params))
    config = checkpoint.config
    assert (config.rope_theta, config.kv_heads, config.context_length, config.vocab_size) == (1e4, 4, 4096, VOCABULARY)
    assert {item["where"] for item in checkpoint.ledger} >= {"params.json vocab_size", "params.json rope_theta"}
    assert relative_error(captured_logits(checkpoint, IDS), meta_logits(model, IDS)) < TOLERANCE_F32


def test_key_value_heads_stored_twice(model: Any, tmp_path: Path) -> None:
    """The 16-rank 405B in small: each rank has a head of its own, so heads are doubled, and params.json says so."""
    state = dict(model.state_dict())
    for name in list(state):
        if name.endswith(("wk.weight", "wv.weight")):
            state[name] = state[name].view(4, 1, 8, 64).repeat(1, 2, 1, 1).reshape(64, 64)
    params = LLAMA3 | {"n_kv_heads": 8}
    folder = write_meta(tmp_path / "m", sharded(state, 8, params), params)
    checkpoint = open_source(folder)
    assert checkpoint.config.kv_heads == 4
    assert any("stores each of them twice" in item["reason"] for item in checkpoint.ledger)
    assert np.array_equal(values(checkpoint, "layers.1.attn.k"), model.layers[1].attention.wk.weight.detach().numpy())
    assert relative_error(captured_logits(checkpoint, IDS), meta_logits(model, IDS)) < TOLERANCE_F32

    state["layers.1.attention.wv.weight"][8] += 1
    write_meta(folder, sharded(state, 8, params), params)
    assert open_source(folder).config.kv_heads == 8


def test_a_tied_head_is_found(model: Any, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["output.weight"] = state["tok_embeddings.weight"]
    checkpoint = open_source(write_meta(tmp_path / "m", sharded(state, 1, LLAMA3), LLAMA3))
    assert checkpoint.config.tied_head and "head" not in checkpoint.tensors


@pytest.mark.parametrize(
    ("dim", "layers", "factor"), [(2048, 16, 32.0), (3072, 28, 32.0), (4096, 32, 8.0)], ids=["1B", "3B", "8B"]
)
def test_the_factor_of_the_small_models(dim: int, layers: int, factor: float) -> None:
    from llamac.models.llama.meta_config import config_from_meta

    params = PARAMS | {"dim": dim, "n_layers": layers, "n_heads": 32}
    config, ledger = config_from_meta(params, 128256, "bf16")
    assert config.rope_scaling is not None and config.rope_scaling.factor == factor
    noted = [item["what"] for item in ledger if item["where"].endswith("rope_scaling_factor")]
    assert noted == [str(factor)]


def test_a_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    import llama_models.llama3.tokenizer as official

    params = LLAMA3 | {"n_layers": 1, "vocab_size": 600}
    state = llama3(params, 600).state_dict()
    folder = write_meta(tmp_path / "m", sharded(state, 2, params), params)
    ranks = (Path(official.__file__).parent / "tokenizer.model").read_bytes().split(b"\n")
    (folder / "tokenizer.model").write_bytes(b"\n".join(ranks[:300]) + b"\n")
    checkpoint = open_source(folder)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "tiktoken"
    assert checkpoint.generation.stop_ids == (301, 308, 309) and checkpoint.generation.bos_id == 300


LLAMA4 = PARAMS | {
    "n_layers": 4,
    "vocab_size": VOCABULARY,
    "ffn_exp": 4.0,
    "attention_chunk_size": 8,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 4.0,
    "attn_scale": 0.1,
    "rope_scaling_factor": 16,
    "rope_high_freq_factor": 1,
    "moe_args": {"num_experts": 4, "top_k": 1, "interleave_moe_layer_step": 2, "capacity_factor": 1.0},
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_llama4(ranks: int, tmp_path: Path) -> None:
    model = llama4(LLAMA4)
    state = published_llama4(model)
    state["layers.0.attention.wqkv._extra_state"] = torch.zeros(0)
    state["layers.1.feed_forward.expert_activation_DE"] = torch.zeros(64, 4)
    state["vision_projection.weight"] = torch.zeros(64, 8)
    checkpoint = open_source(write_meta(tmp_path / "m", sharded(state, ranks, LLAMA4), LLAMA4))
    config = checkpoint.config
    assert config.architecture == "llama4" and config.moe is not None and config.attention is not None
    assert config.moe.layers == (1, 3) and config.attention.unrotated == (3,) and config.attention.chunk == 8
    assert config.moe.intermediate_size == model.layers[1].feed_forward.experts.w1.shape[-1]
    assert any(item["what"] == "1 weights are not read" for item in checkpoint.ledger)
    experts = model.layers[3].feed_forward.experts
    for name, tensor in (("gate", experts.w1), ("up", experts.w3), ("down", experts.w2)):
        expected = tensor.detach().transpose(1, 2).reshape(-1, tensor.shape[1]).numpy()
        assert np.array_equal(values(checkpoint, f"layers.3.moe.{name}"), expected)
    router = model.layers[1].feed_forward.router_DE.detach().T.numpy()
    assert np.array_equal(values(checkpoint, "layers.1.moe.router"), router)
    assert relative_error(captured_logits(checkpoint, IDS), meta_logits(model, IDS, llama4=True)) < TOLERANCE_F32


def test_guard4_has_no_experts_and_keeps_its_width(tmp_path: Path) -> None:
    params = {key: value for key, value in LLAMA4.items() if key != "moe_args"} | {
        "nope_layer_interval": None,
        "attention_chunk_size": None,
    }
    model = llama4(params | {"multiple_of": 256})
    assert model.layers[0].feed_forward.w1.weight.shape[0] == 256
    state = published_llama4(model)
    for layer in range(4):
        place = f"layers.{layer}.feed_forward."
        gate, up = state.pop(f"{place}mlp.fc1_weight").chunk(2)
        state |= {f"{place}w_in_shared_FD.weight": gate, f"{place}w_swiglu_FD.weight": up}
        state[f"{place}w_out_shared_DF.weight"] = state.pop(f"{place}mlp.fc2_weight")
        state[f"{place}norm.weight"] = state.pop(f"{place}mlp.layer_norm_weight")
    checkpoint = open_source(write_meta(tmp_path / "m", sharded(state, 1, params), params))
    assert checkpoint.config.intermediate_size == 256 and checkpoint.config.moe is None
    assert checkpoint.config.attention is not None and checkpoint.config.attention.unrotated == ()
    assert relative_error(captured_logits(checkpoint, IDS), meta_logits(model, IDS, llama4=True)) < TOLERANCE_F32


def _changed(state: State, ranks: int, folder: Path, **params: Any) -> Path:
    return write_meta(folder, sharded(state, ranks, LLAMA3), {**LLAMA3, **params})


def test_bad_folders(model: Any, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    folder = _changed(state, 4, tmp_path / "m")

    (folder / "consolidated.03.pth").unlink()
    error = refusal(folder)
    assert error.code == "LLC0205" and error.where == "consolidated.03.pth" and "4 shards, of which 3" in error.reason
    (folder / "consolidated.01.pth").rename(folder / "aside")
    assert refusal(folder).where == "consolidated.01.pth"
    (folder / "aside").rename(folder / "consolidated.01.pth")
    (folder / "params.json").unlink()
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0201", "params.json")

    folder = _changed(state, 1, tmp_path / "one", dim=128)
    assert refusal(folder).code == "LLC0208" and refusal(folder).where == "embed"
    folder = _changed(state, 1, tmp_path / "one", n_layers=3)
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0206", "layers.2.attn_norm")
    folder = _changed(state, 1, tmp_path / "one", n_layers=1)
    assert refusal(folder).code == "LLC0207"
    folder = _changed(state, 1, tmp_path / "one", vision_num_cross_attention_layers=8)
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0304", "params.json")
    folder = _changed(state, 1, tmp_path / "one", vision_args={"dim": 8})
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0302", "params.json vision_args")
    folder = _changed({**state, "layers.0.attention.bias": torch.ones(4)}, 1, tmp_path / "one")
    assert refusal(folder).code == "LLC0207"
    folder = _changed({**state, "norm.weight": torch.ones(64, dtype=torch.float64)}, 1, tmp_path / "one")
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0209", "norm")

    shards = sharded(state, 2, LLAMA3)
    del shards[1]["layers.1.feed_forward.w2.weight"]
    error = refusal(write_meta(tmp_path / "two", shards, LLAMA3))
    assert error.code == "LLC0206" and "consolidated.01.pth" in error.reason
    shards[1]["layers.1.feed_forward.w2.weight"] = torch.ones(64, 7)
    assert refusal(write_meta(tmp_path / "two", shards, LLAMA3)).code == "LLC0223"
    (tmp_path / "two" / "consolidated.01.pth").write_bytes(b"PK\3\4" + bytes(90))
    assert refusal(tmp_path / "two").code == "LLC0203"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32, "spinquant": True}, "Hadamard"),
     ({"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32}, "QLoRA")],
)  # fmt: skip
def test_int4_releases(model: Any, arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    error = refusal(_changed(dict(model.state_dict()), 1, tmp_path / "m", quantization_args=arguments))
    assert error.code == "LLC0222" and words in error.reason and "--quantize int4" in error.hint


def _fp8_folder(model: Any, ranks: int, folder: Path) -> tuple[Path, State]:
    """The MLP of layer 1 as Meta's FP8 releases have it; returns the model's weights as they are now."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    shards, scales = sharded(state, ranks, LLAMA3), []
    for rank, shard in enumerate(shards):
        found = {}
        for key in ("w1", "w2", "w3"):
            weight = shard[f"layers.1.feed_forward.{key}.weight"]
            scale = weight.abs().amax(dim=1) / 448
            quants = (weight / scale[:, None]).to(torch.float8_e4m3fn)
            shard[f"layers.1.feed_forward.{key}.weight"] = quants
            found[f"1_feed_forward.{key}_{rank}"] = scale
            whole = state[f"layers.1.feed_forward.{key}.weight"]
            whole.chunk(ranks, 1 if key == "w2" else 0)[rank].copy_(quants.float() * scale[:, None])
        scales.append(found)
    write_meta(folder, shards, LLAMA3)
    for rank, found in enumerate(scales):
        torch.save(found, folder / f"fp8_scales_{rank}.pt")
    return folder, state


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp8_releases(ranks: int, tmp_path: Path) -> None:
    model = llama3(LLAMA3)
    folder, state = _fp8_folder(model, ranks, tmp_path / "m")
    model.load_state_dict(state)
    checkpoint = open_source(folder)
    down = "fp8-row-sym-f32" if ranks == 1 else "fp8-g112-sym-f32"
    assert checkpoint.tensors["layers.1.mlp.up"].encoding == "fp8-row-sym-f32"
    assert checkpoint.tensors["layers.1.mlp.down"].encoding == down
    assert any("fp8 matrices" in item["what"] for item in checkpoint.ledger)
    reference = meta_logits(model, IDS)
    assert relative_error(captured_logits(checkpoint, IDS), reference) < TOLERANCE_F32
    if ranks == 1:
        compiled = kernel_graph(checkpoint, "keep:f32-activations", "f32")
        assert relative_error(kernel_logits(checkpoint, compiled, IDS), reference) < TOLERANCE_F32
        return
    with pytest.raises(LlamacError, match=r"LLC0506 .*several scales a row"):
        kernel_graph(checkpoint, "keep", "f32")
    for scheme, tolerance in (("f32", TOLERANCE_F32), ("fp8", 0.2)):
        compiled = kernel_graph(checkpoint, scheme, "f32")
        assert relative_error(kernel_logits(checkpoint, compiled, IDS), reference) < tolerance


def test_fp8_without_scales(model: Any, tmp_path: Path) -> None:
    folder, _ = _fp8_folder(model, 2, tmp_path / "m")
    torch.save({"0_feed_forward.w1_1": torch.ones(3)}, folder / "fp8_scales_1.pt")
    error = refusal(folder)
    assert error.code == "LLC0206" and "1_feed_forward.w1_1" in error.reason
    (folder / "fp8_scales_1.pt").unlink()
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0205", "fp8_scales_1.pt")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"dim": 0}, "LLC0303"),
        ({"dim": "64"}, "LLC0303"),
        ({"dim": 60}, "LLC0304"),
        ({"n_heads": None}, "LLC0302"),
        ({"n_kv_heads": 3}, "LLC0304"),
        ({"n_layers": 10**9}, "LLC0303"),
        ({"n_layers": True}, "LLC0303"),
        ({"head_dim": 9}, "LLC0304"),
        ({"norm_eps": -1}, "LLC0303"),
        ({"ffn_dim_multiplier": 1e300}, "LLC0303"),
        ({"rope_theta": 1e400}, "LLC0303"),
        ({"use_scaled_rope": 1}, "LLC0303"),
        ({"moe_args": 5}, "LLC0303"),
        ({"moe_args": {"num_experts": 10**12}}, "LLC0303"),
        ({"moe_args": {"num_experts": 4, "top_k": 0}}, "LLC0303"),
        ({"nope_layer_interval": 0}, "LLC0303"),
        ({"lora_args": {"rank": 16, "scale": 2.0}}, "LLC0222"),
        ({"vision_num_cross_attention_layers": 10**9}, "LLC0304"),
        ({"vision_args": 5}, "LLC0303"),
    ],
    ids=str,
)
def test_params_that_cannot_be(changes: dict[str, Any], code: str) -> None:
    from llamac.models.llama.meta_config import config_from_meta

    with pytest.raises(LlamacError) as caught:
        config_from_meta({k: v for k, v in (LLAMA3 | changes).items() if v is not None}, VOCABULARY, "bf16")
    assert caught.value.code == code and caught.value.where.startswith("params.json") and caught.value.hint


def test_unknown_params_are_noted() -> None:
    from llamac.models.llama.meta_config import config_from_meta

    _, ledger = config_from_meta(LLAMA3 | {"new_key": [1, 2], "max_seq_len": 8}, VOCABULARY, "bf16")
    assert [item["where"] for item in ledger if item["kind"] == "unknown-key"] == ["params.json new_key"]


def test_the_same_model_in_both_forms(tmp_path: Path) -> None:
    """One model saved by transformers and in Meta's form: the same weights but for the order of q and k, one answer."""
    shape = TinyShape(group=2, head_dim=16, width=64, inner=176, vocab=132, scaled=False)
    reference = make_reference(shape)
    hf = open_source(save_checkpoint(reference, shape, tmp_path / "hf"))
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 176, "rope_theta": 10000.0}
    state = {}
    for name, stored in ((name, stored_name(name, META)) for name in hf.tensors):
        array = values(hf, name)
        state[stored] = torch.from_numpy(to_pairs(array, 16) if name.endswith((".q", ".k")) else array.copy())
    meta = open_source(write_meta(tmp_path / "meta", sharded(state, 2, params), params))
    assert (hf.config.rope_style, meta.config.rope_style) == ("half_split", "interleaved")
    for name in hf.tensors:
        undo = to_halves(values(meta, name), 16) if name.endswith((".q", ".k")) else values(meta, name)
        assert np.array_equal(undo, values(hf, name)), name
    ids = some_ids(shape.vocab, 24)
    logits = [captured_logits(checkpoint, ids) for checkpoint in (hf, meta)]
    assert all(relative_error(found, reference_logits(reference, ids)) < TOLERANCE_F32 for found in logits)

"""Tiny models in Meta's own format: sharded as Meta shards them, computed by Meta's own code on one rank."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
Floats = NDArray[np.float32]

BY_COLUMNS = re.compile(r".*(attention\.wo|feed_forward\.w2|fc2_weight|w_out_shared_DF|attn\.wo\.w|c_proj\.w).*")
REPLICATED = re.compile(
    r".*(norm|router_DE|rope\.freqs|ln_|class_embedding|positional|tile_pos|gate_|wo\.bias|c_proj\.bias).*"
)

PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "vocab_size": 128256,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}
VOCABULARY = 144


def stub_fairscale() -> None:
    """Plain layers in place of fairscale's parallel ones, so that Meta's code imports and runs on one rank."""
    import torch
    import transformers.modeling_utils  # noqa: F401 - looks for the real packages, so it has to come first

    if "fairscale" in sys.modules:
        return
    initialize = types.ModuleType("fairscale.nn.model_parallel.initialize")
    initialize.get_model_parallel_world_size = lambda: 1  # type: ignore[attr-defined]
    initialize.get_model_parallel_rank = lambda: 0  # type: ignore[attr-defined]
    layers = types.ModuleType("fairscale.nn.model_parallel.layers")
    for name in ("ColumnParallelLinear", "RowParallelLinear"):
        setattr(layers, name, lambda i, o, bias=False, **_: torch.nn.Linear(i, o, bias=bias))
    layers.VocabParallelEmbedding = lambda n, d, **_: torch.nn.Embedding(n, d)  # type: ignore[attr-defined]
    mappings = types.ModuleType("fairscale.nn.model_parallel.mappings")
    mappings.reduce_from_model_parallel_region = lambda x: x  # type: ignore[attr-defined]
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel"):
        sys.modules[name] = types.ModuleType(name)
    for module in (initialize, layers, mappings):
        sys.modules[module.__name__] = module
        setattr(sys.modules["fairscale.nn.model_parallel"], module.__name__.rpartition(".")[2], module)


def randomize(model: Any, seed: int = 0) -> None:
    """Weights far from zero, norms far from one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            values = torch.randn(weight.shape, generator=generator)
            weight.copy_(values * 0.3 + 1 if weight.ndim == 1 else values * 0.16)


def llama3(params: dict[str, Any], vocabulary: int = VOCABULARY, seed: int = 0) -> Any:
    """Meta's Llama 3 with random weights."""
    stub_fairscale()
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    arguments = {**params, "vocab_size": vocabulary, "max_batch_size": 1, "max_seq_len": 64}
    model = Transformer(ModelArgs(**arguments)).eval()
    randomize(model, seed)
    return model


def llama4(params: dict[str, Any], vocabulary: int = VOCABULARY, seed: int = 0) -> Any:
    """Meta's Llama 4 text model with random weights."""
    stub_fairscale()
    import torch

    place, torch.Tensor.cuda = torch.Tensor.cuda, lambda self, *_: self  # type: ignore[assignment, method-assign]
    try:
        from llama_models.llama4.args import ModelArgs
        from llama_models.llama4.model import Transformer

        arguments = {**params, "vocab_size": vocabulary, "max_batch_size": 1, "max_seq_len": 64}
        model = Transformer(ModelArgs(**arguments)).eval()
    finally:
        torch.Tensor.cuda = place  # type: ignore[method-assign]
    randomize(model, seed)
    return model


def published_llama4(model: Any) -> State:
    """The state of Meta's Llama 4 under the names that the published files have: what its load hooks undo."""
    import torch

    state: State = {}
    for name, value in model.state_dict().items():
        prefix, _, suffix = name.rpartition("feed_forward.")
        is_moe = f"{prefix}feed_forward.router_DE" in model.state_dict()
        moe = {
            "experts.w1": ("experts.moe_w_in_eD_F", (-1, value.shape[-1])),
            "experts.w2": ("experts.moe_w_out_eF_D", (-1, value.shape[-1])),
            "experts.w3": ("experts.moe_w_swiglu_eD_F", (-1, value.shape[-1])),
            "shared_expert.w1.weight": ("w_in_shared_FD.weight", value.shape),
            "shared_expert.w2.weight": ("w_out_shared_DF.weight", value.shape),
            "shared_expert.w3.weight": ("w_swiglu_FD.weight", value.shape),
            "router_DE": ("router_DE", value.shape),
        }
        if prefix and is_moe:
            new, shape = moe[suffix]
            state[f"{prefix}feed_forward.{new}"] = value.reshape(shape)
        elif prefix and suffix == "w1.weight":
            w3 = model.state_dict()[f"{prefix}feed_forward.w3.weight"]
            state[f"{prefix}feed_forward.mlp.fc1_weight"] = torch.cat([value, w3])
        elif prefix and suffix == "w2.weight":
            state[f"{prefix}feed_forward.mlp.fc2_weight"] = value
        elif name.endswith("attention.wq.weight"):
            qkv = [model.state_dict()[name.replace("wq", kind)] for kind in ("wq", "wk", "wv")]
            state[name.replace("wq", "wqkv")] = torch.cat(qkv)
        elif name.endswith("attention_norm.weight"):
            state[name.replace("attention_norm.weight", "attention.wqkv.layer_norm_weight")] = value
        elif name.endswith("ffn_norm.weight"):
            place = "feed_forward.norm.weight" if f"{name[:-15]}feed_forward.router_DE" in model.state_dict() else ""
            state[name.replace("ffn_norm.weight", place or "feed_forward.mlp.layer_norm_weight")] = value
        elif not prefix and not name.endswith(("wk.weight", "wv.weight")):
            state[name] = value
    return state


def sharded(state: State, ranks: int, params: dict[str, Any], embed_by_columns: bool = False) -> list[State]:
    """What every rank saves (the inverse of llama_models.checkpoint.reshard_mp)."""
    return [
        {name: _part(name, value, rank, ranks, params, embed_by_columns) for name, value in state.items()}
        for rank in range(ranks)
    ]


def _part(name: str, value: Tensor, rank: int, ranks: int, params: dict[str, Any], embed_by_columns: bool) -> Tensor:
    import torch

    experts = (params.get("moe_args") or {}).get("num_experts", 1)
    if "moe_w_out" in name:
        found = value.view(experts, -1, value.shape[-1]).chunk(ranks, 1)[rank].reshape(-1, value.shape[-1])
    elif "moe_w_" in name or (name == "tok_embeddings.weight" and embed_by_columns) or BY_COLUMNS.fullmatch(name):
        found = value.chunk(ranks, -1)[rank]
    elif "wqkv.weight" in name:
        h = params["dim"] // params["n_heads"]
        sizes = [params["n_heads"] * h, params["n_kv_heads"] * h, params["n_kv_heads"] * h]
        found = torch.cat([part.chunk(ranks)[rank] for part in value.split(sizes)])
    elif "fc1_weight" in name:
        found = torch.cat([part.chunk(ranks)[rank] for part in value.chunk(2)])
    else:
        found = value if REPLICATED.fullmatch(name) else value.chunk(ranks)[rank]
    return found.clone()


def write_meta(folder: Path, shards: list[State], params: dict[str, Any]) -> Path:
    """The folder that Meta distributes, without a tokenizer."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for rank, state in enumerate(shards):
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def meta_logits(model: Any, ids: list[int], llama4: bool = False) -> Floats:
    """Logits of Meta's code after every id, [len(ids), vocab]."""
    import torch

    tokens = torch.tensor([ids])
    if not llama4:
        found: Floats = model(tokens, 0)[0].detach().numpy()
        return found
    from llama_models.llama4.datatypes import TransformerInput

    logits = model(TransformerInput(tokens=tokens, tokens_position=0)).logits
    return np.asarray(logits[0].detach().numpy(), np.float32)

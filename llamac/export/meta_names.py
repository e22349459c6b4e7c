"""How Meta's files hold the weights of Llama: names, shapes, and which weights lie in one tensor.

Those of Llama 3.2 Vision are in `meta_mllama`.
"""

from __future__ import annotations

from collections.abc import Collection

from llamac.models.image_shrink import vision_shapes
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.weights import META, expected_shapes, stored_name
from llamac.models.llama4 import vision_weights as llama4_vision
from llamac.models.name_table import MODEL

from .hf_names import HfTensor
from .meta_mllama import mllama_tensors

_LLAMA4: dict[str, tuple[str, tuple[str, ...]]] = {
    "attn_norm": ("attention.wqkv.layer_norm_weight", ("attn_norm",)),
    "attn.q": ("attention.wqkv.weight", ("attn.q", "attn.k", "attn.v")),
    "attn.k": ("", ()),
    "attn.v": ("", ()),
    "attn.o": ("attention.wo.weight", ("attn.o",)),
    "mlp_norm": ("feed_forward.mlp.layer_norm_weight", ("mlp_norm",)),
    "mlp.gate": ("feed_forward.mlp.fc1_weight", ("mlp.gate", "mlp.up")),
    "mlp.up": ("", ()),
    "mlp.down": ("feed_forward.mlp.fc2_weight", ("mlp.down",)),
    "moe.router": ("feed_forward.router_DE", ("moe.router",)),
    "moe.gate": ("feed_forward.experts.moe_w_in_eD_F", ("moe.gate",)),
    "moe.up": ("feed_forward.experts.moe_w_swiglu_eD_F", ("moe.up",)),
    "moe.down": ("feed_forward.experts.moe_w_out_eF_D", ("moe.down",)),
    "moe.shared.gate": ("feed_forward.w_in_shared_FD.weight", ("moe.shared.gate",)),
    "moe.shared.up": ("feed_forward.w_swiglu_FD.weight", ("moe.shared.up",)),
    "moe.shared.down": ("feed_forward.w_out_shared_DF.weight", ("moe.shared.down",)),
}
"""Weight in a layer of Llama 4 -> the tensor and all that lies in it; an empty name where it lies in another's."""


def meta_tensors(config: LlamaConfig, names: Collection[str]) -> list[HfTensor]:
    """Every tensor of one shard; a tied head is written out, as Meta's files have it."""
    if config.architecture == "mllama":
        return mllama_tensors(config, names)
    shapes = expected_shapes(config) | vision_shapes(config.vision, config.hidden_size, names)
    found: list[HfTensor] = []
    for name, shape in shapes.items():
        if name.startswith("vision."):
            stored = llama4_vision.NAMES.translated(name, MODEL, META)
            assert stored is not None, name
            found.append(HfTensor(stored, shape, (name,)))
        elif config.architecture == "llama4" and name.startswith("layers."):
            found += _llama4(config, name, shapes)
        else:
            found.append(HfTensor(stored_name(name, META), shape, (name,)))
    if config.tied_head:
        found.append(HfTensor("output.weight", shapes["embed"], ("embed",)))
    return found


def _llama4(config: LlamaConfig, name: str, shapes: dict[str, tuple[int, ...]]) -> list[HfTensor]:
    _, layer, part = name.split(".", 2)
    stored, parts = _LLAMA4[part]
    if not stored:
        return []
    if part == "mlp_norm" and config.is_moe(int(layer)):
        stored = "feed_forward.norm.weight"
    weights = tuple(f"layers.{layer}.{each}" for each in parts)
    rows, *columns = shapes[name]
    if part.startswith("moe.") and ".shared." not in part:
        assert config.moe is not None
        matrices = 1 if part == "moe.router" else config.moe.experts
        return [HfTensor(f"layers.{layer}.{stored}", (matrices, columns[0], rows // matrices), weights, "experts")]
    total = sum(shapes[each][0] for each in weights)
    return [HfTensor(f"layers.{layer}.{stored}", (total, *columns), weights)]

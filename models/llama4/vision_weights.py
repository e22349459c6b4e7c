"""Names and shapes of the weights of Llama 4's image tower, adapter and projector.

Norms, and linear layers that have one, keep their bias under the weight's name with `.bias`. Matrices are [out, in].
"""

from __future__ import annotations

from ..llama.vision_config import Llama4Vision
from ..name_table import LayerNames, NameTable

_META = "vision_embeddings.vision_encoder."

LAYER_ROWS = (
    ("attn_norm", "input_layernorm.weight", "ln_1.weight"),
    ("attn_norm.bias", "input_layernorm.bias", "ln_1.bias"),
    ("attn.q", "self_attn.q_proj.weight", "attn.wq.weight"),
    ("attn.q.bias", "self_attn.q_proj.bias", "attn.wq.bias"),
    ("attn.k", "self_attn.k_proj.weight", "attn.wk.weight"),
    ("attn.k.bias", "self_attn.k_proj.bias", "attn.wk.bias"),
    ("attn.v", "self_attn.v_proj.weight", "attn.wv.weight"),
    ("attn.v.bias", "self_attn.v_proj.bias", "attn.wv.bias"),
    ("attn.o", "self_attn.o_proj.weight", "attn.wo.weight"),
    ("attn.o.bias", "self_attn.o_proj.bias", "attn.wo.bias"),
    ("mlp_norm", "post_attention_layernorm.weight", "ln_2.weight"),
    ("mlp_norm.bias", "post_attention_layernorm.bias", "ln_2.bias"),
    ("mlp.up", "mlp.fc1.weight", "mlp.c_fc.weight"),
    ("mlp.up.bias", "mlp.fc1.bias", "mlp.c_fc.bias"),
    ("mlp.down", "mlp.fc2.weight", "mlp.c_proj.weight"),
    ("mlp.down.bias", "mlp.fc2.bias", "mlp.c_proj.bias"),
)
"""What a block of the tower holds."""

NAMES = NameTable(
    outer=(
        ("vision.patch", "vision_model.patch_embedding.linear.weight", f"{_META}conv1._linear.weight"),
        ("vision.class_token", "vision_model.class_embedding", f"{_META}class_embedding"),
        ("vision.position", "vision_model.positional_embedding_vlm", f"{_META}positional_embedding_vlm"),
        ("vision.pre_norm", "vision_model.layernorm_pre.weight", f"{_META}ln_pre.weight"),
        ("vision.pre_norm.bias", "vision_model.layernorm_pre.bias", f"{_META}ln_pre.bias"),
        ("vision.post_norm", "vision_model.layernorm_post.weight", f"{_META}ln_post.weight"),
        ("vision.post_norm.bias", "vision_model.layernorm_post.bias", f"{_META}ln_post.bias"),
        (
            "vision.adapter.up",
            "vision_model.vision_adapter.mlp.fc1.weight",
            "vision_embeddings.vision_adapter.mlp.c_fc.weight",
        ),
        (
            "vision.adapter.down",
            "vision_model.vision_adapter.mlp.fc2.weight",
            "vision_embeddings.vision_adapter.mlp.c_proj.weight",
        ),
        ("vision.projector", "multi_modal_projector.linear_1.weight", "vision_projection.weight"),
    ),
    layers=(
        LayerNames(("vision.layers.", "vision_model.model.layers.", f"{_META}transformer.resblocks."), LAYER_ROWS),
    ),
)
"""Every name, as transformers saves it and as Meta's consolidated files hold it."""


def expected_vision_shapes(vision: Llama4Vision, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every weight of the encoder with its shape, in the order it is applied; `hidden_size` is the text model's."""
    width, shuffled = vision.hidden_size, round(vision.hidden_size / vision.pixel_shuffle_ratio**2)
    shapes: dict[str, tuple[int, ...]] = {
        "vision.patch": (width, vision.channels * vision.patch_size**2),
        "vision.class_token": (width,),
        "vision.position": ((vision.image_size // vision.patch_size) ** 2 + 1, width),
        **norm_shapes("vision.pre_norm", width),
    }
    for index in range(vision.layers):
        shapes |= block_shapes(f"vision.layers.{index}", width, vision.intermediate_size, attention_bias=True)
    return shapes | {
        **norm_shapes("vision.post_norm", width),
        "vision.adapter.up": (vision.adapter_hidden, shuffled),
        "vision.adapter.down": (vision.adapter_output, vision.adapter_hidden),
        "vision.projector": (hidden_size, vision.adapter_output),
    }


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """A LayerNorm: weight and bias."""
    return {name: (width,), f"{name}.bias": (width,)}


def block_shapes(name: str, width: int, inner: int, attention_bias: bool) -> dict[str, tuple[int, ...]]:
    """A block of an encoder, of either generation."""
    shapes = norm_shapes(f"{name}.attn_norm", width)
    for part in "qkvo":
        shapes[f"{name}.attn.{part}"] = (width, width)
        if attention_bias:
            shapes[f"{name}.attn.{part}.bias"] = (width,)
    shapes |= norm_shapes(f"{name}.mlp_norm", width)
    shapes |= {f"{name}.mlp.up": (inner, width), f"{name}.mlp.up.bias": (inner,)}
    return shapes | {f"{name}.mlp.down": (width, inner), f"{name}.mlp.down.bias": (width,)}

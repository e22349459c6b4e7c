"""Names and shapes of the weights of Llama 3.2 Vision's image encoder and projector.

Norms, and linear layers that have one, keep their bias under the weight's name with `.bias`; gates are single numbers
whose tanh counts. What a tile adds by its place comes in one of two forms:

- `vision.pre_tile`, `vision.tile_position`, `vision.post_tile`: a row for each aspect ratio id, holding what every
  tile of such a picture adds, as transformers stores it;
- the same names with `.grid`: a row for each place of the grid of max_tiles x max_tiles, row by row, as Meta does.
"""

from __future__ import annotations

from ..llama.vision_config import MllamaVision
from ..llama4.vision_weights import block_shapes, norm_shapes
from ..name_table import LayerNames, NameTable

_META = "vision_model.vision_encoder."

LAYER_ROWS = (
    ("attn_norm", "input_layernorm.weight", "ln_1.weight"),
    ("attn_norm.bias", "input_layernorm.bias", "ln_1.bias"),
    ("attn.q", "self_attn.q_proj.weight", "attn.wq.weight"),
    ("attn.k", "self_attn.k_proj.weight", "attn.wk.weight"),
    ("attn.v", "self_attn.v_proj.weight", "attn.wv.weight"),
    ("attn.o", "self_attn.o_proj.weight", "attn.wo.weight"),
    ("mlp_norm", "post_attention_layernorm.weight", "ln_2.weight"),
    ("mlp_norm.bias", "post_attention_layernorm.bias", "ln_2.bias"),
    ("mlp.up", "mlp.fc1.weight", "mlp.c_fc.weight"),
    ("mlp.up.bias", "mlp.fc1.bias", "mlp.c_fc.bias"),
    ("mlp.down", "mlp.fc2.weight", "mlp.c_proj.weight"),
    ("mlp.down.bias", "mlp.fc2.bias", "mlp.c_proj.bias"),
)
"""What a block holds."""

GATE_ROWS = (
    ("attn_gate", "gate_attn", "gate_attn"),
    ("mlp_gate", "gate_ffn", "gate_ffn"),
)
"""What a global block holds besides."""

_PRE, _POST, _POSITION = "pre_tile_positional_embedding", "post_tile_positional_embedding", "gated_positional_embedding"

NAMES = NameTable(
    outer=(
        ("vision.patch", "vision_model.patch_embedding.weight", f"{_META}conv1._linear.weight"),
        ("vision.class_token", "vision_model.class_embedding", f"{_META}class_embedding"),
        ("vision.position", f"vision_model.{_POSITION}.embedding", f"{_META}positional_embedding"),
        ("vision.position.gate", f"vision_model.{_POSITION}.gate", f"{_META}gated_positional_embedding_gate"),
        ("vision.tile_position", f"vision_model.{_POSITION}.tile_embedding.weight", ""),
        ("vision.tile_position.grid", "", f"{_META}gated_positional_embedding"),
        ("vision.pre_tile", f"vision_model.{_PRE}.embedding.weight", ""),
        ("vision.pre_tile.grid", "", f"{_META}pre_tile_pos_embed.embedding"),
        ("vision.pre_tile.gate", f"vision_model.{_PRE}.gate", f"{_META}pre_tile_pos_embed.gate"),
        ("vision.post_tile", f"vision_model.{_POST}.embedding.weight", ""),
        ("vision.post_tile.grid", "", f"{_META}post_tile_pos_embed.embedding"),
        ("vision.post_tile.gate", f"vision_model.{_POST}.gate", f"{_META}post_tile_pos_embed.gate"),
        ("vision.pre_norm", "vision_model.layernorm_pre.weight", f"{_META}ln_pre.weight"),
        ("vision.pre_norm.bias", "vision_model.layernorm_pre.bias", f"{_META}ln_pre.bias"),
        ("vision.post_norm", "vision_model.layernorm_post.weight", f"{_META}ln_post.weight"),
        ("vision.post_norm.bias", "vision_model.layernorm_post.bias", f"{_META}ln_post.bias"),
        ("vision.projector", "multi_modal_projector.weight", "vision_model.vision_projection.weight"),
        ("vision.projector.bias", "multi_modal_projector.bias", "vision_model.vision_projection.bias"),
    ),
    layers=(
        LayerNames(
            ("vision.layers.", "vision_model.transformer.layers.", f"{_META}transformer.resblocks."), LAYER_ROWS
        ),
        LayerNames(
            (
                "vision.global_layers.",
                "vision_model.global_transformer.layers.",
                f"{_META}global_transformer.resblocks.",
            ),
            (*LAYER_ROWS, *GATE_ROWS),
        ),
    ),
)
"""Every name, as transformers saves it and as Meta's consolidated files hold it."""


def expected_vision_shapes(vision: MllamaVision, hidden_size: int, grids: bool = False) -> dict[str, tuple[int, ...]]:
    """Every weight of the encoder with its shape, in the order it is applied; `hidden_size` is the text model's.

    With `grids` the tables of tiles have Meta's form.
    """
    width, tokens = vision.hidden_size, vision.tile_tokens
    shapes: dict[str, tuple[int, ...]] = {
        "vision.patch": (width, vision.channels * vision.patch_size**2),
        **_tile_shapes("vision.pre_tile", vision, width, grids),
        "vision.pre_tile.gate": (1,),
        "vision.class_token": (width,),
        "vision.position": (tokens, width),
        **_tile_shapes("vision.tile_position", vision, tokens * width, grids),
        "vision.position.gate": (1,),
        **norm_shapes("vision.pre_norm", width),
    }
    for index in range(vision.layers):
        shapes |= block_shapes(f"vision.layers.{index}", width, vision.intermediate_size, attention_bias=False)
    shapes |= norm_shapes("vision.post_norm", width) | _tile_shapes("vision.post_tile", vision, width, grids)
    shapes["vision.post_tile.gate"] = (1,)
    for index in range(vision.global_layers):
        name = f"vision.global_layers.{index}"
        shapes |= block_shapes(name, width, vision.intermediate_size, attention_bias=False)
        shapes |= {f"{name}.attn_gate": (1,), f"{name}.mlp_gate": (1,)}
    return shapes | {"vision.projector": (hidden_size, vision.output_size), "vision.projector.bias": (hidden_size,)}


def _tile_shapes(name: str, vision: MllamaVision, values: int, grids: bool) -> dict[str, tuple[int, ...]]:
    """The table of what a tile adds, `values` numbers for each tile."""
    if grids:
        return {f"{name}.grid": (vision.max_tiles**2, values)}
    return {name: (len(vision.supported_aspect_ratios) + 1, vision.max_tiles * values)}


def matrix_shape(name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight as a matrix of the same elements: convolutions and grids are stored with four axes."""
    if len(stored) != 4:
        return stored
    first, second, third, fourth = stored
    return (first * second, third * fourth) if name.endswith(".grid") else (first, second * third * fourth)

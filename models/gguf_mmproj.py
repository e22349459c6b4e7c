"""Llama 4's image encoder in GGUF: a file of its own beside the text model, of llama.cpp's architecture `clip`.

Names and keys are those of llama.cpp's conversion (Llama4ForConditionalGeneration with --mmproj); what the file does
not say is a constant of its reader (tools/mtmd/clip.cpp and models/llama4.cpp), and so it is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llamac.errors import LlamacError

from .checkpoint import StoredTensor
from .gguf_file import GgufFile, GgufTensor, read_gguf
from .ledger import LedgerEntry, entry
from .llama.config import LlamaConfig
from .llama.gguf_config import FIX, GgufKeys
from .llama.vision_config import Llama4Vision
from .llama4.vision_limits import checked_encoder
from .llama4.vision_weights import expected_vision_shapes

ARCHITECTURE = "clip"
PROJECTOR = "llama4"
ROPE_THETA = 10000.0
NORM_EPS = 1e-5
"""Of the norms before and behind the blocks in every published model; the file has one for all norms."""
CHANNELS = 3
MEAN = STD = 0.5
TOKENS = ("<|patch|>", "<|image_start|>", "<|image_end|>")
"""What stands for a picture in a prompt: one for each of its tokens, and what comes before and behind."""

_LAYER = re.compile(r"vision\.layers\.(\d+)\.(.+?)(\.bias)?")
_OUTER = {
    "vision.patch": "v.patch_embd.weight",
    "vision.class_token": "v.class_embd",
    "vision.position": "v.position_embd.weight",
    "vision.pre_norm": "v.pre_ln.weight",
    "vision.pre_norm.bias": "v.pre_ln.bias",
    "vision.post_norm": "v.post_ln.weight",
    "vision.post_norm.bias": "v.post_ln.bias",
    "vision.adapter.up": "mm.model.mlp.1.weight",
    "vision.adapter.down": "mm.model.mlp.2.weight",
    "vision.projector": "mm.model.fc.weight",
}
_INNER = {
    "attn_norm": "ln1",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_out",
    "mlp_norm": "ln2",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_FLOATS = ("f32", "f16", "bf16")


def image_tensor_names(vision: Llama4Vision, hidden_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Model-level name -> the name in the file and the shape, in the order the weights are applied."""
    return {name: (_stored(name), shape) for name, shape in expected_vision_shapes(vision, hidden_size).items()}


def _stored(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        return _OUTER[name]
    layer, part, bias = match.groups()
    return f"v.blk.{layer}.{_INNER[part]}.{'bias' if bias else 'weight'}"


def is_image_file(path: Path) -> bool:
    """Whether a GGUF file is the picture side of another one, by the name that every converter gives it."""
    return "mmproj" in path.name.lower()


def images_beside(
    text: GgufFile, config: LlamaConfig, ledger: list[LedgerEntry]
) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    """`config` with the encoder that lies beside the text model, and its weights; unchanged where there is none.

    A file that belongs to another model is noted and left alone; LLC0206 to LLC0209 and LLC03xx for a damaged one.
    """
    if config.architecture != "llama4" or is_image_file(text.path):
        return config, {}
    files = sorted(path for path in text.path.parent.glob("*.gguf") if is_image_file(path))
    if not files:
        return config, {}
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:4])
        ledger.append(entry("note", "vision", "text alone", f"{len(files)} image encoders lie beside it: {names}"))
        return config, {}
    file = read_gguf(files[0])
    ids, reason = _image_ids(text.metadata), _of_another_model(file, config)
    if reason or ids is None:
        why = reason or f"the vocabulary has no {TOKENS[0]}"
        ledger.append(entry("note", "vision", "text alone", f"{file.path.name} is not its image encoder: {why}"))
        return config, {}
    vision = _vision(file, ids, ledger)
    return replace(config, vision=vision), image_weights(file, vision, config.hidden_size)


def _of_another_model(file: GgufFile, config: LlamaConfig) -> str:
    """Why a file cannot be the encoder of `config`; "" where it can."""
    wanted = {
        "general.architecture": ARCHITECTURE,
        "clip.projector_type": PROJECTOR,
        "clip.vision.projection_dim": config.hidden_size,
    }
    odd = next((key for key, value in wanted.items() if file.metadata.get(key) != value), None)
    return "" if odd is None else f"{odd} is {str(file.metadata.get(odd))[:40]}, not {wanted[odd]}"


def _image_ids(metadata: Mapping[str, object]) -> tuple[int, int, int] | None:
    """The ids of `TOKENS`; None where the vocabulary lacks one."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or any(token not in tokens for token in TOKENS):
        return None
    patch, start, end = (tokens.index(token) for token in TOKENS)
    return patch, start, end


def _vision(file: GgufFile, ids: tuple[int, int, int], ledger: list[LedgerEntry]) -> Llama4Vision:
    keys = GgufKeys(file.metadata, file.path.name, ledger, f"{ARCHITECTURE}.vision")
    _check_constants(file, keys)
    table = {tensor.name: tensor.shape for tensor in file.tensors}
    rows = {name: table[stored][0] for name, stored in _OUTER.items() if len(table.get(stored, ())) == 2}
    vision = Llama4Vision(
        hidden_size=keys.integer("embedding_length"),
        intermediate_size=keys.integer("feed_forward_length"),
        layers=keys.integer("block_count"),
        heads=keys.integer("attention.head_count"),
        image_size=keys.integer("image_size"),
        patch_size=keys.integer("patch_size"),
        channels=CHANNELS,
        rope_theta=ROPE_THETA,
        norm_eps=keys.number("attention.layer_norm_epsilon"),
        pixel_shuffle_ratio=1 / keys.integer("projector.scale_factor"),
        adapter_hidden=rows.get("vision.adapter.up", 1),
        adapter_output=rows.get("vision.adapter.down", 1),
        image_token=ids[0],
        image_start_token=ids[1],
        image_end_token=ids[2],
    )
    _check_sizes(vision, file.path.name)
    return checked_encoder(vision, file.path.name)


def _check_constants(file: GgufFile, keys: GgufKeys) -> None:
    """What every encoder of Llama 4 has."""
    if file.metadata.get("clip.use_gelu") is not True:
        reason = "clip.use_gelu is not true, and every encoder of Llama 4 has GELU"
        raise LlamacError("LLC0306", keys.where, reason, FIX)
    for key, wanted in (("image_mean", MEAN), ("image_std", STD)):
        if keys.raw.get(key) != [wanted] * CHANNELS:
            reason = f"{keys.prefix}{key} is {str(keys.raw.get(key))[:60]}, not {wanted} three times"
            raise LlamacError("LLC0308", keys.where, reason, FIX)


def _check_sizes(vision: Llama4Vision, where: str) -> None:
    """Patches fill a picture, tokens the patches, and heads of four rotated numbers the width."""
    side = vision.image_size // vision.patch_size
    if vision.image_size % vision.patch_size or side % round(1 / vision.pixel_shuffle_ratio):
        reason = f"{vision.image_size} pixels are no whole number of joined patches of {vision.patch_size}"
        raise LlamacError("LLC0304", where, reason, FIX)
    if vision.hidden_size % vision.heads or (vision.hidden_size // vision.heads) % 4:
        reason = f"{vision.hidden_size} values are no {vision.heads} heads of a multiple of 4"
        raise LlamacError("LLC0304", where, reason, FIX)


def image_weights(file: GgufFile, vision: Llama4Vision, hidden_size: int) -> dict[str, StoredTensor]:
    """Every weight of the encoder, by model-level name; shapes are compared with the config by the caller.

    LLC0206, LLC0207 and LLC0209 for a weight that is missing, unknown, or no float.
    """
    table = {tensor.name: tensor for tensor in file.tensors}
    found: dict[str, StoredTensor] = {}
    for name, (stored, _) in image_tensor_names(vision, hidden_size).items():
        if stored not in table:
            reason = f"the weight {stored} is missing in {file.path.name}"
            raise LlamacError("LLC0206", name, reason, "download the file again")
        found[name] = _weight(file, name, table.pop(stored))
    if table:
        reason = f"{next(iter(table))[:120]} in {file.path.name} is no weight of Llama 4's image encoder"
        raise LlamacError("LLC0207", "vision", reason, FIX)
    return found


def _weight(file: GgufFile, name: str, tensor: GgufTensor) -> StoredTensor:
    if tensor.encoding not in _FLOATS:
        reason = f"{tensor.name} is stored as {tensor.type_name}"
        raise LlamacError("LLC0209", name, reason, f"take an encoder of {', '.join(_FLOATS).upper()}")
    return StoredTensor(name, tensor.name, tensor.shape, tensor.encoding, file.path, tensor.offset, tensor.nbytes)

"""GGUF files of architectures `llama` and `llama4` -> `Checkpoint`: blocks stay as they are stored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llamac.errors import LlamacError

from .checkpoint import BLOCKS, ONLY_IN_PARTS, Checkpoint, FileRows, StoredTensor
from .gguf_file import GgufFile, GgufTensor, read_gguf
from .gguf_mmproj import images_beside
from .gguf_text import read_gguf_text
from .hf_weights import vision_shapes
from .ledger import LedgerEntry
from .llama.config import LlamaConfig
from .llama.gguf_config import config_from_gguf
from .llama.weights import GGUF, check_weights, missing_weight, model_name, model_place
from .llama4.gguf_config import ARCHITECTURE, config_from_gguf4

DIVISORS = "rope_freqs.weight"
CONFIGS: dict[str, Callable[..., LlamaConfig]] = {"llama": config_from_gguf, ARCHITECTURE: config_from_gguf4}
EXPERTS = re.compile(
    r"blk\.(0|[1-9]\d{0,5})\.(ffn_(?:gate_inp|gate_exps|up_exps|down_exps|gate_shexp|up_shexp|down_shexp))\.weight"
)
EXPERT_NAMES = {
    "ffn_gate_inp": "moe.router",
    "ffn_gate_exps": "moe.gate",
    "ffn_up_exps": "moe.up",
    "ffn_down_exps": "moe.down",
    "ffn_gate_shexp": "moe.shared.gate",
    "ffn_up_shexp": "moe.shared.up",
    "ffn_down_shexp": "moe.shared.down",
}


def read_gguf_checkpoint(path: Path) -> Checkpoint:
    """Read metadata and tensor table; no weight is touched.

    Raises LLC02xx for what is wrong with the file, LLC03xx for what is wrong with the model it describes.
    """
    file = read_gguf(path)
    _check_not_split(file)
    table = {tensor.name: tensor for tensor in file.tensors}
    ledger: list[LedgerEntry] = []
    if "token_embd.weight" not in table:
        raise missing_weight(["embed"], GGUF)
    config = _config_reader(file)(
        file.metadata,
        file.path.name,
        vocabulary_rows=table["token_embd.weight"].shape[0],
        tied_head="output.weight" not in table,
        divisors=_divisors(file, table),
        ledger=ledger,
    )
    found = {tensor.name: tensor for tensor in _weights(file, config)}
    config, images = images_beside(file, config, ledger)
    text = read_gguf_text(file.metadata, file.path.name, config.vocab_size)
    license_name = file.metadata.get("general.license")
    return Checkpoint(
        config=config,
        tensors=check_weights(config, found | images, GGUF, vision_shapes(config)),
        format="gguf",
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        generation=text.generation,
        name=config.name,
        license=license_name if isinstance(license_name, str) and license_name else None,
        ledger=[*ledger, *text.ledger],
    )


def _weights(file: GgufFile, config: LlamaConfig) -> list[StoredTensor]:
    return [_weight(file, tensor, config) for tensor in file.tensors if tensor.name != DIVISORS]


def _check_not_split(file: GgufFile) -> None:
    count = file.metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        reason = f"one part of {count} of a split GGUF file"
        raise LlamacError("LLC0210", file.path.name, reason, "merge the parts with `llama-gguf-split --merge`")


def _config_reader(file: GgufFile) -> Callable[..., LlamaConfig]:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in CONFIGS:
        reason = f"the architecture {str(architecture)[:60]!r} is not supported"
        raise LlamacError("LLC0301", file.path.name, reason, f"supported: {', '.join(CONFIGS)}")
    return CONFIGS[architecture]


def _expert_name(stored: str) -> str | None:
    """Model-level name of a weight of a mixture."""
    match = EXPERTS.fullmatch(stored)
    return f"layers.{match.group(1)}.{EXPERT_NAMES[match.group(2)]}" if match else None


def _weight(file: GgufFile, tensor: GgufTensor, config: LlamaConfig) -> StoredTensor:
    name = model_name(tensor.name, GGUF) or (_expert_name(tensor.name) if config.moe is not None else None)
    if name is None:
        reason = f"{tensor.name[:120]} is no weight of a dense Llama"
        raise LlamacError("LLC0207", model_place(tensor.name, GGUF), reason, "compile a plain dense Llama checkpoint")
    if tensor.encoding is None:
        supported = ", ".join(name.upper() for name in BLOCKS if name not in ONLY_IN_PARTS | {"e4m3fn"})
        reason = f"{tensor.name} is stored as {tensor.type_name}, which is not supported"
        raise LlamacError("LLC0209", name, reason, f"convert with one of {supported}")
    # The matrices of all experts follow one another, so their rows do too.
    shape = tensor.shape if len(tensor.shape) < 3 else (math.prod(tensor.shape[:-1]), tensor.shape[-1])
    return StoredTensor(name, tensor.name, shape, tensor.encoding, file.path, tensor.offset, tensor.nbytes)


def _divisors(file: GgufFile, table: dict[str, GgufTensor]) -> tuple[float, ...]:
    """The divisors of the inverse frequencies, in which GGUF expresses llama3 scaling; empty when there are none."""
    tensor = table.get(DIVISORS)
    if tensor is None:
        return ()
    if tensor.encoding != "f32" or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 14:
        reason = f"{DIVISORS} is {tensor.type_name} {list(tensor.shape)}, expected one F32 vector"
        raise LlamacError("LLC0209", "rope", reason, "convert the checkpoint again")
    stored = StoredTensor("rope", DIVISORS, tensor.shape, "f32", file.path, tensor.offset, tensor.nbytes)
    return tuple(FileRows().read(stored, 0, 1).view(np.dtype("<f4")).tolist())

"""Meta's own checkpoints: params.json and one `consolidated.NN.pth` for each model-parallel rank -> `Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llamac.errors import LlamacError

from .checkpoint import Checkpoint, FileRows, StoredTensor, encodings
from .hf_text import read_text_files
from .input_files import read_json_object
from .ledger import LedgerEntry, entry
from .license import find_license
from .llama.config import LlamaConfig, shape_name
from .llama.kv_heads import without_repeated_kv_heads
from .llama.meta_config import config_from_meta
from .llama.meta_fp8 import with_fp8_scales
from .llama.meta_weights import MetaWeights
from .llama.weights import META, check_weights
from .torch_file import ENCODINGS as TORCH_ENCODINGS
from .torch_file import TorchFile, read_torch_file

SHARD = re.compile(r"consolidated\.(\d{2,3})\.pth")
DTYPES = ("bf16", "f16", "f32")


def read_meta_directory(directory: Path) -> Checkpoint:
    """Read params.json, the description of every shard, and the tokenizer; compares a few rows of weights.

    Raises LLC02xx for what is wrong with the files, LLC03xx for what is wrong with params.json.
    """
    raw = read_json_object(directory / "params.json") if (directory / "params.json").is_file() else None
    if raw is None:
        reason = f"no params.json beside the weights in {directory.name or directory}"
        raise LlamacError("LLC0201", "params.json", reason, "download the whole folder")
    shards = [read_torch_file(path) for path in _shard_paths(directory)]
    config, ledger = config_from_meta(raw, _vocabulary_rows(shards), _dtype(shards[0]))
    weights = MetaWeights(config, shards, ledger)
    config, found = weights.config, weights.read()
    if config.kv_heads == len(shards):
        config, found = without_repeated_kv_heads(config, found, ledger)
    found = with_fp8_scales(directory, len(shards), found, ledger)
    tensors = check_weights(config, found, META, weights.shapes())
    config, tensors = _tied_where_equal(config, tensors, ledger)
    config = replace(config, name=shape_name(config.parameters))
    _note_other_encodings(config, tensors, ledger)
    text = read_text_files(directory, raw, config.vocab_size)
    return Checkpoint(
        config=config,
        tensors=tensors,
        format="meta",
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        generation=text.generation,
        name=config.name,
        license=find_license(directory),
        ledger=[*ledger, *text.ledger],
    )


def meta_shards(directory: Path) -> list[Path]:
    """The shards in a folder, by rank."""
    return sorted(path for path in directory.glob("consolidated.*.pth") if SHARD.fullmatch(path.name))


def _shard_paths(directory: Path) -> list[Path]:
    paths = meta_shards(directory)
    for rank, path in enumerate(paths):
        match = SHARD.fullmatch(path.name)
        if match is None or int(match.group(1)) != rank:
            name = f"consolidated.{rank:02}.pth"
            raise LlamacError("LLC0205", name, f"this shard is missing beside {paths[-1].name}", "download it again")
    if not paths:
        reason = "no consolidated.NN.pth is in the folder"
        raise LlamacError("LLC0205", "consolidated.00.pth", reason, "download the weights")
    return paths


def _vocabulary_rows(shards: Sequence[TorchFile]) -> int:
    """Rows of the output matrix over all shards."""
    prefix = "text_model." if "text_model.output.weight" in shards[0].tensors else ""
    found = [shard.tensors.get(f"{prefix}output.weight") for shard in shards]
    rows = [tensor.shape[0] for tensor in found if tensor is not None and len(tensor.shape) == 2]
    if len(rows) != len(shards):
        name = shards[len(rows)].path.name
        raise LlamacError("LLC0206", "head", f"the weight output.weight is missing in {name}", "download it again")
    return sum(rows)


def _dtype(shard: TorchFile) -> str:
    """The working dtype: what most weights are stored in."""
    counts: dict[str, int] = {}
    for tensor in shard.tensors.values():
        encoding = TORCH_ENCODINGS.get(tensor.dtype, "")
        counts[encoding] = counts.get(encoding, 0) + 1
    best = sorted((encoding for encoding in counts if encoding in DTYPES), key=lambda encoding: -counts[encoding])
    return best[0] if best else "bf16"


def _tied_where_equal(
    config: LlamaConfig, tensors: dict[str, StoredTensor], ledger: list[LedgerEntry]
) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    """Meta's files hold the output matrix of tied models too: where it equals the embedding it is dropped."""
    embed, head = tensors["embed"], tensors["head"]
    if (embed.encoding, embed.shape) != (head.encoding, head.shape):
        return config, tensors
    rows, step = FileRows(), max(1, (16 << 20) // embed.row_bytes)
    for lo in range(0, embed.rows, step):
        hi = min(lo + step, embed.rows)
        if (rows.read(embed, lo, hi) != rows.read(head, lo, hi)).any():
            return config, tensors
    ledger.append(entry("note", "head", "tied to embed", "output.weight equals tok_embeddings.weight, value for value"))
    return replace(config, tied_head=True), {name: tensor for name, tensor in tensors.items() if name != "head"}


def _note_other_encodings(config: LlamaConfig, found: Mapping[str, StoredTensor], ledger: list[LedgerEntry]) -> None:
    for encoding, count in encodings(found).items():
        if encoding != config.dtype:
            what = f"{count} weights are stored as {encoding}"
            ledger.append(entry("note", "weights", what, f"most are {config.dtype}: read as they are stored"))

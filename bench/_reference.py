"""fp32 references that logits are compared with: transformers on a checkpoint, or an artifact of `--quantize f32`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import llamac
from llamac.models.sources import EMBEDDED, embedded_model

Floats = NDArray[np.float32]
Change = Callable[[Any], Any]
"""From a torch tensor [out, in] of f32 to another."""


class Reference(Protocol):
    """Gives the logits after every id of a fresh sequence, [len(ids), vocab]."""

    name: str
    vocab_size: int

    def logits(self, ids: list[int]) -> Floats: ...


class ArtifactReference:
    """An artifact; for fp32 arithmetic on the checkpoint's own values it must be compiled with `quantize="f32"`."""

    def __init__(self, path: str | Path) -> None:
        self._model = llamac.load(path)
        scheme = self._model.manifest["quantization"]
        if scheme != "f32":
            raise SystemExit(f"{path}: a reference is compiled with --quantize f32, this artifact with {scheme}")
        self.name = f"{Path(path).name} (llamac, f32)"
        self.vocab_size = self._model.vocab_size

    def logits(self, ids: list[int]) -> Floats:
        return self._model.logits(ids)


class TransformersReference:
    """A checkpoint in transformers, in fp32: a Hugging Face folder, or a GGUF file with its blocks dequantized."""

    def __init__(self, source: str | Path) -> None:
        import torch
        import transformers

        logging: Any = transformers.utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        path = embedded_model() if str(source) == EMBEDDED else Path(source)
        where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        loader: Any = transformers.AutoModelForCausalLM
        self._model = loader.from_pretrained(str(folder), dtype=torch.float32, **where).eval()
        self._originals: dict[str, Any] = {}
        self.name = f"transformers {transformers.__version__}, fp32"
        self.vocab_size = int(self._model.config.vocab_size)

    def logits(self, ids: list[int]) -> Floats:
        import torch

        with torch.inference_mode():
            found: Floats = self._model(torch.tensor([ids])).logits[0].numpy()
        return found

    def set_matrices(self, of_layers: Change, of_tables: Change) -> None:
        """Replace every weight matrix by a change of it as the checkpoint has it, a torch tensor [out, in] of f32.

        The tables are the embedding and the head.
        """
        import torch

        with torch.no_grad():
            for name, weight in self._model.named_parameters():
                if weight.ndim == 2:
                    original = self._originals.setdefault(name, weight.clone())
                    weight.copy_((of_layers if ".layers." in name else of_tables)(original))

    def greedy(self, ids: list[int], steps: int) -> Floats:
        """The logits before each of `steps` greedy ids after `ids`, [steps, vocab]."""
        import torch

        rows, cache, new = [], None, ids
        with torch.inference_mode():
            for _ in range(steps):
                found = self._model(torch.tensor([new]), past_key_values=cache, use_cache=True)
                cache = found.past_key_values
                rows.append(found.logits[0, -1].numpy())
                new = [int(rows[-1].argmax())]
        return np.stack(rows)

"""What capture gives: the captured graph, and the weights as a checkpoint that reads them where torch holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import DTYPES
from llamac.ir.graph import FileSource, Module
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module

from ..checkpoint import Checkpoint, GenerationDefaults, StoredTensor
from ..ledger import LedgerEntry
from ..llama.config import LlamaConfig
from ..llama.weights import HF, check_weights
from .torch_library import require_torch


@dataclass(frozen=True)
class CapturedModel:
    """A torch model as llamac sees it. `module` is at level "captured"; passes change it in place: see `fresh`."""

    module: Module
    checkpoint: Checkpoint

    @property
    def config(self) -> LlamaConfig:
        return self.checkpoint.config

    def fresh(self) -> Module:
        """A copy of the captured module that passes may change."""
        return parse_module(print_module(self.module))

    def read_rows(self, name: str, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi) of a weight, straight from the torch tensor."""
        return self.checkpoint.read_rows(name, lo, hi)


class TorchRows:
    """Rows of weights out of torch tensors, wherever they are; only the rows asked for are copied."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi)."""
        torch = require_torch()
        held = self._tensors[tensor.name].detach()
        rows = held[lo:hi] if held.ndim == 2 else held
        found: NDArray[np.uint8] = rows.contiguous().cpu().view(torch.uint8).reshape(-1).numpy()
        return found


def torch_checkpoint(
    module: Module,
    config: LlamaConfig,
    tensors: Mapping[str, Any],
    stored_names: Mapping[str, str],
    ledger: list[LedgerEntry],
) -> Checkpoint:
    """The checkpoint of a captured module; `tensors` and `stored_names` are by model-level name (LLC0206..LLC0208)."""
    stored: dict[str, StoredTensor] = {}
    for name, weight in module.weights.items():
        if not isinstance(weight.source, FileSource):
            continue
        encoding, shape = weight.source.encoding, tuple(int(d) for d in tensors[name].shape)
        nbytes = int(np.prod(shape, dtype=np.int64)) * DTYPES[encoding].storage.itemsize
        stored[name] = StoredTensor(name, stored_names[name], shape, encoding, Path("torch"), 0, nbytes)
    return Checkpoint(
        config=config,
        tensors=check_weights(config, stored, HF),
        format="torch",
        tokenizer=None,
        chat_template=None,
        generation=GenerationDefaults(),
        name=config.name,
        license=None,
        ledger=ledger,
        row_source=TorchRows(tensors),
    )

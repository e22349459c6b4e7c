"""Compiled code that is loaded: once for all graphs of a module, which share its pages."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.graph import inverse_frequencies
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.session import Session

from .graph_inputs import GraphInputs
from .options import CompileOptions
from .outside import OutsideCaches
from .page_rows import PageRows, Turning
from .prefixes import Prefixes


class LoadedCode:
    """A loaded artifact, and what its pages hold: the last `keep` texts, and caches outside."""

    def __init__(self, model: Model, config: LlamaConfig, keep: int) -> None:
        session: Session = model.session
        self._model = model
        device = session.device
        assert isinstance(device, CpuDevice)
        frequencies = torch.from_numpy(inverse_frequencies(config))
        turning = Turning(frequencies, config.rope_style == "interleaved")
        self.prefixes = Prefixes(session, keep, lambda: self.caches.spare())
        self.caches = OutsideCaches(session, PageRows(device, config), turning, self.prefixes.spare)


_LOADED: weakref.WeakValueDictionary[tuple[object, ...], LoadedCode] = weakref.WeakValueDictionary()
"""What compiled graphs hold on to; it goes when the last of them does."""


def load_code(path: Path, config: LlamaConfig, inputs: GraphInputs, options: CompileOptions) -> LoadedCode:
    """The code at `path`, with room for the longest text of the graph, as loaded for another graph before."""
    longest = min(config.context_length, max(options.context, inputs.example.total, inputs.capacity or 0))
    key = (str(path), options.threads, options.sequences, options.keep, longest)
    found = _LOADED.get(key)
    if found is None:
        model = load(path, threads=options.threads, sequences=options.sequences, context=longest, device="cpu")
        _LOADED[key] = found = LoadedCode(model, config, options.keep)
    return found

"""llamac for PyTorch and transformers: artifacts behind `generate()`, as an op of a graph, and `torch.compile`.

    model = llamac.torch.LlamacModel.from_artifact("model.llamac")
    torch.compile(module, backend="llamac")

Names are resolved on first use; everything but this file needs torch, and `LlamacModel` needs transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import llamac_backend as llamac_backend
    from .cache import LlamacCache as LlamacCache
    from .config import LlamacConfig as LlamacConfig
    from .model import LlamacModel as LlamacModel
    from .step_op import step as step
    from .step_op import use_artifact as use_artifact
    from .tokenizer import tokenizer_of as tokenizer_of

_PUBLIC = {
    "LlamacCache": "cache",
    "LlamacConfig": "config",
    "LlamacModel": "model",
    "llamac_backend": "backend",
    "step": "step_op",
    "tokenizer_of": "tokenizer",
    "use_artifact": "step_op",
}
"""Public name -> the module of this package that defines it."""

__all__ = [
    "LlamacCache",
    "LlamacConfig",
    "LlamacModel",
    "llamac_backend",
    "step",
    "tokenizer_of",
    "use_artifact",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llamac.torch' has no attribute {name!r}")
    from importlib import import_module

    from .libraries import require

    require("torch", *(["transformers"] if name.startswith("Llamac") or name == "tokenizer_of" else []))
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

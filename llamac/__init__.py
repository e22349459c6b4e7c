"""llamac: an ahead-of-time compiler for the Llama family, and the thin runtime for the files it makes.

    llamac.compile("path/to/checkpoint", target="cpu", output="model.llamac")
    llamac.load("model.llamac").generate("The capital of France is")

Names are resolved on first use, so that importing one part never pays for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamac.driver import capture as capture
    from llamac.driver import compile as compile
    from llamac.errors import LlamacError as LlamacError
    from llamac.runtime.loader import load as load
    from llamac.target import Target as Target

    __version__: str

_PUBLIC = {
    "LlamacError": "llamac.errors",
    "Target": "llamac.target",
    "capture": "llamac.driver",
    "compile": "llamac.driver",
    "load": "llamac.runtime.loader",
}
"""Public name -> the module that defines it."""

__all__ = ["LlamacError", "Target", "__version__", "capture", "compile", "load"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("llamac")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llamac' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

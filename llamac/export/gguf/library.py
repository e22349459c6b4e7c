"""The package `gguf`, imported when it is needed."""

from __future__ import annotations

from types import ModuleType

from llamac.errors import LlamacError


def gguf_library() -> ModuleType:
    """The package; LLC0948 where it is not installed."""
    try:
        import gguf
        import gguf.quants
    except ImportError as problem:
        reason = "writing GGUF needs the package 'gguf'"
        raise LlamacError("LLC0948", "--to gguf", reason, "pip install 'llamac[export]'") from problem
    return gguf

"""The ONNX libraries, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llamac.errors import LlamacError

INSTALL = {
    "onnx": 'pip install "llamac[onnx]"',
    "onnxruntime": 'pip install "llamac[onnx]"',
    "onnxruntime_genai": "pip install onnxruntime-genai",
}


def library(name: str) -> Any:
    """The module `name` of `INSTALL`; LLC0930 with what to install when it is not there."""
    try:
        return import_module(name)
    except ImportError as error:
        hint = INSTALL[name.partition(".")[0]]
        raise LlamacError("LLC0930", name.partition(".")[0], f"it cannot be imported: {error}", hint) from error


def is_installed(name: str) -> bool:
    """Whether `name` of `INSTALL` can be imported."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True

"""Meta's own implementation (PyPI llama-models), the oracle of the text side; `torchvision` is only stood in for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import pytest


@cache
def metas(name: str) -> Any:
    """A module of llama_models; the test is skipped where the package, or what it imports, is not there."""
    for needed in ("llama_models", "PIL", "pydantic"):
        pytest.importorskip(needed)
    if "llama4" in name:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")  # first: it would take the stand-in for the real thing
        with _torchvision():
            return importlib.import_module(f"llama_models.{name}")
    return importlib.import_module(f"llama_models.{name}")


@contextmanager
def _torchvision() -> Iterator[None]:
    if "torchvision" in sys.modules:
        yield
        return
    vision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    transforms.functional = ModuleType("functional")  # type: ignore[attr-defined]
    vision.transforms = transforms  # type: ignore[attr-defined]
    stand_ins = {"torchvision": vision, "torchvision.transforms": transforms}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


@cache
def chat_format(generation: int) -> Any:
    """Meta's ChatFormat of Llama 3 or 4 with its tokenizer."""
    tokenizer = metas(f"llama{generation}.tokenizer").Tokenizer.get_instance()
    return metas(f"llama{generation}.chat_format").ChatFormat(tokenizer)


def raw_messages(messages: list[dict[str, Any]]) -> list[Any]:
    """Rows of role, content, tool_calls, stop_reason as Meta's RawMessage."""
    types = metas("datatypes")
    raw = []
    for row in messages:
        calls = [
            types.ToolCall(call_id="x", tool_name=call["name"], arguments=call["arguments"])
            for call in row.get("tool_calls", [])
        ]
        reason = row.get("stop_reason")
        stop = None if reason is None else types.StopReason(reason)
        raw.append(types.RawMessage(role=row["role"], content=row["content"], tool_calls=calls, stop_reason=stop))
    return raw

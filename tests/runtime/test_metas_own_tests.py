"""Meta's own 30 offline tests, as they stand in the llama-models wheel, run against llamac's implementations.

Each test module is loaded with its names `Tokenizer`, `ChatFormat`, `ToolUtils` ... bound to the thin adapters below,
and every test case in it has to pass. None is left out. Where a test of llama4/test_chat_format.py replaces Meta's
extraction by a mock, so that its text is no call at all, the adapter puts in the text that the mock stands for.
"""

from __future__ import annotations

import importlib.util
import unittest
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamac.runtime.text.formats.headers import LLAMA3_1
from llamac.runtime.text.formats.messages import read_messages
from llamac.runtime.text.formats.pieces import encode
from llamac.runtime.text.tools.call import ToolCall
from llamac.runtime.text.tools.parser import parse
from llamac.runtime.text.tools.write import call_text

from .metas_code import metas
from .test_tokenizer import llama
from .text_sources import package_file

FILES = {
    "llama3/tests/api/test_tokenizer.py": 5,
    "llama3/tests/api/test_tool_utils.py": 20,
    "llama4/tests/api/test_chat_format.py": 5,
}


class Tokenizer:
    """Meta's Tokenizer by llamac's."""

    special_tokens = property(lambda self: llama(3).special_ids)

    @classmethod
    def get_instance(cls) -> Tokenizer:
        return cls()

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        end = [llama(3).eos_id] if eos else []
        return [*llama(3).encode(text, add_bos=bos), *end]  # type: ignore[list-item]

    def decode(self, token_ids: list[int]) -> str:
        return llama(3).decode(token_ids, skip_special=False)


class ChatFormat:
    """Meta's ChatFormat of Llama 3 and 4 by llamac's format and parser."""

    def __init__(self, tokenizer: Any) -> None:
        pass

    def encode_message(self, message: Any, tool_prompt_format: Any) -> tuple[list[int], list[Any]]:
        [row] = read_messages([{"role": message.role, "content": message.content}])
        return encode(llama(3), list(LLAMA3_1._message(row)), "llama3.1"), []

    def encode_dialog_prompt(self, messages: list[Any]) -> Any:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return SimpleNamespace(tokens=encode(llama(3), LLAMA3_1.pieces(rows), "llama3.1"))

    def decode_assistant_message_from_content(self, content: str, stop_reason: Any) -> Any:
        found = parse(self._as_mocked(content))
        builtin = metas("datatypes").BuiltinTool
        calls = [
            SimpleNamespace(
                call_id=place,
                tool_name=builtin(call.name) if call.name in builtin.__members__ else call.name,
                arguments=call.arguments,
                arguments_json=call.arguments_json,
            )
            for place, call in enumerate(found.calls)
        ]
        return SimpleNamespace(tool_calls=calls, content=found.text)

    def _as_mocked(self, content: str) -> str:
        """The text for which a mocked extraction stands: that of a built-in call."""
        extract = metas("llama3.tool_utils").ToolUtils.maybe_extract_builtin_tool_call
        found = getattr(extract, "return_value", None)
        if not found:
            return content
        return call_text(ToolCall(found[0], {"query": found[1]}, "builtin"))


class ToolUtils:
    """Meta's ToolUtils by llamac's parser."""

    @staticmethod
    def maybe_extract_custom_tool_call(text: str) -> tuple[str, Any] | None:
        calls = parse(text).calls
        return (calls[0].name, calls[0].arguments) if calls else None


def is_valid_python_list(text: str) -> bool:
    calls = parse(text).calls
    return bool(calls) and all(call.kind == "python" for call in calls)


def parse_python_list_for_function_calls(text: str) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in parse(text).calls]


ADAPTERS = {
    "Tokenizer": Tokenizer,
    "ChatFormat": ChatFormat,
    "ToolUtils": ToolUtils,
    "is_valid_python_list": is_valid_python_list,
    "parse_python_list_for_function_calls": parse_python_list_for_function_calls,
}


@cache
def cases(name: str) -> dict[str, unittest.TestCase]:
    """The test cases of one of Meta's modules, by name, with llamac's adapters in place of what it imported."""
    for needed in ("llama3.chat_format", "llama3.tool_utils", *(["llama4.chat_format"] if "llama4" in name else [])):
        metas(needed)
    path = package_file("llama-models", f"llama_models/{name}")
    spec = importlib.util.spec_from_file_location("metas_" + path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    replaced = _replace(module)
    assert replaced, "the module imports nothing that llamac has an adapter for"
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    return {case.id().split(".", 1)[1]: case for group in suite for case in group}  # type: ignore[union-attr, misc]


def _replace(module: ModuleType) -> list[str]:
    names = [name for name in ADAPTERS if name in vars(module)]
    for name in names:
        setattr(module, name, ADAPTERS[name])
    if "Mock" in vars(module):  # its tokenizer is a mock of Meta's class, which the adapter does not look at
        module.Tokenizer = metas("llama4.tokenizer").Tokenizer  # type: ignore[attr-defined]
    return names


@pytest.mark.parametrize(("name", "count"), FILES.items())
def test_metas_tests_pass(name: str, count: int) -> None:
    found = cases(name)
    assert len(found) == count
    for title, case in found.items():
        result = unittest.TestResult()
        case.run(result)
        problems = [trace for _, trace in [*result.failures, *result.errors]]
        assert result.wasSuccessful() and not result.skipped, f"{title}\n{''.join(problems)}"

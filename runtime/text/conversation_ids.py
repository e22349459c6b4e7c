"""A conversation as ids: by the artifact's chat template, or by one of the family's own formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamac.errors import LlamacError

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .tools.offered import OfferedTools, Tool


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] | None,
    template: ChatTemplate | None,
    chat_format: str | None,
) -> list[int]:
    """Ids that end where the assistant's next words begin; exactly one of template and format name is given."""
    if template is None:
        from .formats.registry import encode_conversation, find_format

        return encode_conversation(find_format(chat_format), tokenizer, messages, tools)
    from .template_messages import for_template

    rows = for_template(messages, template.source) if isinstance(messages, (list, tuple)) else messages
    if not tools:
        return template.encode(tokenizer, rows)
    from .tools.offered import read_tools

    return template.encode(tokenizer, rows, **_variables(read_tools(tools), template.source))


def _variables(tools: OfferedTools, source: str) -> dict[str, Any]:
    """What the templates published with Llama checkpoints read; LLC0916 where one reads nothing of the kind."""
    builtin = [*tools.builtin, *(["code_interpreter"] if tools.code else [])]
    variables: dict[str, Any] = {"tools": tools.for_template()} | ({"builtin_tools": builtin} if builtin else {})
    unread = [name for name, value in variables.items() if value and name not in source]
    if unread:
        reason = f"the model's chat template has no place for {unread[0].replace('_', '-')}"
        raise LlamacError("LLC0916", "tools", reason, "describe the tools in a message, or name a chat format")
    return variables

"""Chat templates for sources that have none: Meta's folders, whose format follows from vocabulary and scaling.

They hold what a conversation of texts and pictures needs, and refuse tools, which are the business of the formats.
"""

from __future__ import annotations

from llamac.models.checkpoint import Checkpoint
from llamac.runtime.text.formats.headers import HeaderFormat
from llamac.runtime.text.formats.registry import FORMATS

_NO_TOOLS = """{%- if tools %}{{- raise_exception('this template offers no tools') }}{%- endif %}
"""

_HEADERS = (
    _NO_TOOLS
    + """{{- bos_token }}
{%- for message in messages %}
    {%- if message['tool_calls'] %}{{- raise_exception('this template writes no calls of tools') }}{%- endif %}
    {{- 'START' + ('ipython' if message['role'] == 'tool' else message['role']) + 'STOP\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- '<|image|>' if part['type'] == 'image' else part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- 'END' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'STARTassistantSTOP\\n\\n' }}
{%- endif %}
"""
)

_LLAMA2 = (
    _NO_TOOLS
    + """{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- for message in turns %}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}
        {{- raise_exception('messages are the user\\'s and the assistant\\'s in turn') }}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- elif loop.first and system is not none %}
        {%- set first = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
        {{- bos_token + '[INST] ' + first.strip() + ' [/INST]' }}
    {%- else %}
        {{- bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
    {%- endif %}
{%- endfor %}
"""
)


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The source's own template, or that of its chat format; None where it has neither, or a Guard's."""
    if checkpoint.chat_template is not None or checkpoint.tokenizer is None:
        return checkpoint.chat_template
    name = checkpoint.tokenizer.info.get("chat_format")
    row = FORMATS.get(name) if isinstance(name, str) else None
    if isinstance(row, HeaderFormat):
        marks = {"START": row.header[0], "STOP": row.header[1], "END": row.end_of_turn}
        text = _HEADERS
        for mark, control in marks.items():
            text = text.replace(mark, control)
        return text
    return _LLAMA2 if name == "llama2" else None

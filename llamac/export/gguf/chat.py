"""How a conversation is written for a checkpoint: which of the family's formats it has, and that format in Jinja.

A checkpoint brings a chat template in Jinja, which goes into the file as it is, or, from a folder in Meta's layout, the
name of one of the runtime's formats; then a template that writes messages the same way is put in its place.
"""

from __future__ import annotations

from llamac.models.checkpoint import Checkpoint

_HEADERS = (
    "{{- bos_token }}{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{- 'START' + role + 'END\\n\\n' + message['content'] + 'TURN' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- 'STARTassistantEND\\n\\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{- ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def _headers(start: str, end: str, turn: str) -> str:
    return _HEADERS.replace("START", start).replace("END", end).replace("TURN", turn)


LLAMA3 = _headers("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA4 = _headers("<|header_start|>", "<|header_end|>", "<|eot|>")
JINJA = {"llama2": _LLAMA2, "llama3": LLAMA3, "llama3.1": LLAMA3, "llama3.2": LLAMA3, "llama4": LLAMA4}
"""Format of the runtime -> a template that writes conversations without tools as it does."""


def chat_format(checkpoint: Checkpoint) -> str | None:
    """The name of the runtime's format that a checkpoint has, told from its template; None for any other."""
    template = checkpoint.chat_template
    if template is None:
        named = None if checkpoint.tokenizer is None else checkpoint.tokenizer.info.get("chat_format")
        return named if isinstance(named, str) else None
    guards = "UNSAFE CONTENT CATEGORIES" in template
    if "<|header_start|>" in template:
        return "llama-guard-4" if guards else "llama4"
    if "<|start_header_id|>" in template:
        if guards:
            return "llama-guard-3" if "Code Interpreter Abuse" in template else "llama-guard-3-1b"
        return "llama3.1" if "ipython" in template else "llama3"
    if "[INST]" in template and guards:
        return "llama-guard-2"
    return "llama2" if "[INST]" in template and "<<SYS>>" in template else None


def jinja_template(checkpoint: Checkpoint) -> str | None:
    """The template for `tokenizer.chat_template`."""
    return checkpoint.chat_template or JINJA.get(chat_format(checkpoint) or "")

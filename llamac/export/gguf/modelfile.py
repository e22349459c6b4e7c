"""The Modelfile of Ollama: where the weights are, how a conversation is written, where an answer ends.

    FROM ./model.gguf
    TEMPLATE \"\"\"...\"\"\"
    PARAMETER stop "<|eot_id|>"
    LICENSE \"\"\"...\"\"\"

A value ends at the first line end after its closing quotes, nothing in it can be escaped, and characters that do not
print are lost on the way (parser/parser.go). So every value is read back as Ollama would before it is written.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamac.errors import LlamacError

from ..request import ExportRequest
from .chat import chat_format
from .keys import Keys
from .ollama_templates import TEMPLATES

CONTEXT = 8192
"""Positions that Ollama should make room for unless asked otherwise: its cache is allocated at once."""
PARAMETERS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
PARAMETERS |= {"repetition_penalty": "repeat_penalty"}
QUOTES = '"""'


def modelfile(request: ExportRequest, keys: Keys, model_file: str) -> str:
    """The text; `keys` are the file's metadata. LLC0924 for an option `num_ctx` that is no number of positions."""
    lines = [f"FROM ./{model_file}", *_template(request)]
    for stop in _stops(request, keys):
        lines += _line(request, "PARAMETER stop", stop)
    for name, value in sorted(request.checkpoint.generation.sampling.items()):
        if name in PARAMETERS:
            lines.append(f"PARAMETER {PARAMETERS[name]} {value:g}")
    lines.append(f"PARAMETER num_ctx {_context(request)}")
    if request.checkpoint.license:
        lines += _line(request, "LICENSE", request.checkpoint.license)
    return "\n".join(lines) + "\n"


def _template(request: ExportRequest) -> Iterator[str]:
    name = chat_format(request.checkpoint)
    if name in TEMPLATES:
        yield from _line(request, "TEMPLATE", TEMPLATES[name])
        request.note("note", "Modelfile TEMPLATE", f"the format {name}", "told from the checkpoint's chat template")
        return
    reason = "the chat template is none of the family's" if request.checkpoint.chat_template else "there is none"
    hint = "Ollama looks at the one in the file, and sends the words alone where it does not know it"
    request.note("note", "Modelfile TEMPLATE", "left out", f"{reason}; {hint}")


def _stops(request: ExportRequest, keys: Keys) -> list[str]:
    """The texts of the tokens that end an answer."""
    tokens = keys.get("tokenizer.ggml.tokens")
    texts = tokens if isinstance(tokens, list) else []
    return [str(texts[token_id]) for token_id in request.checkpoint.generation.stop_ids if token_id < len(texts)]


def _context(request: ExportRequest) -> int:
    longest = request.checkpoint.config.context_length
    wanted = request.options.get("num_ctx")
    if wanted is None:
        if longest > CONTEXT:
            reason = f"the model goes up to {longest}, and Ollama allocates the whole cache; --option num_ctx=N"
            request.note("default", "Modelfile num_ctx", str(CONTEXT), reason)
        return min(CONTEXT, longest)
    if not wanted.isascii() or not wanted.isdecimal() or not 1 <= int(wanted) <= longest:
        raise LlamacError("LLC0924", "--option num_ctx", f"'{wanted[:40]}' is no number of positions", f"1..{longest}")
    return int(wanted)


def _line(request: ExportRequest, instruction: str, value: str) -> Iterator[str]:
    written = quoted(value)
    if written is not None:
        yield f"{instruction} {written}"
        return
    reason = (
        "a Modelfile has no way to write a text with its own quotes at a line's end, or with unprintable characters"
    )
    request.note("ignored", f"Modelfile {instruction}", repr(value)[:60], reason)


def quoted(value: str) -> str | None:
    """`value` in quotes from which Ollama reads it back; None where no quotes can do that."""
    single = '"' if "\n" not in value and '"' not in value else QUOTES
    written = f"{single}{value}{single}"
    return written if _read_back(f"{written}\n") == value else None


def _read_back(text: str) -> str | None:
    """The value that Ollama finds at the start of `text`."""
    found = ""
    for character in text:
        if character in "\r\n" and (value := _unquoted(found.strip())) is not None:
            return value
        if character in "\r\n\t" or character.isprintable():
            found += character
    return None


def _unquoted(text: str) -> str | None:
    for quotes in (QUOTES, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text

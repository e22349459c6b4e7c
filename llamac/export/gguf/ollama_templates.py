"""The chat formats of the family in the language of Ollama's TEMPLATE, which is Go's text/template.

Ollama hands over `.System` (all system messages joined), `.Messages` (neighbours of one role joined) and `.Tools`, and
writes the begin-of-sequence token itself. Functions are offered before the first message, as Llama 3.1 was taught, and
called in JSON, the only form that Ollama finds in an answer. A conversation that ends with the assistant's words goes
on with them.
"""

from __future__ import annotations

from llamac.runtime.text.formats.guard import GUARDS, TASK
from llamac.runtime.text.formats.tool_prompts import LLAMA3_JSON

_LAST = "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
_PLAIN = (
    """\
{{- if .System }}START(system)

{{ .System }}TURN
{{- end }}
{{- range $i, $_ := .Messages }}
"""
    + _LAST
    + """\
{{- if eq .Role "user" }}START(user)

{{ .Content }}TURN
{{- else if eq .Role "assistant" }}START(assistant)

{{ .Content }}{{ if not $last }}TURN{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}START(assistant)

{{ end }}
{{- end }}"""
)
_FUNCTIONS = LLAMA3_JSON.replace("{functions}", "{{- range .Tools }}\n{{ . }}\n{{- end }}")
_TOOLS = (
    """\
{{- if .System }}START(system)

{{ .System }}TURN
{{- end }}
{{- if .Tools }}START(user)

"""
    + _FUNCTIONS
    + """TURN
{{- end }}
{{- range $i, $_ := .Messages }}
"""
    + _LAST
    + """\
{{- if eq .Role "user" }}START(user)

{{ .Content }}TURN
{{- else if eq .Role "assistant" }}START(assistant)

{{ if .ToolCalls }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}TURN
{{- else }}
{{- .Content }}{{ if not $last }}TURN{{ end }}
{{- end }}
{{- else if eq .Role "tool" }}START(ipython)

{{ .Content }}TURN
{{- end }}
{{- if and $last (ne .Role "assistant") }}START(assistant)

{{ end }}
{{- end }}"""
)
_LLAMA2 = """\
{{- $begun := false }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}
{{- if $begun }}<s>{{ end }}[INST] {{ if and $.System (not $begun) }}<<SYS>>
{{ $.System }}
<</SYS>>

{{ end }}
{{- .Content }} [/INST]
{{- $begun = true }}
{{- else if eq .Role "assistant" }} {{ .Content }}{{ if not $last }} </s>{{ end }}
{{- end }}
{{- end }}"""
_ROLE = """\
{{- $role := "User" }}
{{- range .Messages }}
{{- if eq .Role "assistant" }}
{{- $role = "Agent" }}
{{- else }}
{{- $role = "User" }}
{{- end }}
{{- end }}"""
_EXHIBIT = """\
{{ range .Messages }}
{{- if eq .Role "user" }}User: {{ .Content }}

{{ else if eq .Role "assistant" }}Agent: {{ .Content }}

{{ end }}
{{- end }}"""


def _with_headers(text: str, start: str, end: str, turn: str) -> str:
    return text.replace("START(", start).replace(")\n", f"{end}\n").replace("TURN", turn)


def _llama3(text: str) -> str:
    return _with_headers(text, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _llama4(text: str) -> str:
    return _with_headers(text, "<|header_start|>", "<|header_end|>", "<|eot|>")


def _guard(name: str) -> str:
    row = next(guard for guard in GUARDS if guard.name == name)
    listed = "\n".join(f"S{number}: {category}." for number, category in enumerate(row.categories, start=1))
    task = TASK.replace("{role}", "{{ $role }}").replace("{categories}", listed)
    task = _ROLE + task.replace("{conversation}\n\n", _EXHIBIT)
    if row.base is None:
        return f"{task.replace('{{- end }}Task', '{{- end }}[INST] Task')} [/INST]"
    framed = task.replace("{{- end }}Task", "{{- end }}START(user)\n\nTask") + "TURNSTART(assistant)\n\n"
    return _llama4(framed) if name == "llama-guard-4" else _llama3(framed)


TEMPLATES: dict[str, str] = {
    "llama2": _LLAMA2,
    "llama3": _llama3(_PLAIN),
    "llama3.1": _llama3(_TOOLS),
    "llama3.2": _llama3(_TOOLS),
    "llama3.3": _llama3(_TOOLS),
    "llama4": _llama4(_TOOLS),
    **{guard.name: _guard(guard.name) for guard in GUARDS},
}
"""Format of the runtime -> TEMPLATE."""

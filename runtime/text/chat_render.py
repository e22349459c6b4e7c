"""Compiles and renders one chat template in the sandbox; whatever goes wrong becomes one coded error with its line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from llamac.errors import LlamacError

from . import chat_budget
from .chat_budget import Budget, LimitExceeded
from .chat_sandbox import ChatSandbox, RaisedByTemplate

WHERE = "chat template"
LONGEST_TEMPLATE = 200_000
"""Characters; the longest published ones have a tenth of it, and compiling takes longer than in proportion."""
LONGEST_REASON = 500
HINT_OWN_TEMPLATE = "use the chat template of the model's authors"


class SandboxedTemplate:
    """A compiled template. Raises LLC0910 when it does not parse and LLC0912 when it is absurdly long."""

    def __init__(self, source: str, clock: Callable[[], datetime], time_limit: float) -> None:
        self._time_limit = time_limit
        if len(source) > LONGEST_TEMPLATE:
            raise LlamacError("LLC0912", WHERE, f"it has more than {LONGEST_TEMPLATE} characters", HINT_OWN_TEMPLATE)
        try:
            self._template = ChatSandbox(_strftime_now(clock)).from_string(source)
        except TemplateSyntaxError as problem:
            where, reason = _line(problem.lineno), _shortened(problem.message)
            raise LlamacError("LLC0910", where, reason, HINT_OWN_TEMPLATE) from problem
        except Exception as problem:  # nested too deeply for Python, and whatever else jinja stumbles over
            reason = f"it cannot be compiled ({_shortened(problem)})"
            raise LlamacError("LLC0910", WHERE, reason, HINT_OWN_TEMPLATE) from problem

    def render(self, inputs: Mapping[str, Any], largest: int) -> str:
        """The text for `inputs` (plain data); no value on the way, nor the text, may exceed `largest` characters."""
        budget = Budget(time.monotonic() + self._time_limit, largest)
        token = chat_budget.current.set(budget)
        try:
            return self._generate(inputs, budget)
        except Exception as problem:  # a template can raise anything that Python can
            raise self._coded(problem) from problem
        finally:
            chat_budget.current.reset(token)

    def _generate(self, inputs: Mapping[str, Any], budget: Budget) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(inputs):
            size += len(piece)
            budget.check_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def _coded(self, problem: Exception) -> LlamacError:
        where = _line(self._failing_line(problem))
        match problem:
            case LimitExceeded():
                return LlamacError("LLC0912", where, _shortened(problem), HINT_OWN_TEMPLATE)
            case SecurityError():
                return LlamacError("LLC0913", where, _shortened(problem), HINT_OWN_TEMPLATE)
            case RaisedByTemplate():
                said = f"the template says: {_shortened(problem)}"
                return LlamacError("LLC0911", where, said, "change the messages accordingly")
        reason = f"{type(problem).__name__}: {_shortened(problem)}"
        return LlamacError(
            "LLC0911", where, reason, f"check the roles and contents of the messages, or {HINT_OWN_TEMPLATE}"
        )

    def _failing_line(self, problem: Exception) -> int | None:
        """jinja rewrites a traceback to the lines of the template; the innermost of those is the one to name."""
        line = None
        trace = problem.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        return line


def _strftime_now(clock: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:
        if len(form) > 200 or re.search(r"%[^a-zA-Z%]*\d{3,}", form):  # glibc takes a width
            raise LimitExceeded("strftime_now with a very wide format")
        return clock().strftime(form)

    return strftime_now


def _shortened(problem: object) -> str:
    """What went wrong in words, which may be the template's own, of any length."""
    text = str(problem)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _line(number: int | None) -> str:
    return WHERE if number is None else f"{WHERE} line {number}"

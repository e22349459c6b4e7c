"""The checks that keep every single step of a chat template inside its budget: operators, calls and filters.

What could build much more than it is given, or take much longer than in proportion to it, is looked at before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MappingView, Sequence
from typing import Any

from .chat_budget import Budget, LimitExceeded, current, text_size
from .chat_fields import braces_size, percent_size, written_size

WIDEST_PADDING = 10_000
WIDEST_LAYOUT = 64
"""Indentation or separators of JSON, in characters."""
LONGEST_INTEGER_BITS = 4096
MOST_DIGITS = 400
"""Digits that `round` may be asked for."""
MOST_PARTS = 100_000
"""Parts that `slice` and `batch` may cut a list into."""
LONGEST_FOR_SLOW = 10_000
"""Characters for which filters whose time grows with the square of a text are run."""
LONGEST_SET = 1000
"""Characters that may be stripped off."""
MOST_COMPARISONS = 1 << 30

Arguments = Sequence[Any]
"""What a method or filter gets, its subject first."""
Named = Mapping[str, Any]


def check_operator(name: str, left: Any, right: Any) -> None:
    """Bound the result of `left name right` before it is computed."""
    allowed = current.get()
    if isinstance(left, MappingView) or isinstance(right, MappingView):
        raise LimitExceeded("it computes with a view of a dict")
    if name == "+":
        allowed.check_size(text_size((left, right), allowed.largest))
    elif name == "*" and (_sized(left) or _sized(right)):
        sequence, count = (left, right) if _sized(left) else (right, left)
        allowed.check_size(text_size(sequence, allowed.largest) * (count if isinstance(count, int) else 0))
    elif name == "%" and isinstance(left, str):
        allowed.check_size(percent_size(left, right, allowed.largest))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if name == "**" else left.bit_length() + right.bit_length()
        if bits > LONGEST_INTEGER_BITS:
            raise LimitExceeded("it computes with huge numbers")


def check_call(name: str, arguments: Arguments, named: Named) -> None:
    """Bound what a method, or a filter (`|name`), can build from its arguments, and how long it can take."""
    allowed = current.get()
    allowed.check_time()
    allowed.check_size(text_size([*arguments, *named.values()], allowed.largest))
    check = _CHECKS.get(name)
    if check is not None:
        check(allowed, arguments, named)


def check_layout(value: Any, indent: Any, separators: Any) -> None:
    """Bound the JSON of a value with so much white space in it."""
    allowed = current.get()
    given = [indent, *(separators if isinstance(separators, (list, tuple)) else ())]
    widths = [len(part) if isinstance(part, str) else part for part in given if isinstance(part, (str, int))]
    if max(widths, default=0) > WIDEST_LAYOUT:
        raise LimitExceeded(f"it writes JSON with more than {WIDEST_LAYOUT} characters between values")
    allowed.check_size(text_size(value, allowed.largest, max(0, sum(widths))))


def _sized(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))


def _given(arguments: Arguments, named: Named, place: int, name: str, default: Any = None) -> Any:
    return arguments[place] if place < len(arguments) else named.get(name, default)


def _padding(allowed: Budget, arguments: Arguments, named: Named) -> None:
    """A width, for every tab of the text in `expandtabs`."""
    width = max((v for v in (*arguments[1:], *named.values()) if isinstance(v, int)), default=0)
    if width > WIDEST_PADDING:
        raise LimitExceeded(f"it pads to a width of {width}")
    allowed.check_size(width * (str(arguments[0]).count("\t") + 1))


def _indentation(allowed: Budget, arguments: Arguments, named: Named) -> None:
    given = _given(arguments, named, 1, "width", 4)
    width = len(given) if isinstance(given, str) else given if isinstance(given, int) else 0
    if width > WIDEST_PADDING:
        raise LimitExceeded(f"it indents by {width}")
    allowed.check_size(width * (len(str(arguments[0]).splitlines()) + 1))


def _braces(allowed: Budget, arguments: Arguments, named: Named) -> None:
    allowed.check_size(braces_size(str(arguments[0]), arguments[1:], named, allowed.largest))


def _braces_of_map(allowed: Budget, arguments: Arguments, named: Named) -> None:
    values = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], dict) else {}
    allowed.check_size(braces_size(str(arguments[0]), (), values, allowed.largest))


def _percent(allowed: Budget, arguments: Arguments, named: Named) -> None:
    allowed.check_size(percent_size(str(arguments[0]), named or tuple(arguments[1:]), allowed.largest))


def _replacement(allowed: Budget, arguments: Arguments, named: Named) -> None:
    text, old, new = (str(_given(arguments, named, i, name, "")) for i, name in enumerate(("s", "old", "new")))
    allowed.check_size(len(text) + text.count(old) * len(new))


def _join_method(allowed: Budget, arguments: Arguments, named: Named) -> None:
    _joined(allowed, arguments[1] if len(arguments) > 1 else (), arguments[0])


def _join_filter(allowed: Budget, arguments: Arguments, named: Named) -> None:
    _joined(allowed, arguments[0], _given(arguments, named, 1, "d", ""))


def _joined(allowed: Budget, items: Any, between: Any) -> None:
    count = len(items) if isinstance(items, (str, list, tuple, dict, MappingView)) else 0
    allowed.check_size(text_size(items, allowed.largest) + count * written_size(between, allowed.largest))


def _parts(allowed: Budget, arguments: Arguments, named: Named) -> None:
    if any(isinstance(v, int) and v > MOST_PARTS for v in (*arguments[1:], *named.values())):
        raise LimitExceeded(f"it cuts a list into more than {MOST_PARTS} parts")


def _digits(allowed: Budget, arguments: Arguments, named: Named) -> None:
    if any(isinstance(v, int) and abs(v) > MOST_DIGITS for v in (*arguments[1:], *named.values())):
        raise LimitExceeded(f"it rounds to more than {MOST_DIGITS} digits")


def _numbers(allowed: Budget, arguments: Arguments, named: Named) -> None:
    if any(isinstance(v, (list, tuple)) for v in (*arguments[1:], *named.values())):
        raise LimitExceeded("it sums up lists")


def _short(allowed: Budget, arguments: Arguments, named: Named) -> None:
    if text_size([*arguments, *named.values()], allowed.largest) > LONGEST_FOR_SLOW:
        raise LimitExceeded(f"it uses a slow filter on more than {LONGEST_FOR_SLOW} characters")


def _short_set(allowed: Budget, arguments: Arguments, named: Named) -> None:
    characters = _given(arguments, named, 1, "chars", "")
    if isinstance(characters, str) and len(characters) > LONGEST_SET:
        raise LimitExceeded(f"it strips more than {LONGEST_SET} characters")


def _backward_search(allowed: Budget, arguments: Arguments, named: Named) -> None:
    sizes = [len(v) for v in arguments[:2] if isinstance(v, str)]
    if len(sizes) == 2 and sizes[0] * sizes[1] > MOST_COMPARISONS:
        raise LimitExceeded("it searches a long text for a long one from its end")


def _refused(allowed: Budget, arguments: Arguments, named: Named) -> None:
    raise LimitExceeded("str.translate, str.encode and int.to_bytes are not available to chat templates")


_CHECKS: dict[str, Callable[[Budget, Arguments, Named], None]] = {
    **dict.fromkeys(("center", "|center", "ljust", "rjust", "zfill", "expandtabs"), _padding),
    **dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), _backward_search),
    **dict.fromkeys(("striptags", "|striptags", "|urlize", "|wordwrap", "|pprint"), _short),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "|trim"), _short_set),
    **dict.fromkeys(("translate", "encode", "to_bytes"), _refused),
    **dict.fromkeys(("|slice", "|batch"), _parts),
    **dict.fromkeys(("replace", "|replace"), _replacement),
    "|indent": _indentation,
    "format": _braces,
    "format_map": _braces_of_map,
    "|format": _percent,
    "join": _join_method,
    "|join": _join_filter,
    "|round": _digits,
    "|sum": _numbers,
}
"""Method or |filter -> what its arguments are checked for; of all others the result is in proportion to them."""

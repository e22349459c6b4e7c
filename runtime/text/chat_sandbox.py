"""A jinja2 sandbox for chat templates that people did not write themselves: no way out, and limits on time and size.

A chat template comes with a model, so it is data to judge, not code to trust. jinja2's immutable sandbox closes
attribute and call escapes. On top of it every loop turn, macro and subscript looks at the clock, and whatever can
build a large value in one step (operators, `~`, slices, methods, filters, printing) or take long over one that is
small in memory (comparing, hashing) is bounded by `chat_calls` and `chat_budget`. One sort over a large input may
still overrun the time limit by its own length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from . import chat_budget
from .chat_budget import checked_result, checked_text, materialized, measured
from .chat_calls import check_call, check_layout, check_operator

MEASURED, BUILT = "value to compare", "part of a value"
"""Filters that the sandbox puts into templates: their names cannot be written there."""


class RaisedByTemplate(TemplateError):
    """The template itself refused the conversation with `raise_exception`."""


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is only rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class PlainNamespace(Namespace):
    """jinja's namespace without underscored names, which could reach the object's own machinery."""

    def __init__(self, **values: Any) -> None:
        for name in values:
            _refuse_underscore(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        """Without what it holds, whose size nothing has looked at."""
        return "<namespace>"


class ChatSandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates are compiled; the same dialect as transformers' own."""

    intercepted_binops = frozenset(["*", "+", "**", "%", "//", "-"])

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        # Not optimized: constant folding would evaluate expressions outside of any budget.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=checked_text,
            extensions=[GenerationBlock, loopcontrols],
        )
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _bounded("tojson", to_json), MEASURED: measured, BUILT: checked_result}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _measuring(function) for name, function in tests.items()}
        del self.globals["lipsum"]
        self.globals.update(
            dict=_make_dict, namespace=PlainNamespace, raise_exception=_raise_exception, strftime_now=strftime_now
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then put the budget into the tree: a `tick` in every body, and what `_bound_expressions` adds."""
        tree = super()._parse(source, name, filename)
        blocks: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.For)]
        blocks += [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for block in blocks:
            block.body.insert(0, _ticking(block))
        _bound_expressions(tree)
        return tree

    def tick(self, written: int) -> None:
        """Called at every loop turn and macro entry, with the most literal text it can write."""
        allowed = chat_budget.current.get()
        allowed.check_time()
        allowed.spend(written)

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        return "".join(str(part) for part in parts)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A subscript; filters that look for a long path of attributes come here for every part of it."""
        allowed = chat_budget.current.get(None)
        if allowed is not None:
            allowed.check_time()
            measured(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, refused before it can build too much."""
        check_operator(operator, left, right)
        return checked_result(self.binop_table[operator](left, right))

    # jinja calls this with positional self, context and object, so that a template may name its arguments as it likes.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call written in the template."""
        values = materialized(args)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        subject = None if isinstance(__obj, LoopContext) else getattr(method, "__self__", None)
        subjects = [] if subject is None or subject is __self else [subject]
        named = {name: value for name, value in kwargs.items() if not name.startswith("_")}  # jinja's own begin so
        check_call(getattr(method, "__name__", ""), [*subjects, *values], named)
        return checked_result(super().call(__context, __obj, *values, **kwargs))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """`tojson` as transformers has it: no HTML escapes, and json's own layout options."""
    check_layout(value, indent, separators)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with arguments and result bounded; `wraps` keeps the marks by which jinja passes it the context."""

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        values = materialized(args)
        check_call(f"|{name}", _without_context(values), kwargs)
        return checked_result(function(*values, **kwargs))

    return bounded


def _measuring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The test with arguments bounded, which it may compare or print."""

    @wraps(function)
    def measuring(*args: Any, **kwargs: Any) -> Any:
        measured([*_without_context(args), *kwargs.values()])
        return function(*args, **kwargs)

    return measuring


def _without_context(values: Any) -> list[Any]:
    """What a template passes, without what jinja puts before it."""
    return [value for value in values if not isinstance(value, (Environment, Context, EvalContext))]


def _ticking(block: nodes.Node) -> nodes.ExprStmt:
    written = sum(len(data.data) for data in block.find_all(nodes.TemplateData))
    call = _environment_call("tick", [nodes.Const(written, lineno=block.lineno)], block.lineno)
    return nodes.ExprStmt(call, lineno=block.lineno)


def _bound_expressions(tree: nodes.Template) -> None:
    """Calls of `joined` for every `a ~ b`; filters around slices, what is compared, and the keys of dicts."""
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for field, value in parent.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(parent, field, _bounded_expression(value))
            elif isinstance(value, list):
                value[:] = [_bounded_expression(item) if isinstance(item, nodes.Node) else item for item in value]
    sides: list[nodes.Compare | nodes.Operand] = [*tree.find_all(nodes.Compare), *tree.find_all(nodes.Operand)]
    for compared in sides:
        compared.expr = _filtered(MEASURED, compared.expr)
    for pair in list(tree.find_all(nodes.Pair)):
        pair.key = _filtered(MEASURED, pair.key)


def _bounded_expression(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        return _environment_call("joined", node.nodes, node.lineno)
    is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    return _filtered(BUILT, node) if is_slice and isinstance(node, nodes.Expr) else node


def _filtered(name: str, node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _environment_call(method: str, arguments: list[Any], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method, lineno=line), arguments, [], None, None, lineno=line)


def _refuse_underscore(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold the underscored name {name!r}")


def _raise_exception(message: Any) -> None:
    raise RaisedByTemplate(str(message))


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)

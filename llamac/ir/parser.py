"""Reads the text that `printer` writes. Errors name the line, the column and what was expected."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from llamac.errors import LlamacError, did_you_mean

from .definition import OpError, check_type
from .dims import MOST_DIGITS, Dim, DimLike, parse_dim
from .dtypes import DTYPES, DType
from .graph import Attribute, AttributeItem, DataSource, FileSource, Graph, Module, Op, Value, Weight, WeightSource
from .levels import LEVELS
from .registry import infer_types
from .types import LARGEST_RANK, CacheType, TensorType, Type

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)|(?P<string>"(?:\\.|[^"\\\n])*")
      |(?P<number>-?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|inf\b)|nan\b)
      |(?P<value>[%@][\w.\-]+)|(?P<word>[A-Za-z_][\w.]*)|(?P<integer>-?\d+)|(?P<arrow>->)|(?P<mark>[{}()\[\]<>,:=*+\-])""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


def parse_module(text: str, source: str = "<text>") -> Module:
    """The module that `text` describes (LLC0404 for a syntax error, LLC0402 for an ill-typed op, both located)."""
    return _Parser(text, source).module()


def parse_type(text: str) -> Type:
    """A type on its own, such as `tensor<T x 64 x f32>`."""
    parser = _Parser(text, "<type>")
    found = parser.type()
    parser.expect_end()
    return found


def parse_attribute(text: str) -> Attribute:
    """An attribute value on its own, as pass options use them."""
    parser = _Parser(text, "<attribute>")
    found = parser.attribute()
    parser.expect_end()
    return found


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source, self.index = text, source, 0
        self.tokens = self._tokenize()
        self.weights: dict[str, Value] = {}
        self.values: dict[str, Value] = {}

    def _tokenize(self) -> list[_Token]:
        tokens, offset = [], 0
        while offset < len(self.text):
            found = _TOKEN.match(self.text, offset)
            if not found:
                self._fail_at(offset, f"unexpected character '{self.text[offset]}'")
            digits = len(found.group().lstrip("-")) if found.lastgroup == "integer" else 0
            if digits > MOST_DIGITS:
                self._fail_at(offset, f"a number of {digits} digits is too large")
            if found.lastgroup != "space":
                tokens.append(_Token(str(found.lastgroup), found.group(), offset))
            offset = found.end()
        return [*tokens, _Token("end", "end of text", len(self.text))]

    def _fail_at(self, offset: int, reason: str, code: str = "LLC0404") -> NoReturn:
        line = self.text.count("\n", 0, offset) + 1
        column = offset - (self.text.rfind("\n", 0, offset) + 1) + 1
        raise LlamacError(code, f"{self.source}:{line}:{column}", reason)

    def fail(self, reason: str) -> NoReturn:
        self._fail_at(self.tokens[self.index].offset, reason)

    # Tokens.

    def peek(self, text: str) -> bool:
        return self.tokens[self.index].text == text

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.index += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            self.fail(f"expected '{text}', found '{self.tokens[self.index].text}'")

    def expect_kind(self, kind: str) -> str:
        token = self.tokens[self.index]
        if token.kind != kind:
            article = "an" if kind == "integer" else "a"
            self.fail(f"expected {article} {kind}, found '{token.text}'")
        self.index += 1
        return token.text

    def expect_end(self) -> None:
        if self.tokens[self.index].kind != "end":
            self.fail(f"unexpected '{self.tokens[self.index].text}' after the end")

    # Structure.

    def module(self) -> Module:
        self.expect("module")
        name = self._symbol("@")
        self.expect("at")
        level = self.expect_kind("word")
        if level not in LEVELS:
            self.index -= 1
            self.fail(f"unknown level '{level}'{did_you_mean(level, LEVELS)}")
        module = Module(name, level)
        self.expect("{")
        while not self.take("}"):
            if self.take("weight"):
                self._weight(module)
            elif self.take("graph"):
                self._graph(module)
            else:
                self.fail(f"expected 'weight', 'graph' or '}}', found '{self.tokens[self.index].text}'")
        self.expect_end()
        return module

    def _symbol(self, sigil: str) -> str:
        text = self.expect_kind("value")
        if text[0] != sigil:
            self.index -= 1
            self.fail(f"expected a name starting with '{sigil}', found '{text}'")
        return text[1:]

    def _weight(self, module: Module) -> None:
        start = self.tokens[self.index].offset
        name = self._symbol("@")
        if name in module.weights:
            self._fail_at(start, f"weight @{name} is defined twice")
        self.expect(":")
        declared = self.type()
        if not isinstance(declared, TensorType):
            self.fail("a weight must be a tensor")
        self.expect("=")
        source = self._source()
        if source is not None:
            weight = Weight(name, declared, source)
        else:
            op = self._operation()
            if [r.type for r in op.results] != [declared]:
                self._fail_at(start, f"@{name} should be {', '.join(str(r.type) for r in op.results)}", "LLC0402")
            weight = Weight(name, declared, None, op)
            op.results = [weight]
        self.weights[name] = module.add_weight(weight)

    def _source(self) -> WeightSource | None:
        start = self.tokens[self.index].offset
        if self.take("file"):
            return FileSource(*self._texts(start, "tensor", "encoding"))
        if self.take("data"):
            (digits,) = self._texts(start, "hex")
            try:
                return DataSource(bytes.fromhex(digits))
            except ValueError:
                self._fail_at(start, "data needs an even number of hex digits")
        return None

    def _texts(self, start: int, *names: str) -> list[str]:
        """The values of exactly the attributes `names`, all text."""
        found = self._attributes()
        for name in found:
            if name not in names:
                self._fail_at(start, f"a source has no attribute '{name}'{did_you_mean(name, names)}")
        values = [found.get(name) for name in names]
        if not all(isinstance(value, str) for value in values):
            self._fail_at(start, f"a source needs {' and '.join(names)}, as text")
        return [str(value) for value in values]

    def _graph(self, module: Module) -> None:
        start = self.tokens[self.index].offset
        name = self._symbol("@")
        if name in module.graphs:
            self._fail_at(start, f"graph @{name} is defined twice")
        self.expect("(")
        arguments: list[tuple[str, Type]] = []
        while not self.take(")"):
            argument = self._symbol("%")
            if argument in (taken for taken, _ in arguments):
                self.index -= 1
                self.fail(f"argument %{argument} is given twice")
            self.expect(":")
            arguments.append((argument, self.type()))
            if not self.peek(")"):
                self.expect(",")
        graph = Graph(name, arguments)
        self.values = {a.name: a for a in graph.arguments}
        self.expect("->")
        declared = self._types_in_parentheses()
        self.expect("{")
        while not self.take("return"):
            self._statement(graph)
        if not self.peek("}"):
            graph.outputs = self._operands()
        if [v.type for v in graph.outputs] != declared:
            self.fail(f"graph @{name} returns ({', '.join(str(v.type) for v in graph.outputs)})")
        self.expect("}")
        module.add_graph(graph)

    def _types_in_parentheses(self) -> list[Type]:
        self.expect("(")
        types: list[Type] = []
        while not self.take(")"):
            types.append(self.type())
            if not self.peek(")"):
                self.expect(",")
        return types

    def _statement(self, graph: Graph) -> None:
        start = self.tokens[self.index].offset
        names = [self._symbol("%")]
        while self.take(","):
            names.append(self._symbol("%"))
        self.expect("=")
        op = self._operation()
        self.expect(":")
        types = [self.type()]
        while self.take(","):
            types.append(self.type())
        if [r.type for r in op.results] != types:
            expected = ", ".join(str(r.type) for r in op.results)
            self._fail_at(start, f"{op.opcode}: result types should be {expected}", "LLC0402")
        if len(names) != len(types):
            self._fail_at(start, f"{op.opcode} has {len(types)} results, {len(names)} names are given")
        if self.take("in"):
            op.location = self._location()
        for name, result in zip(names, op.results, strict=True):
            if name in self.values:
                self._fail_at(start, f"%{name} is defined twice")
            result.name = name
            self.values[name] = result
        graph.ops.append(op)

    def _location(self) -> str:
        token = self.tokens[self.index]
        if token.kind not in ("word", "string"):
            self.fail(f"expected a location, found '{token.text}'")
        self.index += 1
        return _unquoted(token.text) if token.kind == "string" else token.text

    def _operation(self) -> Op:
        start = self.tokens[self.index].offset
        opcode = self.expect_kind("word")
        operands = self._operands() if self.tokens[self.index].kind == "value" else []
        attributes = self._attributes() if self.peek("{") else {}
        try:
            types = infer_types(opcode, [v.type for v in operands], attributes)
        except OpError as error:
            self._fail_at(start, f"{opcode}: {error}", "LLC0402")
        return Op(opcode, operands, attributes, types)

    def _operands(self) -> list[Value]:
        operands = [self._operand()]
        while self.take(","):
            operands.append(self._operand())
        return operands

    def _operand(self) -> Value:
        text = self.expect_kind("value")
        table = self.weights if text[0] == "@" else self.values
        if text[1:] not in table:
            self.index -= 1
            self.fail(f"{text} is not defined here{did_you_mean(text[1:], table)}")
        return table[text[1:]]

    # Attributes and types.

    def _attributes(self) -> dict[str, Attribute]:
        self.expect("{")
        found: dict[str, Attribute] = {}
        while not self.take("}"):
            name = self.expect_kind("word")
            self.expect("=")
            if name in found:
                self.index -= 2
                self.fail(f"attribute '{name}' is given twice")
            found[name] = self.attribute()
            if not self.peek("}"):
                self.expect(",")
        return found

    def attribute(self) -> Attribute:
        if self.take("["):
            items: list[AttributeItem] = []
            while not self.take("]"):
                start = self.tokens[self.index].offset
                if self.peek("["):
                    self._fail_at(start, "a list holds numbers, strings or dimensions")
                item = self.attribute()
                if isinstance(item, tuple | DType | bool):
                    self._fail_at(start, "a list holds numbers, strings or dimensions")
                items.append(item)
                if not self.peek("]"):
                    self.expect(",")
            return tuple(items)
        token = self.tokens[self.index]
        if token.kind == "string":
            self.index += 1
            return _unquoted(token.text)
        if token.kind == "number":
            self.index += 1
            return float(token.text)
        if token.text in ("true", "false"):
            self.index += 1
            return token.text == "true"
        if token.text in DTYPES:
            self.index += 1
            return DTYPES[token.text]
        return self._dim({",", "]", "}", "end of text"})

    def _dim(self, stops: set[str]) -> DimLike:
        start = self.index
        depth = 0
        while depth or self.tokens[self.index].text not in stops:
            token = self.tokens[self.index]
            if token.kind == "end" or token.kind not in ("word", "integer", "mark"):
                self.fail(f"expected a dimension, found '{token.text}'")
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            self.index += 1
        text = " ".join(t.text for t in self.tokens[start : self.index])
        try:
            return parse_dim(text)
        except LlamacError as error:
            self._fail_at(self.tokens[start].offset, error.reason)

    def type(self) -> Type:
        word = self.expect_kind("word")
        if word == "tensor":
            return self._tensor()
        if word == "kv_cache":
            return self._cache()
        self.index -= 1
        self.fail(f"expected a type, found '{word}'")

    def _tensor(self) -> TensorType:
        self.expect("<")
        shape: list[DimLike] = []
        while self.tokens[self.index].text not in DTYPES:
            dim = self._dim({"x", ">"})
            if isinstance(dim, int) and dim < 0:
                self.fail(f"a dimension cannot be {dim}")
            if isinstance(dim, Dim) and dim.lone_symbol and self.peek(">"):
                self.index -= 1
                self.fail(f"unknown dtype '{dim}'{did_you_mean(str(dim), DTYPES)}")
            shape.append(dim)
            if len(shape) > LARGEST_RANK:
                self.fail(f"a tensor has at most {LARGEST_RANK} axes")
            self.expect("x")
        dtype = DTYPES[self.expect_kind("word")]
        self.expect(">")
        return TensorType(tuple(shape), dtype)

    def _cache(self) -> CacheType:
        self.expect("<")
        layers, kv_heads, head_dim, page = map(self._number, ("layers", "kv_heads", "head_dim", "page"))
        chunk = self._number("chunk") if self.peek("chunk") else 0
        is_cross = self.peek("cross")
        if is_cross:
            self.expect("cross")
            self.expect(",")
        dtype = self.expect_kind("word")
        if dtype not in DTYPES:
            self.index -= 1
            self.fail(f"unknown dtype '{dtype}'{did_you_mean(dtype, DTYPES)}")
        scale = self._cache_scale()
        self.expect(">")
        found = CacheType(layers, kv_heads, head_dim, page, DTYPES[dtype], chunk, is_cross, scale)
        try:
            check_type(found)
        except OpError as error:
            self.fail(str(error))
        return found

    def _cache_scale(self) -> DType | None:
        """`, scale = f16` at the end of a cache type; None where there is none."""
        if not self.peek(","):
            return None
        for text in (",", "scale", "="):
            self.expect(text)
        name = self.expect_kind("word")
        if name not in DTYPES:
            self.index -= 1
            self.fail(f"unknown dtype '{name}'{did_you_mean(name, DTYPES)}")
        return DTYPES[name]

    def _number(self, name: str) -> int:
        """`name = 1,` inside a cache type."""
        self.expect(name)
        self.expect("=")
        number = int(self.expect_kind("integer"))
        self.expect(",")
        return number


def _unquoted(text: str) -> str:
    """The text that a quoted string stands for."""
    return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], text[1:-1])

"""Printer and parser: exact round trip of made and real modules, and errors that say where and what."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modules import FULL
from quick import FEW, QUICK

from llamac.errors import LlamacError
from llamac.ir.builder import Builder, make_op, new_graph
from llamac.ir.dims import DimLike, symbol
from llamac.ir.dtypes import DTYPES, F32, I32
from llamac.ir.graph import Attribute, DataSource, FileSource, Module, Op
from llamac.ir.parser import parse_attribute, parse_module, parse_type
from llamac.ir.printer import print_attribute, print_module, print_op
from llamac.ir.types import CacheType, TensorType, Type, tensor
from llamac.ir.verifier import verify

names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12)
sizes = st.one_of(
    st.integers(0, 1 << 40),
    st.sampled_from([symbol("T"), symbol("P") + symbol("T"), 2 * symbol("T") - 3, symbol("P") * symbol("T")]),
)
dtypes = st.sampled_from(list(DTYPES.values()))
tensors = st.builds(TensorType, st.lists(sizes, max_size=4).map(tuple), dtypes)
floats = st.sampled_from([t for t in DTYPES.values() if t.is_float])
positive = st.integers(1, 10**6)
caches = st.builds(CacheType, positive, positive, positive, positive, floats, st.just(0) | positive)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
items = st.one_of(st.integers(-(10**18) + 1, 10**18 - 1), st.floats(), texts, sizes)
attributes = st.one_of(st.booleans(), items, dtypes, st.lists(items, max_size=4).map(tuple))


def _same_attribute(found: Attribute, expected: Attribute) -> bool:
    if isinstance(expected, tuple):
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else ()
        return isinstance(found, tuple) and all(_same_attribute(a, b) for a, b in pairs)
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(found, float) and math.isnan(found)
    signs = math.copysign(1, found) == math.copysign(1, expected) if isinstance(expected, float) else True
    return type(found) is type(expected) and found == expected and signs


@QUICK
@given(st.one_of(tensors, caches))
def test_types_round_trip(type: Type) -> None:
    assert parse_type(str(type)) == type


@QUICK
@given(attributes)
def test_attributes_round_trip(value: Attribute) -> None:
    assert _same_attribute(parse_attribute(print_attribute(value)), value)


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """Elementwise graphs over arguments and weights of every source, with names and locations of any kind."""
    module = Module(draw(names), draw(st.sampled_from(["captured", "raising", "model"])))
    b = Builder(module)
    shape: tuple[DimLike, ...] = (symbol("T"), draw(st.integers(1, 5)))
    for name in draw(st.lists(names, unique=True, max_size=3)):
        b.weight(name, tensor(shape[1], F32), FileSource(draw(texts), "f32"))
    columns = shape[1]
    assert isinstance(columns, int)
    b.weight("own.data", tensor(columns, F32), DataSource(bytes(4 * columns)))
    made = list(module.weights.values())
    cast = b.define("own.cast", "cast", made[-1], dtype=draw(floats))
    arguments = [(n, TensorType(shape, F32)) for n in draw(st.lists(names, unique=True, min_size=1, max_size=3))]
    graph = b.graph = new_graph(module, draw(names), list(arguments))
    values = [*graph.arguments, *made]
    for _ in range(draw(st.integers(0, 6))):
        with b.at(draw(st.one_of(st.sampled_from(["", "layers.0.attn", "nan.x"]), texts))):
            opcode = draw(st.sampled_from(["add", "mul", "neg", "constant"]))
            if opcode == "constant":
                values.append(b.constant(draw(st.floats()), F32))
            else:
                count = 1 if opcode == "neg" else 2
                values.append(b.op(opcode, *(draw(st.sampled_from(values)) for _ in range(count))))
    graph.outputs = draw(st.lists(st.sampled_from([*values, cast]), max_size=3))
    return module


@FEW
@given(modules())
def test_modules_round_trip(module: Module) -> None:
    verify(module)
    text = print_module(module)
    again = parse_module(text)
    verify(again)
    assert print_module(again) == text
    assert [(w.name, w.type, w.source) for w in again.weights.values()] == [
        (w.name, w.type, w.source) for w in module.weights.values()
    ]
    for graph in module.graphs.values():
        copy = again.graphs[graph.name]
        assert [(o.opcode, o.location, len(o.operands)) for o in copy.ops] == [
            (o.opcode, o.location, len(o.operands)) for o in graph.ops
        ]


def test_a_module_with_everything_round_trips() -> None:
    module = parse_module(FULL)
    verify(module)
    assert print_module(module) == FULL


def test_arguments_named_like_results_keep_their_names() -> None:
    module = Module("m", "captured")
    b = Builder(module)
    graph = b.graph = new_graph(module, "step", [("1", tensor(2, F32))])
    first = b.op("neg", graph.arguments[0])
    graph.outputs = [b.op("add", first, b.op("neg", first))]
    text = print_module(module)
    assert "%0 = neg %1 " in text and "%2 = neg %0 " in text and "%3 = add %0, %2" in text
    assert print_module(parse_module(text)) == text


def test_an_op_without_operands_results_or_location_prints() -> None:
    op = make_op("constant", (), {"value": 1.0, "dtype": F32})
    op.result.name = "c"
    assert print_op(op) == "%c = constant {dtype = f32, value = 1.0} : tensor<f32>"
    assert repr(op) == "%c = constant" and repr(op.result) == "%c: tensor<f32>"
    assert repr(Op("neg", [], {})) == " = neg"


def test_values_know_their_kind() -> None:
    module = parse_module(FULL)
    step = module.step
    cache, ids = step.argument("cache"), step.argument("ids")
    assert cache.cache.page == 4 and ids.tensor.dtype is I32
    with pytest.raises(TypeError, match="not a tensor"):
        _ = cache.tensor
    with pytest.raises(TypeError, match="not a kv_cache"):
        _ = ids.cache
    with pytest.raises(KeyError):
        step.argument("nothing")
    with pytest.raises(KeyError, match="defined twice"):
        module.add_graph(step)
    with pytest.raises(KeyError, match="defined twice"):
        module.add_weight(module.weights["w"])
    with pytest.raises(TypeError):
        tensor(F32, 2)


MODULE, KERNEL = "module @m at captured {\n", "module @m at kernel {\n"
GRAPH = MODULE + "  graph @step(%x: tensor<T x 4 x f32>) -> (tensor<T x 4 x f32>) {\n"
WEIGHT = MODULE + "  weight @w : tensor<2 x f32> = "
CHUNKED = KERNEL + "  graph @s(%c: kv_cache<layers = 1, kv_heads = 1, head_dim = 2, page = 4, "
BAD = [
    ("¶mod", "expected 'module', found 'mod'"),
    ("module ¶m", "expected a value, found 'm'"),
    ("module ¶%m", "expected a name starting with '@', found '%m'"),
    ("module @m at ¶capture {", "unknown level 'capture' (did you mean 'captured'?)"),
    (MODULE + "  ¶graf", "expected 'weight', 'graph' or '}', found 'graf'"),
    (MODULE + "} ¶more", "unexpected 'more' after the end"),
    (MODULE + "  weight @w : ¶€", "unexpected character '€'"),
    (MODULE + '  weight @w : ¶"open', "unexpected character '\"'"),
    (WEIGHT + "¶kv", "kv: unknown op 'kv'"),
    (MODULE + "  weight @w : tensor<2 x ¶f33> = ", "unknown dtype 'f33' (did you mean 'f32'?)"),
    (MODULE + "  weight @w : tensor<-2 ¶x f32> = ", "a dimension cannot be -2"),
    (MODULE + "  weight @w : tensor<¶2 f32> = ", "unexpected 'f32' in '2 f32'"),
    (MODULE + "  weight @w : tensor<2 x¶> = ", "'' is not a dimension expression"),
    (MODULE + "  weight @w : ¶tenser<f32> = ", "expected a type, found 'tenser'"),
    (MODULE + "  weight @w : tensor<2 x f32 ¶= ", "expected '>', found '='"),
    (
        MODULE + "  weight @w : kv_cache<layers = 1, kv_heads = 1, head_dim = 2, page = 4, f32> ¶= ",
        "a weight must be a tensor",
    ),
    (WEIGHT + '¶file {tensr = "w", encoding = "f32"}', "a source has no attribute 'tensr' (did you mean 'tensor'?)"),
    (WEIGHT + '¶file {tensor = "w"}', "a source needs tensor and encoding, as text"),
    (WEIGHT + '¶file {tensor = "w", encoding = f32}', "a source needs tensor and encoding, as text"),
    (WEIGHT + '¶data {hex = "012"}', "data needs an even number of hex digits"),
    (WEIGHT + 'data {hex = "01"}\n  weight ¶@w : tensor<f32> = data {hex = ""}', "weight @w is defined twice"),
    (WEIGHT + "cast ¶@v {dtype = f32}", "@v is not defined here"),
    (
        WEIGHT + 'data {hex = ""}\n  weight ¶@c : tensor<2 x f32> = cast @w {dtype = f16}',
        "@c should be tensor<2 x f16>",
    ),
    (
        MODULE + "  graph @step(¶@x: tensor<T x 4 x f32>) -> (tensor<T x 4 x f32>) {\n",
        "expected a name starting with '%', found '@x'",
    ),
    (MODULE + "  graph @step(%x: tensor<T x 4 x f32> ¶%y (tensor<T x 4 x f32>) {\n", "expected ',', found '%y'"),
    (
        MODULE + "  graph @step(%x: tensor<T x 4 x f32>, ¶%x: tensor<f32>) -> (tensor<T x 4 x f32>) {\n",
        "argument %x is given twice",
    ),
    (GRAPH + "    %0 = neg ¶%y : tensor<T x 4 x f32>", "%y is not defined here"),
    (GRAPH + "    %0 = ¶negg %x : tensor<T x 4 x f32>", "negg: unknown op 'negg' (did you mean 'neg'?)"),
    (GRAPH + "    %0 = ¶neg %x, %x : tensor<T x 4 x f32>", "neg: takes operands (x), got 2"),
    (GRAPH + "    %0 = ¶softmax %x {axes = 1} : tensor<f32>", "softmax: attribute 'axis' is missing"),
    (GRAPH + "    %0 = ¶softmax %x {axis = 1, axes = 1} : x", "has no attribute 'axes' (did you mean 'axis'?)"),
    (GRAPH + "    %0 = softmax %x {axis = 1, ¶axis = 1} : x", "attribute 'axis' is given twice"),
    (GRAPH + "    %0 = ¶softmax %x {axis = 1.0} : x", "attribute 'axis' must be of kind int, got 1.0"),
    (GRAPH + "    %0 = softmax %x {axis = ¶} : x", "'' is not a dimension expression"),
    (GRAPH + "    %0 = softmax %x {axis = [1, ¶[2]]} : x", "a list holds numbers, strings or dimensions"),
    (GRAPH + "    %0 = softmax %x {axis = [¶1 2]} : x", "unexpected '2' in '1 2'"),
    (GRAPH + "    %0 = softmax %x {axis = (T : x¶", "expected a dimension"),
    (GRAPH + "    %0 = softmax %x {axis¶: 1} : x", "expected '=', found ':'"),
    (GRAPH + "    %0 = softmax %x {¶1} : x", "expected a word, found '1'"),
    (GRAPH + "    %0 = softmax %x {axis = ¶1 :", "'1 :' is not a dimension expression"),
    (GRAPH + "    ¶%0 = neg %x : tensor<4 x f32>", "neg: result types should be tensor<T x 4 x f32>"),
    (GRAPH + "    ¶%0, %1 = neg %x : tensor<T x 4 x f32>", "neg has 1 results, 2 names are given"),
    (GRAPH + "    ¶%x = neg %x : tensor<T x 4 x f32>", "%x is defined twice"),
    (GRAPH + "    %0 = neg %x : tensor<T x 4 x f32> in ¶5", "expected a location, found '5'"),
    (GRAPH + "    return\n  ¶}\n}", "graph @step returns ()"),
    (GRAPH + "    return %x\n  }\n  graph ¶@step(", "graph @step is defined twice"),
    (GRAPH + "    return %x¶", "expected '}', found 'end of text'"),
    (GRAPH + "    return %x\n  }\n¶", "expected 'weight', 'graph' or '}', found 'end of text'"),
    (
        KERNEL + "  graph @s(%c: kv_cache<layers = 0, kv_heads = 1, head_dim = 2, page = 4, f32>¶",
        "must hold a positive number",
    ),
    (KERNEL + "  graph @s(%c: kv_cache<layers = 1, kv_heads = 1, head_dim = 2, page = 4, ¶f3>", "unknown dtype 'f3'"),
    (CHUNKED + "chunk = ¶T", "expected an integer, found 'T'"),
    (CHUNKED + "chunk ¶8, f32>", "expected '=', found '8'"),
    (CHUNKED + "chunk = 8 ¶f32>", "expected ',', found 'f32'"),
    (CHUNKED + "chunk = 8, ¶chunk = 8, f32>", "unknown dtype 'chunk'"),
    (CHUNKED + "¶chunks = 8, f32>", "unknown dtype 'chunks'"),
    (CHUNKED + "chunk = -8, f32>¶", "must hold a positive number"),
    (CHUNKED + "chunk = ¶8.0, f32>", "expected an integer, found '8.0'"),
    (CHUNKED.replace("page = 4", "¶chunk = 4"), "expected 'page', found 'chunk'"),
    (KERNEL + "  graph @s(%c: kv_cache<¶layer = 1", "expected 'layers', found 'layer'"),
    (KERNEL + "  graph @s(%c: kv_cache<layers = ¶T", "expected an integer, found 'T'"),
]
"""Text with a mark where the error is, and the reason."""


@pytest.mark.parametrize(("marked", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_errors_are_located(marked: str, reason: str) -> None:
    before, after = marked.split("¶")
    with pytest.raises(LlamacError) as caught:
        parse_module(before + after, "model.ir")
    assert caught.value.code in ("LLC0404", "LLC0402")
    assert reason in caught.value.reason
    assert caught.value.where == f"model.ir:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


@pytest.mark.parametrize("text", ["tensor<T x f32> extra", "nothing", ""])
def test_types_alone_have_errors_too(text: str) -> None:
    with pytest.raises(LlamacError, match="<type>:1:"):
        parse_type(text)
    with pytest.raises(LlamacError, match="<attribute>:1:"):
        parse_attribute("1, 2")


def test_a_cache_with_chunks_is_another_type() -> None:
    text = "kv_cache<layers = 36, kv_heads = 8, head_dim = 128, page = 256, chunk = 8192, f16>"
    cache, plain = parse_type(text), parse_type(text.replace("chunk = 8192, ", ""))
    assert isinstance(cache, CacheType) and isinstance(plain, CacheType)
    assert str(cache) == text and (cache.chunk, plain.chunk) == (8192, 0) and cache != plain
    assert cache.page_bytes == plain.page_bytes == 2 * 36 * 8 * 128 * 256 * 2
    assert parse_type(text.replace("8192", "0")) == plain
    assert [cache.first_visible(p) for p in (0, 8191, 8192, 20000)] == [0, 0, 8192, 16384]
    assert plain.first_visible(20000) == 0


def test_comments_and_layout_do_not_matter() -> None:
    text = "// a module\n" + FULL.replace("{\n", "{ // here\n\n").replace(", ", " ,  ")
    assert print_module(parse_module(text)) == FULL


def test_hostile_nesting_is_a_located_error() -> None:
    with pytest.raises(LlamacError) as caught:
        parse_attribute("[" * 5000)
    assert caught.value.code == "LLC0404" and "a list holds numbers" in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"tensor<{'2 x ' * 33}f32>", "a tensor has at most 32 axes"),
        ("tensor<" + "9" * 5000 + " x f32>", "a number of 5000 digits is too large"),
        ("kv_cache<layers = " + "9" * 19, "a number of 19 digits is too large"),
    ],
)
def test_hostile_sizes_are_located_errors(text: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        parse_type(text)
    assert caught.value.code == "LLC0404" and reason in caught.value.reason

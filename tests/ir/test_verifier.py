"""One test a rule of the verifier: a well-formed module, one thing broken, and the reason it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from modules import CACHE, FULL

from llamac.errors import LlamacError
from llamac.ir.builder import make_op
from llamac.ir.dims import symbol
from llamac.ir.dtypes import F16, F32
from llamac.ir.graph import DataSource, FileSource, Graph, Module, Op, Weight
from llamac.ir.parser import parse_module
from llamac.ir.types import CacheType, tensor
from llamac.ir.verifier import verify

SMALL = """module @m at captured {
  weight @w : tensor<4 x f32> = file {tensor = "w", encoding = "f32"}
  weight @h : tensor<4 x f16> = cast @w {dtype = f16}
  weight @d : tensor<1 x f32> = data {hex = "0000803f"}
  graph @step(%x: tensor<T x 4 x f32>, %y: tensor<T x 4 x f32>) -> (tensor<T x 4 x f32>) {
    %0 = add %x, %y : tensor<T x 4 x f32> in layers.0.attn
    %1 = mul %0, @w : tensor<T x 4 x f32> in layers.0.mlp
    %2 = mul %1, @d : tensor<T x 4 x f32>
    return %2
  }
}
"""


def _step(module: Module, index: int) -> Op:
    return module.step.ops[index]


def _swap_ops(module: Module) -> None:
    module.step.ops[0], module.step.ops[1] = module.step.ops[1], module.step.ops[0]


def _misspell(module: Module) -> None:
    _step(module, 0).attributes["bufers"] = (0,)


def _wrong_result_type(module: Module) -> None:
    _step(module, 0).result.type = tensor(symbol("T"), 4, F16)


def _wrong_level(module: Module) -> None:
    module.level = "kernel"


def _unknown_level(module: Module) -> None:
    module.level = "captive"


def _unknown_op(module: Module) -> None:
    _step(module, 0).opcode = "ad"


def _stale_user(module: Module) -> None:
    op = make_op("neg", (_step(module, 1).result,), {})
    assert op not in module.step.ops


def _stale_weight_user(module: Module) -> None:
    make_op("neg", (module.weights["w"],), {})


def _missing_user(module: Module) -> None:
    module.step.arguments[0].users.clear()


def _op_twice(module: Module) -> None:
    module.step.ops.insert(1, _step(module, 0))


def _foreign_result(module: Module) -> None:
    _step(module, 1).results = [_step(module, 0).result]


def _foreign_output(module: Module) -> None:
    module.step.outputs = [Graph("other", [("z", tensor(F32))]).arguments[0]]


def _two_arguments(module: Module) -> None:
    module.step.arguments[1].name = "x"


def _negative_argument(module: Module) -> None:
    module.step.arguments[1].type = tensor(-4, F32)


def _odd_name(module: Module) -> None:
    module.step.arguments[0].name = "x y"


def _odd_module_name(module: Module) -> None:
    module.name = "my model"


def _renamed_weight(module: Module) -> None:
    module.weights["w"].name = "v"


def _odd_weight_name(module: Module) -> None:
    module.add_weight(Weight("a/b", tensor(4, F32), FileSource("a", "f32")))


def _renamed_graph(module: Module) -> None:
    module.graphs["main"] = module.graphs.pop("step")


def _no_source(module: Module) -> None:
    module.weights["w"].source = None


def _two_sources(module: Module) -> None:
    module.weights["h"].source = FileSource("h", "f16")


def _symbolic_weight(module: Module) -> None:
    module.add_weight(Weight("v", tensor(symbol("T"), F32), FileSource("v", "f32")))


def _symbolic_data(module: Module) -> None:
    module.add_weight(Weight("v", tensor(symbol("T"), F32), DataSource(b"")))


def _short_data(module: Module) -> None:
    module.weights["d"].source = DataSource(b"123")


def _unknown_encoding(module: Module) -> None:
    module.weights["w"].source = FileSource("w", "q9_0")


def _other_encoding(module: Module) -> None:
    module.weights["w"].source = FileSource("w", "bf16")


def _weight_from_argument(module: Module) -> None:
    producer = module.weights["h"].producer
    assert producer is not None
    producer.set_operand(0, module.step.arguments[0])


def _weight_from_any_op(module: Module) -> None:
    op = make_op("neg", (module.weights["w"],), {})
    weight = Weight("v", tensor(4, F32), None, op)
    op.results = [weight]
    module.add_weight(weight)


def _weight_of_another_op(module: Module) -> None:
    op = make_op("cast", (module.weights["w"],), {"dtype": F16})
    module.weights["h"].producer = op


def _weights_out_of_order(module: Module) -> None:
    module.weights["w"] = module.weights.pop("w")


def _unbound_symbol(module: Module) -> None:
    for op in module.step.ops:
        op.drop_operands()
    op = make_op("iota", (), {"length": symbol("P"), "dtype": F32})
    module.step.ops, module.step.outputs = [op], [op.result]


def _unbound_attribute(module: Module) -> None:
    op = make_op("reshape", (_step(module, 2).result,), {"shape": (symbol("T"), 4)})
    op.attributes["shape"] = (symbol("T"), 4, symbol("S") - symbol("S") + 1)
    op.result.type = tensor(symbol("T"), 4, 1, F32)
    op.attributes["buffers"] = (symbol("S"),)
    module.step.ops.append(op)


def _wrong_buffers(module: Module) -> None:
    _step(module, 0).attributes["buffers"] = (0, 64)


SMALL_CASES: list[tuple[Callable[[Module], None], str]] = [
    (_swap_ops, "@step layers.0.mlp: mul: operand 0 (%0) is used before it is defined"),
    (_misspell, "add: has no attribute 'bufers'"),
    (_wrong_result_type, "add: result types should be tensor<T x 4 x f32>, not tensor<T x 4 x f16>"),
    (_wrong_level, "@step layers.0.mlp: mul: is not legal at level kernel"),
    (_unknown_level, "module: unknown level 'captive'"),
    (_unknown_op, "ad: unknown op 'ad' (did you mean 'add'?)"),
    (_stale_user, "%1 has users outside the graph or stale ones"),
    (_stale_weight_user, "weight @w: has users outside the module or stale ones"),
    (_missing_user, "%x has users outside the graph or stale ones"),
    (_op_twice, "layers.0.attn: add: is in the graph twice"),
    (_foreign_result, "layers.0.mlp: mul: is in the graph twice, or its result is another op's"),
    (_foreign_output, "graph @step: returns %z, which is not defined in it"),
    (_two_arguments, "graph @step: has two arguments of one name"),
    (_negative_argument, "graph @step: %y: tensor<-4 x f32> has a negative dimension"),
    (_odd_name, "the name 'x y' has characters that the text form cannot hold"),
    (_odd_module_name, "module: the name 'my model' has characters"),
    (_renamed_weight, "weight @w: is entered under another name, @v"),
    (_odd_weight_name, "the name 'a/b' has characters"),
    (_renamed_graph, "graph @main: is entered under another name, @step"),
    (_no_source, "weight @w: needs either a source or a defining op"),
    (_two_sources, "weight @h: needs either a source or a defining op"),
    (_symbolic_weight, "weight @v: has no fixed shape: tensor<T x f32>"),
    (_symbolic_data, "weight @v: has no fixed shape: tensor<T x f32>"),
    (_short_data, "weight @d: holds 3 bytes, which is not a tensor<1 x f32>"),
    (_unknown_encoding, "weight @w: unknown encoding 'q9_0'"),
    (_other_encoding, "weight @w: is a tensor<4 x f32>, but bf16 is read as bf16"),
    (_weight_from_argument, "weight @h: is defined from %x, which is not a weight"),
    (_weight_from_any_op, "weight @v: op neg cannot define a weight"),
    (_weight_of_another_op, "weight @h: is not the result of the cast that defines it"),
    (_weights_out_of_order, "weight @h: cast: operand 0 (@w) is used before it is defined"),
    (_unbound_symbol, "graph @step: %: tensor<P x f32> depends on P, which is no dimension of an argument"),
    (_wrong_buffers, "attribute 'buffers' must hold one offset for each of 1 results"),
]


@pytest.mark.parametrize(("break_it", "reason"), SMALL_CASES, ids=lambda p: getattr(p, "__name__", "").strip("_"))
def test_rules(break_it: Callable[[Module], None], reason: str) -> None:
    module = parse_module(SMALL)
    verify(module)
    break_it(module)
    with pytest.raises(LlamacError) as caught:
        verify(module)
    assert caught.value.code == "LLC0403"
    assert reason in str(caught.value)


def _other_callee(module: Module) -> None:
    _step(module, 1).attributes["callee"] = "layers"


def _other_argument(module: Module) -> None:
    module.graphs["layer"].arguments[2].type = tensor(symbol("T"), 3, F32)
    module.graphs["layer"].arguments[2].name = "other"


def _other_results(module: Module) -> None:
    module.graphs["layer"].outputs.reverse()


def _recursion(module: Module) -> None:
    layer = module.graphs["layer"]
    made = make_op("call", layer.arguments, {"callee": "layer", "carried": 2, "layer": 0})
    layer.ops.append(made)
    layer.outputs[0] = made.results[0]


def _cache_replaced_twice(module: Module) -> None:
    op = _step(module, 1)
    made = make_op("call", op.operands, op.attributes, op.location)
    module.step.ops.insert(2, made)


def _state_read_after_it_was_written(module: Module) -> None:
    x, cache, ids, sequences, pages = (module.step.argument(n) for n in ("x", "cache", "ids", "seq", "pages"))
    made = make_op("attend", (x, cache, ids, sequences, pages), {"heads": 2, "layer": 0, "scale": 1.0})
    module.step.ops.append(made)


def _old_state_returned(module: Module) -> None:
    module.step.outputs[1] = module.step.argument("cache")


def _layer_that_the_cache_lacks(module: Module) -> None:
    operands, attributes = _attend(module, symbol("layer"))
    module.graphs["layer"].ops.append(make_op("attend", operands, attributes))  # type: ignore[arg-type]
    verify(module)
    _step(module, 1).attributes["layer"] = 1


def _layer_outside_a_layer(module: Module) -> None:
    del module.graphs["step"]
    op = make_op("attend", *_attend(module, symbol("layer")))
    module.graphs["layer"].ops.append(op)
    for value in (*module.weights.values(),):
        value.users = {
            user: n for user, n in value.users.items() if user.opcode in ("block_quants", "block_scales", "pack")
        }


def _attend(module: Module, layer: object) -> tuple[tuple[object, ...], dict[str, object]]:
    graph = module.graphs["layer"]
    cache, x, at, seq, pages = (graph.arguments[i] for i in (0, 1, 4, 5, 6))
    return (x, cache, at, seq, pages), {"heads": 2, "layer": layer, "scale": 1.0}


FULL_CASES: list[tuple[Callable[[Module], None], str]] = [
    (_other_callee, "call: there is no graph @layers"),
    (_other_argument, "call: operands do not fit the arguments of @layer"),
    (_other_results, "call: results do not fit what @layer returns"),
    (_recursion, "graph @layer: calls itself"),
    (_cache_replaced_twice, "%cache is written twice: a cache has one next state"),
    (_state_read_after_it_was_written, "attend: reads %cache, a cache that has been written over since"),
    (_old_state_returned, "@step: returns %cache, a cache that has been written over: return its next state"),
    (_layer_that_the_cache_lacks, "call: layer 1 is outside kv_cache<layers = 1, "),
    (_layer_outside_a_layer, "attribute 'layer' depends on layer, which is no dimension of an argument"),
]


@pytest.mark.parametrize(("break_it", "reason"), FULL_CASES, ids=lambda p: getattr(p, "__name__", "").strip("_"))
def test_rules_of_calls_and_caches(break_it: Callable[[Module], None], reason: str) -> None:
    module = parse_module(FULL)
    verify(module)
    break_it(module)
    with pytest.raises(LlamacError) as caught:
        verify(module)
    assert caught.value.code == "LLC0403"
    assert reason in str(caught.value)


def test_a_cache_may_be_read_by_many() -> None:
    module = parse_module(FULL)
    for layer in (0, symbol("layer")):
        operands, attributes = _attend(module, layer)
        module.graphs["layer"].ops.append(make_op("attend", operands, attributes))  # type: ignore[arg-type]
    verify(module)


def test_a_cache_argument_must_hold_something() -> None:
    module = parse_module(FULL)
    module.step.argument("cache").type = CacheType(1, 0, 2, 4, F32)
    with pytest.raises(LlamacError, match="must hold a positive number of elements"):
        verify(module)
    assert "page = 4" in CACHE

"""Graphs made at random: passes that claim to keep the function keep it, and a second run changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dims import DimLike, symbol
from llamac.ir.dtypes import BF16, F32
from llamac.ir.graph import Module, Value
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import tensor
from llamac.ir.verifier import verify
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass
from llamac.transform.registry import parse_pass

TOKENS = symbol("T")
PASSES = ("canonicalize", "dedupe-ops", "eliminate-dead", "fold-constants")
BUDGET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def random_module(seed: int) -> Module:
    """A captured graph of a few dozen ops over [2, T, 6] and what can be made of it."""
    r = random.Random(seed)
    module = Module("random", "captured")
    arguments = [("x", tensor(2, TOKENS, 6, F32)), ("y", tensor(2, TOKENS, 6, F32)), ("z", tensor(1, 6, F32))]
    builder = Builder(module, new_graph(module, "step", list(arguments)))
    assert builder.graph is not None
    values: list[Value] = list(builder.graph.arguments)
    for _ in range(r.randint(3, 30)):
        try:
            values.append(_random_op(r, builder, values))
        except LlamacError:
            continue  # the choice was ill typed; another one comes
    builder.graph.outputs = r.sample(values[-6:], min(2, len(values[-6:])))
    return module


def _random_op(r: random.Random, b: Builder, values: list[Value]) -> Value:
    x, y = r.choice(values), r.choice(values)
    rank = x.tensor.rank
    match r.randrange(10):
        case 0 | 1:
            return b.op(r.choice(("add", "mul", "sub")), x, y)
        case 2:
            return b.op(r.choice(("neg", "sigmoid")), x)
        case 3:
            return b.transpose(x, *r.sample(range(rank), rank))
        case 4:
            return b.reshape(x, *_other_shape(r, x.tensor.shape))
        case 5:
            return b.op("slice", x, axis=-1, start=0, stop=r.choice((1, 2, 3, 6)))
        case 6:
            return b.op("concat", x, y, axis=r.randrange(rank))
        case 7:
            return b.op("cast", x, dtype=r.choice((F32, F32, BF16)))
        case 8:
            return b.op("broadcast", x, shape=tuple(d if d != 1 else r.choice((1, 3)) for d in x.tensor.shape))
        case _:
            return b.op("mul", x, b.constant(r.choice((0.0, 1.0, 0.5)), x.tensor.dtype))


def _other_shape(r: random.Random, shape: tuple[DimLike, ...]) -> list[DimLike]:
    """The same elements otherwise: an axis of 1 put in or taken out, two axes joined, or nothing changed."""
    found = list(shape)
    place = r.randrange(len(found) + 1)
    match r.randrange(4):
        case 0:
            found.insert(place, 1)
        case 1:
            found = [d for d in found if d != 1] or [1]
        case 2 if len(found) > 1:
            place = r.randrange(len(found) - 1)
            found[place : place + 2] = [found[place] * found[place + 1]]
        case _:
            pass
    return found


def _outputs(module: Module) -> list[np.ndarray]:
    generator = np.random.Generator(np.random.Philox(1))
    inputs = {
        "x": generator.standard_normal((2, 3, 6)),
        "y": generator.standard_normal((2, 3, 6)),
        "z": generator.standard_normal((1, 6)),
    }
    return Interpreter(module, exact=True).run(inputs)


@pytest.mark.parametrize("name", PASSES)
@BUDGET
@given(seed=st.integers(0, 2**32 - 1))
def test_a_pass_keeps_the_function(name: str, seed: int) -> None:
    module = random_module(seed)
    verify(module)
    before, item = _outputs(module), parse_pass(name)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    result = run_pass(module, item, PassContext())
    verify(module)
    after = print_module(module)
    assert result.changed == (after != text)
    for found, expected in zip(_outputs(module), before, strict=True):
        assert found.shape == expected.shape
        assert np.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert not run_pass(module, item, PassContext()).changed
    assert print_module(module) == after

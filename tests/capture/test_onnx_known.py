"""What an import evaluates by itself, against numpy for many lengths; stored constants against onnx's own reader."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.ir.dims import evaluate, symbol
from llamac.ir.dtypes import I32
from llamac.models.llama.config import LlamaConfig, RopeScaling
from llamac.models.llama.graph import inverse_frequencies
from llamac.models.onnx_import.known import (
    NUMBERS,
    Known,
    Literal,
    NotKnown,
    Ramp,
    as_literal,
    broadcast_shape,
    combine,
    equal,
    expanded,
    literal,
    quotient,
    sign,
    uniform,
)
from llamac.models.onnx_import.proto import TensorProto, read_tensor
from llamac.models.onnx_import.rotary_base import base_of, frequencies_of_table
from llamac.models.onnx_import.stored import small_values
from llamac.models.onnx_import.wire import Message

PLAIN = LlamaConfig(
    name="plain", hidden_size=64, intermediate_size=96, layers=1, heads=2, kv_heads=1, head_dim=32, vocab_size=64,
    rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, context_length=4096, tied_head=False, dtype="f32",
    rope_style="half_split",
)  # fmt: skip
T, P = symbol("T"), symbol("P")
LENGTHS = [{"T": t, "P": p} for t, p in ((1, 0), (1, 9), (4, 3), (7, 12))]
REFERENCE = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum, "Equal": np.equal,
    "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal,
}  # fmt: skip


def number_at(number: Any, lengths: dict[str, int]) -> Any:
    return number if isinstance(number, bool | float) else evaluate(number, lengths)


def at(known: Known, lengths: dict[str, int]) -> Any:
    """The tensor for given lengths."""
    if isinstance(known, Literal):
        return np.array([number_at(n, lengths) for n in known.list()]).reshape(known.values.shape)
    shape = tuple(evaluate(size, lengths) for size in known.shape)
    steps = sum(step * index for step, index in zip(known.steps, np.indices(shape), strict=True))
    return np.broadcast_to(
        number_at(known.start, lengths) + steps if any(known.steps) else number_at(known.start, lengths), shape
    )


def any_known(choose: random.Random) -> Known:
    """A size, a list of sizes, positions along one of three axes, or one number everywhere."""
    number = choose.choice([0, 1, 3, -2, T, P, P + T, 2 * T])
    kind = choose.randrange(4)
    if kind == 0:
        return uniform((), number, I32)
    if kind == 1:
        return literal([choose.randint(-3, 3) for _ in range(3)], I32)
    axis = choose.randrange(3)
    shape = tuple(choose.choice([T, P + T]) if i == axis else 1 for i in range(3))
    return Ramp(shape, number, tuple(int(i == axis and kind == 2) for i in range(3)), I32)


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 1 << 32), op=st.sampled_from(sorted(REFERENCE)))
def test_what_is_evaluated_is_what_numpy_gives_for_every_length(seed: int, op: str) -> None:
    choose = random.Random(seed)
    a, b = any_known(choose), any_known(choose)
    try:
        found = combine(op, a, b, I32)
    except NotKnown:
        return
    for lengths in LENGTHS:
        expected = REFERENCE[op](at(a, lengths), at(b, lengths))
        np.testing.assert_array_equal(at(found, lengths), expected)
        assert at(found, lengths).shape == expected.shape


def test_enough_of_it_is_evaluated() -> None:
    """The property above would hold for an evaluation that knows nothing."""
    choose, known = random.Random(0), 0
    for _ in range(200):
        try:
            combine(choose.choice(["Add", "Sub", "Mul"]), any_known(choose), any_known(choose), I32)
            known += 1
        except NotKnown:
            pass
    assert known > 80 and set(REFERENCE) < set(NUMBERS)


def test_what_depends_on_the_lengths_is_not_known() -> None:
    for question in (lambda: equal(T, 1), lambda: sign(T - P), lambda: quotient(P + T, 2), lambda: equal(2 * T, P)):
        with pytest.raises(NotKnown):
            question()
    assert (equal(T, 0), equal(P + T, T + P), sign(-T), quotient(6 * T, T)) == (False, True, -1, 6)
    with pytest.raises(NotKnown):
        broadcast_shape((T, 3), (P, 3))
    with pytest.raises(NotKnown):
        as_literal(uniform((1 << 20,), 0, I32))
    assert broadcast_shape((1, T), (P, 1)) == (P, T) and expanded(literal(2, I32), (T, 4)).shape == (T, 4)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "lists"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "bool", "uint8", "int8"])
def test_constants_are_read_however_they_are_stored(tmp_path: Path, dtype: str, raw: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    values = np.array([[0, 1, 5], [1, 0, 100]]).astype(dtype)
    values = values if dtype in ("bool", "uint8") else values * np.array(-1, dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    if raw:
        made = onnx.numpy_helper.from_array(values, "x")
    else:
        made = onnx.helper.make_tensor("x", kind, values.shape, values.reshape(-1).tolist())
    data = made.SerializeToString()
    (tmp_path / "t").write_bytes(data)
    found = small_values(read_tensor(Message(data, 0, len(data), "t")), tmp_path / "t", 100)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("theta", [10000.0, 130000.0, 500000.0, 1000000.0])
@pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "llama3"])
def test_the_base_is_read_off_a_table_of_sines(tmp_path: Path, head_dim: int, theta: float, is_scaled: bool) -> None:
    """Exactly, from f32 sines of up to 4096 positions, whatever scaling does to the long wavelengths."""
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192) if is_scaled else None
    config = replace(PLAIN, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    frequencies = inverse_frequencies(config)
    table = np.sin(np.arange(4096, dtype=np.float32)[:, None] * frequencies).astype("<f4")
    (tmp_path / "m.onnx").write_bytes(table.tobytes())
    stored = TensorProto("sin_cache", table.shape, 1, (0, table.nbytes))
    found = frequencies_of_table(stored, tmp_path / "m.onnx", config)
    assert np.abs(found / frequencies - 1).max() < 2e-7
    assert base_of(found) == theta

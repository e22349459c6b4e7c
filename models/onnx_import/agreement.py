"""What a graph says beside its config: the norms' epsilon, the frequencies, the scale of the scores.

The config of an imported model must describe its graph, since parts of the compiler (plans, certificates, exports) go
by the config. So it takes over what the graph has, and a graph that no config can describe is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.graph import DataSource, Graph, Module, Op, Value

from ..capture.parameters import FREQUENCIES
from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig, RopeScaling, check_config
from ..llama.graph import inverse_frequencies

_MOVES = ("reshape", "cast", "broadcast")


def agreed(module: Module, config: LlamaConfig, file: str, ledger: list[LedgerEntry]) -> LlamaConfig:
    """The config with the graph's own numbers; LLC0937 for a graph whose layers differ in them."""
    scale = config.head_dim**-0.5
    for found in _scales(module.step):
        if not math.isclose(found, scale, rel_tol=1e-6):
            reason = (
                f"scores are scaled by {found:.8g}, and a Llama with heads of {config.head_dim} scales by {scale:.8g}"
            )
            raise LlamacError("LLC0937", file, reason, "check that config.json belongs to this model")
    return check_config(_with_frequencies(module, _with_epsilon(module, config, file, ledger)), file)


def _with_epsilon(module: Module, config: LlamaConfig, file: str, ledger: list[LedgerEntry]) -> LlamaConfig:
    found = sorted(set(_epsilons(module.step)))
    if len(found) > 1:
        reason = f"its norms add {', '.join(f'{eps:g}' for eps in found[:4])}, and a Llama has one epsilon"
        raise LlamacError("LLC0937", file, reason, "export the model again")
    if not found or np.float32(found[0]) == np.float32(config.rms_norm_eps):
        return config
    what = f"{found[0]:g} instead of {config.rms_norm_eps:g}"
    ledger.append(entry("note", "rms_norm_eps", what, "the config says otherwise, the graph counts"))
    return replace(config, rms_norm_eps=found[0])


def _with_frequencies(module: Module, config: LlamaConfig) -> LlamaConfig:
    """Frequencies that the config does not give, as divisors of the unscaled ones."""
    weight = module.weights.get(FREQUENCIES)
    if weight is None or not isinstance(weight.source, DataSource):
        return config
    found = np.frombuffer(weight.source.data, "<f4")
    if np.array_equal(found, inverse_frequencies(config).astype("<f4")):
        return config
    plain = inverse_frequencies(replace(config, rope_scaling=None)).astype(np.float64)
    with np.errstate(divide="ignore", over="ignore"):  # what is no number is refused as a config that has it
        divisors = tuple(float(d) for d in (plain / found).astype(np.float32))
    return replace(config, rope_scaling=RopeScaling("divisors", divisors=divisors))


def _behind(value: Value) -> Op | None:
    while value.producer is not None and value.producer.opcode in _MOVES:
        value = value.producer.operands[0]
    return value.producer


def _constant(value: Value) -> float | None:
    op = _behind(value)
    found = op.attributes["value"] if op is not None and op.opcode == "constant" else None
    return found if isinstance(found, float) else None


def _epsilons(graph: Graph) -> Iterator[float]:
    """What is added to the mean of squares."""
    for op in graph.ops:
        if op.opcode == "add" and any(_is(value, "reduce_mean") for value in op.operands):
            yield from (number for value in op.operands if (number := _constant(value)) is not None)


def _scales(graph: Graph) -> Iterator[float]:
    """What scores are multiplied with before the mask is added; 1 where they are not."""
    for op in graph.ops:
        if op.opcode != "softmax":
            continue
        masked = _behind(op.operands[0])
        if masked is None or masked.opcode != "add":
            continue
        scores = [
            made for value in masked.operands if (made := _behind(value)) and made.opcode in ("mul", "div", "matmul")
        ]
        if len(scores) == 1:
            yield _factor(scores[0])


def _factor(scores: Op) -> float:
    number = _constant(scores.operands[1]) if scores.opcode != "matmul" else 1.0
    if number is None or not number:
        return math.nan
    return 1 / number if scores.opcode == "div" else number


def _is(value: Value, opcode: str) -> bool:
    op = _behind(value)
    return op is not None and op.opcode == opcode

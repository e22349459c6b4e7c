"""File tests: `// run: PASS{options}`, a module, `// expect`, then what the pass reports and the module it leaves.

Several cases stand in one file, separated by `// -----`. The report is one line `// counts: ...`, one `// refused` line
a refusal and one `// ledger` line an entry; a pass that fails is expected as its one `// error:` line. `pytest --bless`
rewrites what follows `// expect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from image_cases import check_encoder, check_image_cache, check_tiles
from rank_cases import check_ranks

from llamac.errors import LlamacError
from llamac.ir.dims import evaluate
from llamac.ir.dtypes import DTYPES
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.graph import FileSource, Module, Value
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import empty_caches, kv_groups
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import CacheType
from llamac.ir.verifier import verify
from llamac.transform.base import PassContext, PassResult
from llamac.transform.matrices import matrices
from llamac.transform.pictures import PAST, Pictures
from llamac.transform.pipeline import run_pass
from llamac.transform.registry import parse_pass
from llamac.transform.rounding import stand_in

SEPARATOR, RUN, EXPECT = "// -----", "// run: ", "// expect"
SYMBOLS = {"T": 5, "P": 3, "R": 2, "S": 2, "N": 2, "M": 4}
EXACT = 1e-10
IMAGE_LAWS = {
    "take-one-tile": check_tiles, "lower-image-cache": check_image_cache, "lower-image-rows": check_encoder,
}  # fmt: skip
RECODING = ("quantize-int4", "quantize-int8", "quantize-fp8", "cast-weights", "fold-norm-scale")
Array = np.ndarray


@dataclass
class Case:
    """One case: the comment above it, the pass, the input text, and the expected text."""

    path: Path
    number: int
    comment: str
    run: str
    input: str
    expected: str

    @property
    def id(self) -> str:
        """File and number."""
        return f"{self.path.stem}-{self.number}"


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of a file, in order."""
    for number, part in enumerate(path.read_text().split(SEPARATOR + "\n")):
        before, _, expected = part.partition(EXPECT + "\n")
        comment, _, rest = before.partition(RUN)
        run, _, text = rest.partition("\n")
        yield Case(path, number, comment, run.strip(), text, expected)


def write_cases(path: Path, cases: list[Case]) -> None:
    """The inverse of `read_cases`."""
    parts = [f"{c.comment}{RUN}{c.run}\n{c.input}{EXPECT}\n{c.expected}" for c in cases]
    path.write_text((SEPARATOR + "\n").join(parts))


def outcome(case: Case) -> tuple[str, Module | None, PassResult | None]:
    """What the pass reports and leaves, as text; None for both when it fails."""
    module = parse_module(case.input, case.path.name)
    verify(module)
    context = PassContext(reader(module))
    try:
        result = run_pass(module, parse_pass(case.run), context)
    except LlamacError as error:
        return f"// error: {error}\n", None, None
    verify(module)
    counts = ", ".join(f"{name} = {count}" for name, count in result.counts.items() if count)
    lines = [f"// counts: {counts or 'nothing'}"]
    lines += [f"// refused{f' {r.where}' if r.where else ''}: {r.reason}" for r in result.refusals]
    lines += [f"// ledger {e.kind} {e.where}: {e.what} ({e.reason})" for e in context.ledger]
    return "\n".join([*lines, print_module(module)]), module, result


def reader(module: Module) -> Callable[[str, int, int], Array]:
    """Random bytes for the file weights of the module, the same whatever else it holds."""
    files = {w.source.tensor: _bytes(w.source, w) for w in module.weights.values() if isinstance(w.source, FileSource)}
    return lambda name, lo, hi: files[name][lo:hi]


def _bytes(source: FileSource, weight: Value) -> Array:
    random = np.random.default_rng(sum(source.tensor.encode()))
    shape = [d for d in weight.tensor.shape if isinstance(d, int)]
    rows = shape[0] if len(shape) > 1 else 1
    if source.encoding in BLOCKS:
        block = BLOCKS[source.encoding]
        raw = random.integers(0, 256, (rows, shape[1] // block.bytes, block.bytes), dtype=np.uint8)
        halves = random.uniform(0.001, 0.01, (*raw.shape[:2], 2)).astype(np.float16).view(np.uint8)
        at, count = (208, 2) if source.encoding == "q6_k" else (0, 2 if block.minimum is None else 4)
        raw[:, :, at : at + count] = halves[:, :, :count]
        return raw.reshape(rows, -1)
    values = random.standard_normal(shape) if len(shape) > 1 else random.uniform(0.5, 1.5, shape)
    stored = DTYPES[source.encoding].storage
    return np.ascontiguousarray(values.astype(np.float32).astype(stored)).reshape(rows, -1).view(np.uint8)


def inputs_of(module: Module, symbols: dict[str, int]) -> dict[str, Any]:
    """Random inputs of the step: floats, and integers that are valid rows, positions, sequences and pages."""
    random, found = np.random.default_rng(1), {}
    tokens = symbols["T"]
    integers = {
        "positions": np.arange(symbols["P"], symbols["P"] + tokens),
        "sequence_of_token": np.arange(tokens) % symbols["S"],
        "page_tables": np.arange(symbols["S"] * symbols["N"])[::-1].reshape(symbols["S"], symbols["N"]),
        "logit_rows": np.arange(symbols["R"])[::-1],
        "start": np.array([0, 1, 2, 3, 0])[:tokens],
        "stop": np.array([4, 1, 3, 2, 0])[:tokens],
        "rows": np.array([2, -1, 0, -1, 3])[:tokens],
    }
    for argument in module.step.arguments:
        if isinstance(argument.type, CacheType):
            state = CacheState.empty(argument.type, symbols["S"] * symbols["N"], True)
            state.keys[:], state.values[:] = random.standard_normal((2, *state.keys.shape))
            found[argument.name] = state
            continue
        shape = tuple(evaluate(d, symbols) for d in argument.tensor.shape)
        if argument.tensor.dtype.is_float:
            found[argument.name] = random.standard_normal(shape).astype(np.float32).astype(ml_dtypes.bfloat16)
        else:
            given = integers.get(argument.name.partition(".")[0], random.integers(0, 4, shape))
            found[argument.name] = given[: shape[0]] if shape else given
    return found


def check_meaning(case: Case, after: Module) -> None:
    """The step computes what it did, by the law of the pass."""
    before, name = parse_module(case.input), case.run.partition("{")[0]
    rows = reader(before)
    if name == "lower-kv-cache":
        _check_ragged(before, after, rows)
        return
    if name in IMAGE_LAWS and "encode_image" in before.graphs:
        IMAGE_LAWS[name](before, after, rows)
        return
    if name == "shard-tensors" and any(op.opcode == "all_reduce" for _, op in after.ops()):
        check_ranks(case.run, case.input, inputs_of(before, SYMBOLS), rows)
        return
    symbols = SYMBOLS | ({"P": 0} if name == "fold-rope" else {})
    inputs = inputs_of(before, symbols)
    # fold-constants rounds as dtype mode does, so that is where it must change nothing at all.
    exact = name != "fold-constants"
    old, new = Interpreter(before, rows, exact), Interpreter(after, rows, exact)
    if name in RECODING:
        _use_weights_of(old, after, rows)
    # What quantize-kv changes is the type of a cache, not what it holds.
    given = inputs_of(after, symbols) if name == "quantize-kv" else inputs
    expected, found = _arrays(old.run(inputs)), _arrays(new.run(given))
    if name == "fold-rope":
        expected, found = expected[:1], found[:1]  # keys are handed on in another order
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        _close(a, b, EXACT if exact else 0)


def _arrays(outputs: list[Any]) -> list[Array]:
    flat: list[Array] = []
    for value in outputs:
        flat += [value.keys, value.values] if isinstance(value, CacheState) else [value]
    return flat


def _close(found: Array, expected: Array, bound: float) -> None:
    assert found.shape == expected.shape
    finite = np.isfinite(expected)  # a graph may be wrong on purpose: then it is wrong alike
    assert (np.isfinite(found) == finite).all()
    differences = np.abs(found - expected)[finite]
    assert not differences.size or differences.max() <= bound * np.abs(expected[finite]).max()


def _use_weights_of(interpreter: Interpreter, after: Module, rows: Callable[[str, int, int], Array]) -> None:
    evaluator = WeightEvaluator(rows)
    for weight in matrices(after, "all"):
        name = weight.name
        while name not in interpreter.module.weights:
            name = name.rpartition(".")[0]
        origin = interpreter.module.weights[name]
        values = stand_in(weight, evaluator.whole(origin), evaluator)
        interpreter._weights[origin] = values.astype(np.float64)


def _check_ragged(before: Module, after: Module, rows: Callable[[str, int, int], Array]) -> None:
    """One sequence of 5 tokens in steps of 3 and 2, and whole through the graph with explicit past."""
    ids = np.array([3, 1, 0, 2, 2])
    past = [a for a in before.step.arguments if a.name.startswith(PAST)]
    empty = {a.name: np.zeros((a.tensor.shape[0], 0, a.tensor.shape[2])) for a in past}
    groups, pictures = kv_groups(after.step), Pictures((len(ids),), 4, 1)
    shown = pictures.of_sequence(before.step, 0, 0, len(ids))
    expected = Interpreter(before, rows, True).run({"ids": ids, "positions": np.arange(5), **empty, **shown})[0]
    pages = [-(-(pictures.tokens(0) if g.type.cross else len(ids)) // g.type.page) for g in groups]
    state: dict[str, Any] = empty_caches(after.step, pages, True)
    tables = {g.tables.name: np.arange(n)[::-1][None] for g, n in zip(groups, pages, strict=True)}
    for group in groups:
        if group.type.cross:
            pictures.fill(group, state[group.cache.name], tables[group.tables.name])
    for part in (np.arange(3), np.arange(3, 5)):
        given = {"token_ids": ids[part], "positions": part, "sequence_of_token": part * 0, **tables, **state}
        given |= pictures.of_rows(after.step, [(0, int(t)) for t in part])
        found, *caches = Interpreter(after, rows, True).run(given | {"logit_rows": np.arange(len(part))})
        state = dict(zip(state, caches, strict=True))
        _close(found, expected[part], EXACT)

"""Finds the first activation at which two artifacts, or an artifact and the interpreter, part ways."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.artifact.read import Artifact
from llamac.artifact.tvm_plan import require_tvm
from llamac.errors import LlamacError
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.target import GPUS, ONNX_TARGETS, TARGETS, TVM_TARGETS

from .device_logits import record_device, recording, rounds
from .recording import Activation, Bytes, Recording, interpret, model_weight, record_interpreter
from .traced_build import record_artifact

INTERPRETER = "interpreter"
"""What stands for B when it is no file."""

TVM = "tvm"
"""As B: TVM on the artifact's IR and weights, op by op, whether or not the file has code of it."""

TOLERANCE = {"float": 1e-3, "quantized": 2e-2, "forced": 1e-3, "rounded": 1e-1}
"""Largest difference that is no divergence, relative to the largest value. quantized: a run rounds activations to int8,
where a last bit that differs may move a value by a step, 1/127 of its block's largest, and such steps add up. forced:
each op was run on the other's values, so that nothing adds up. rounded: logits of two devices, each of which rounds
activations in its own way."""


@dataclass(frozen=True)
class Comparison:
    """One value in both runs: largest difference, absolute and relative to B's largest value, and where it is.

    Of int8 activations, one step between neighbouring values is no difference to `relative`.
    """

    where: str
    what: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    row: int
    column: int
    a: float
    b: float
    weights: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        found = {"where": self.where, "op": self.what, "shape": list(self.shape), "weights": list(self.weights)}
        worst = {"row": self.row, "column": self.column, "a": _number(self.a), "b": _number(self.b)}
        return {**found, "absolute": _number(self.absolute), "relative": _number(self.relative), "worst": worst}


@dataclass(frozen=True)
class Divergence:
    """All comparisons in the order of execution, and the first above the tolerance.

    first_bit: the first that is not the same bit for bit. forced: every op of B was run on A's values, so that each row
    stands for its own op; else differences add up from op to op. unmatched: values of either run that the other lacks,
    or has in another shape. cause: what is known about the first divergence besides its place. faithful: False when the
    code in a file does not do what its IR says.
    """

    names: tuple[str, str]
    ids: tuple[int, ...]
    tolerance: float
    rows: tuple[Comparison, ...]
    first: int | None
    first_bit: int | None
    forced: bool
    unmatched: tuple[str, ...]
    cause: str
    notes: tuple[str, ...]
    faithful: bool

    @property
    def agrees(self) -> bool:
        return self.first is None and self.faithful

    def to_json(self) -> dict[str, Any]:
        return {
            "agrees": self.agrees,
            "a": self.names[0],
            "b": self.names[1],
            "ids": list(self.ids),
            "tolerance": self.tolerance,
            "first": None if self.first is None else {"index": self.first, **self.rows[self.first].to_json()},
            "first_bit": self.first_bit,
            "forced": self.forced,
            "cause": self.cause,
            "faithful": self.faithful,
            "notes": list(self.notes),
            "unmatched": list(self.unmatched),
            "rows": [row.to_json() for row in self.rows],
        }


def _number(value: float) -> float | str:
    """JSON has no infinity and no NaN."""
    return value if np.isfinite(value) else str(value)


def diverge(
    a: str | Path,
    b: str | Path,
    *,
    prompt: str | None = None,
    ids: Sequence[int] | None = None,
    source: str | Path | None = None,
    random_weights: int | None = None,
    tolerance: float | None = None,
    device: str | None = None,
) -> Divergence:
    """Run one prompt (text, or token ids) through both, in one step, and compare every value.

    b: an artifact, or "interpreter": the artifact's IR on its own weights, or with `source` the model captured anew; or
    "tvm": TVM on that IR, op by op; or a target that the artifact has code for, whose logits are compared end to end.
    device: the target whose logits A (and B, where it is a file) is compared by, instead of a build for this CPU.
    tolerance: relative; a row of `TOLERANCE` unless given. **This runs the artifacts' code.**
    """
    with Artifact.open(a) as first, tempfile.TemporaryDirectory(prefix="llamac-diverge-") as folder:
        tokens = _ids(first, prompt, ids)
        _check_source(source, b)
        if str(b) == TVM and device is None:
            require_tvm()
        if device is not None or _is_target(first, b):
            return _end_to_end(first, b, tokens, device, tolerance, Path(folder))
        recorded = record_artifact(first, tokens, Path(folder))
        if str(b) == INTERPRETER:
            reference = _interpreted(first, tokens, source, random_weights, recorded)
            return compare(recorded, reference, tokens, tolerance)
        if str(b) == TVM:
            from .second_run import record_tvm

            return compare(recorded, record_tvm(first, tokens, recorded), tokens, tolerance)
        with Artifact.open(b) as second:
            _check_ids(second, tokens)
            other = Path(folder) / "b"
            other.mkdir()
            return compare(recorded, record_artifact(second, tokens, other), tokens, tolerance)


def _check_source(source: str | Path | None, b: str | Path) -> None:
    if source is not None and str(b) != INTERPRETER:
        raise LlamacError("LLC0101", "--source", "goes with B = interpreter only", f"llamac diverge A {INTERPRETER}")


def _is_target(artifact: Artifact, b: str | Path) -> bool:
    """Whether B names a target: one of the file, or any that no file is called like."""
    names = {row["name"] for row in artifact.manifest["targets"]} | {*TARGETS, *GPUS, *TVM_TARGETS, *ONNX_TARGETS}
    return str(b) in names and not Path(b).exists()


def _end_to_end(
    first: Artifact, b: str | Path, ids: Sequence[int], device: str | None, tolerance: float | None, folder: Path
) -> Divergence:
    """The logits of two devices, each from the token ids alone."""
    if str(b) in (INTERPRETER, TVM):
        raise LlamacError("LLC0101", "--device", f"goes with a target or a file as B, not with {b}", "leave it out")
    if _is_target(first, b):
        other = record_device(first, str(b), ids)
    else:
        with Artifact.open(b) as second:
            _check_ids(second, ids)
            other = record_device(second, device or "", ids)
    if device is not None:
        mine = record_device(first, device, ids)
    else:
        traced = record_artifact(first, ids, folder)
        mine = recording(traced.name, traced.logits, rounds(first))
    default = TOLERANCE["rounded" if mine.quantized or other.quantized else "float"]
    return compare(mine, other, ids, default if tolerance is None else tolerance)


def compare(a: Recording, b: Recording, ids: Sequence[int], tolerance: float | None = None) -> Divergence:
    """The two runs value by value."""
    if tolerance is None:
        kind = "forced" if b.forced else "quantized" if a.quantized or b.quantized else "float"
        tolerance = TOLERANCE[kind]
    theirs = {_key(x): x for x in b.activations}
    rows, unmatched = [], []
    for mine in a.activations:
        other = theirs.pop(_key(mine), None)
        if other is None or other.values.shape != mine.values.shape:
            unmatched.append(_unmatched(mine, other))
        else:
            rows.append(_compare(mine, other))
    unmatched += [f"{x.where} {x.what}: only in B" for x in theirs.values()]
    if not rows:
        reason = "they have no value in common"
        raise LlamacError("LLC0101", f"{a.name}, {b.name}", reason, "compare artifacts of one architecture")
    first = next((i for i, row in enumerate(rows) if not row.relative <= tolerance), None)
    cause = "" if first is None else _cause(rows[first], a, b)
    notes = [f"{letter}: {note}" for letter, run in (("A", a), ("B", b)) for note in run.notes]
    faithful = a.faithful is not False and b.faithful is not False
    return Divergence(
        (a.name, b.name),
        tuple(ids),
        tolerance,
        tuple(rows),
        first,
        next((i for i, row in enumerate(rows) if row.absolute), None),
        b.forced,
        tuple(unmatched),
        cause,
        tuple(notes),
        faithful,
    )


def _key(value: Activation) -> tuple[str, ...]:
    """What two runs share: the weights that the op reads, else its place; and what it does."""
    return (*(map(model_weight, value.weights) if value.weights else (value.where,)), value.what)


def _unmatched(mine: Activation, other: Activation | None) -> str:
    if other is None:
        return f"{mine.where} {mine.what}: only in A"
    return f"{mine.where} {mine.what}: {_shape(mine.values.shape)} in A, {_shape(other.values.shape)} in B"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _compare(a: Activation, b: Activation) -> Comparison:
    x, y = (v if v.ndim > 1 else v[:, None] for v in (a.values, b.values))  # a number a row is a row of one
    with np.errstate(invalid="ignore"):
        difference = np.abs(x.astype(np.float64) - y)
    # Equal infinities agree; a NaN agrees with nothing.
    difference = np.where(x == y, 0.0, np.nan_to_num(difference, nan=np.inf))
    row, column = (int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    absolute = float(difference[row, column])
    allowed = np.maximum(a.step, b.step) * 1.001 if a.step is not None and b.step is not None else 0.0
    beyond = float(np.maximum(difference - allowed, 0.0).max())
    finite = np.abs(y[np.isfinite(y)])
    scale = max(float(finite.max(initial=0.0)), 1e-30)
    return Comparison(
        a.where, a.what, a.values.shape, absolute, beyond / scale, row, column,
        float(x[row, column]), float(y[row, column]), b.weights,
    )  # fmt: skip


def _cause(row: Comparison, a: Recording, b: Recording) -> str:
    """Whether the op's own weights differ between the two."""
    found = []
    for name in row.weights:
        x, y = a.weight(name), b.weight(name)
        short = model_weight(name)
        if x is None or y is None:
            found.append(f"its weight {short} is not in both")
        elif x.size != y.size:
            found.append(f"its weight {short} is stored otherwise: {x.size} bytes against {y.size}")
        elif (count := int(np.count_nonzero(x != y))) > 0:
            found.append(f"its weight {short} differs in {count} of {x.size} bytes")
        else:
            found.append(f"its weight {short} is the same in both: the computation differs")
    return "; ".join(found)


def _interpreted(
    artifact: Artifact,
    ids: Sequence[int],
    source: str | Path | None,
    random_weights: int | None,
    compiled_run: Recording,
) -> Recording:
    if source is None:
        return record_interpreter(artifact, ids, compiled_run)
    from llamac.compiled_graph import compile_graph
    from llamac.models.sources import open_source
    from llamac.passes.pipelines import parse_quantization

    manifest = artifact.manifest
    checkpoint = open_source(source, random_weights=random_weights)
    memory, quantization = manifest["memory"], parse_quantization(manifest["quantization"])
    context = manifest["model"]["context_length"]
    compiled = compile_graph(checkpoint, quantization, memory["kv_dtype"], memory["max_step_tokens"], context, [])
    name = f"the interpreter on {source}"
    reader = _source_weights(compiled.module, WeightEvaluator(checkpoint.read_rows))
    return interpret(name, compiled.module, ids, reader, compiled_run, read_rows=checkpoint.read_rows)


def _source_weights(module: Module, evaluator: WeightEvaluator) -> Any:
    by_model_name = {model_weight(p.name): p for op in module.step.ops for p in op.operands if p.name in module.weights}

    def read(name: str) -> Bytes | None:
        weight = by_model_name.get(model_weight(name))
        if weight is None:
            return None
        data: NDArray[Any] = np.ascontiguousarray(evaluator.whole(module.weights[weight.name]))
        return data.reshape(-1).view(np.uint8)

    return read


def _ids(artifact: Artifact, prompt: str | None, ids: Sequence[int] | None) -> tuple[int, ...]:
    if (prompt is None) == (ids is None):
        raise LlamacError(
            "LLC0102", "llamac diverge", "needs either a prompt or token ids", "--prompt TEXT or --ids 1,2,3"
        )
    found = tuple(ids) if ids is not None else _tokenize(artifact, prompt or "")
    _check_ids(artifact, found)
    return found


def _tokenize(artifact: Artifact, prompt: str) -> tuple[int, ...]:
    from llamac.runtime.text.tokenizer import load_tokenizer

    stored, generation = artifact.manifest["tokenizer"], artifact.manifest["generation"]
    if stored is None:
        raise LlamacError("LLC0813", str(artifact.path), "the artifact has no tokenizer", "give --ids 1,2,3")
    files = {name: artifact.member_bytes(member) for name, member in stored["files"].items()}
    info = {"bos_id": generation["bos_id"], "add_bos": generation["add_bos"], **stored["info"]}
    return tuple(load_tokenizer(stored["kind"], files, info).encode(prompt))


def _check_ids(artifact: Artifact, ids: Sequence[int]) -> None:
    vocabulary, most = artifact.manifest["model"]["vocab_size"], artifact.manifest["memory"]["max_step_tokens"]
    most = min(most, artifact.manifest["model"]["context_length"])
    if not ids:
        raise LlamacError("LLC0810", str(artifact.path), "the prompt is empty", "give at least one token")
    if len(ids) > most:
        reason = f"{len(ids)} tokens do not fit the one step that is compared, {most}"
        raise LlamacError("LLC0809", str(artifact.path), reason, "give a shorter prompt")
    if bad := [i for i in ids if not 0 <= i < vocabulary]:
        reason = f"token id {bad[0]} is outside the vocabulary of {vocabulary}"
        raise LlamacError("LLC0812", str(artifact.path), reason, "choose ids below it")

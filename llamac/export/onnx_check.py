"""`--check` of the ONNX forms: the structure, every weight, logits against llamac's own meaning, and the consumer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.backends.onnx.emit import MODEL
from llamac.backends.onnx.library import is_installed
from llamac.backends.onnx.reading import WrittenModel, covered
from llamac.backends.onnx.sessions import GenaiModel, OnnxSession
from llamac.ir.dtypes import widen
from llamac.ir.interpreter import Interpreter
from llamac.models.graph import build_graph

from .interpreted_logits import prompt_of
from .onnx_graph import OnnxExport, lowered
from .request import Check, ExportRequest

Floats = NDArray[np.float32]

EXACT = 1e-4
"""Largest difference of f32 logits, over the largest logit, where both sides compute in f32."""

DIVERGENCE = 0.1
"""Nats between llamac's probabilities and the consumer's, where it rounds activations to 8 bits."""

TEXT = "The quick brown fox jumps over the lazy dog, and 12 more foxes follow."
_MOST_TOKENS = 24
_GENERATED = 16


def check_model(place: Path, file: str = MODEL) -> Check:
    """onnx.checker on a model where it lies."""
    model = WrittenModel(place, file)
    try:
        model.validate()
    except Exception as error:
        return Check("onnx.checker", False, str(error).strip()[:300])
    return Check(
        "onnx.checker", True, f"{file}: {len(model.proto.graph.node)} nodes, {len(model.tensors)} initializers"
    )


def check_weights(request: ExportRequest, export: OnnxExport, place: Path) -> Check:
    """Every weight read back from the file and dequantized is bit for bit what llamac means by it."""
    model, stored = WrittenModel(place, export.emitted.file), export.emitted.stored
    extra = model.external ^ covered(stored)
    if extra:
        return Check("weights", False, f"{', '.join(sorted(extra)[:4])}: in the file or in the graph alone")
    for done, each in enumerate(stored.values()):
        for lo, rows in model.rows(each):
            first = each.rows[0] + lo
            meant = np.asarray(widen(export.evaluator.rows(each.weight, first, first + len(rows))), np.float32)
            if rows.shape != meant.shape or not np.array_equal(rows, meant):
                where = f"rows {first}.. of {each.weight.name}"
                return Check("weights", False, f"{where} differ by {_difference(rows, meant)}", "no difference")
        request.progress("checking", done + 1, len(stored))
    return Check("weights", True, f"{len(stored)} weights equal", "no difference")


def _difference(rows: Floats, meant: Floats) -> str:
    if rows.shape != meant.shape:
        return f"shape {rows.shape} against {meant.shape}"
    return f"{float(np.max(np.abs(rows - meant))):.3g}"


def reference_logits(request: ExportRequest, ids: list[int]) -> Floats:
    """What llamac means by the model: the interpreter's logits after each of `ids`, with activations in f32.

    It runs the graph as it was captured where the scheme changes no value, else the one with the wanted weights.
    """
    checkpoint = request.checkpoint
    config = replace(checkpoint.config, dtype="f32", vision=None)
    if request.quantize in ("keep", "f32"):
        module = build_graph(config, checkpoint.tensors)
    else:
        decided = list(request.ledger)
        module = lowered(request, joined=False)
        request.ledger[:] = decided  # it was said when the model was written
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    inputs: dict[str, Any] = {argument.name: empty for argument in module.step.arguments}
    inputs |= {"ids": np.array(ids, np.int32), "positions": np.arange(len(ids), dtype=np.int32)}
    return np.asarray(Interpreter(module, checkpoint.read_rows, keep=False).run(inputs)[0], np.float32)


def check_logits(request: ExportRequest, place: Path) -> Iterator[Check]:
    """ONNX Runtime on a prompt, a piece of one and single tokens, against the interpreter: in f32, and as delivered."""
    ids = prompt_of(request.checkpoint, TEXT)[:_MOST_TOKENS]
    meant = reference_logits(request, ids)
    steps = "prompt, piece and single tokens"
    found = logits_in_steps(OnnxSession(place, exact=True), ids)
    error = max(relative_error(rows, meant[end - len(rows) : end]) for end, rows in found)
    yield Check("logits", error <= EXACT, f"{error:.1e} of the largest logit ({steps})", f"{EXACT:.0e}")
    found = logits_in_steps(OnnxSession(place), ids)
    nats = float(np.mean([divergence(rows, meant[end - len(rows) : end]) for end, rows in found]))
    name = "probabilities, activations rounded as the consumer likes"
    yield Check(name, nats <= DIVERGENCE, f"{nats:.1e} nats of KL divergence ({steps})", f"{DIVERGENCE:g}")


def divergence(found: Floats, meant: Floats) -> float:
    """KL divergence of `meant` from `found`, in nats, the mean over rows; infinite where something is not finite."""
    logs = [x - np.log(np.sum(np.exp(x), axis=1, keepdims=True)) for x in (_peaked(found), _peaked(meant))]
    nats = float(np.mean(np.sum(np.exp(logs[1]) * (logs[1] - logs[0]), axis=1)))
    return nats if np.isfinite(nats) else float("inf")


def _peaked(logits: Floats) -> NDArray[np.float64]:
    """Logits whose largest is 0."""
    return np.asarray(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))


def logits_in_steps(session: OnnxSession, ids: list[int]) -> list[tuple[int, Floats]]:
    """(end, logits of the rows before it) of a prompt, a piece, and two single tokens."""
    cuts = [0, len(ids) // 2, len(ids) - 2, len(ids) - 1, len(ids)]
    return [(end, session.step(ids[start:end])) for start, end in pairwise(cuts)]


def relative_error(found: Floats, meant: Floats) -> float:
    """The largest difference over the largest value; infinite where something is not finite."""
    error = float(np.max(np.abs(found - meant)) / np.max(np.abs(meant)))
    return error if np.isfinite(error) else float("inf")


def check_generation(request: ExportRequest, place: Path) -> Iterator[Check]:
    """onnxruntime-genai writes what ONNX Runtime's logits say, and cuts text as the source's tokenizer does."""
    if not is_installed("onnxruntime_genai"):
        request.note("absent", "onnxruntime-genai", "it did not run the folder", "it is not installed")
        return
    model, ids = GenaiModel(place), prompt_of(request.checkpoint, TEXT)[:_MOST_TOKENS]
    written = model.greedy(ids, _GENERATED)
    expected = greedy(OnnxSession(place), ids, len(written))
    yield Check("onnxruntime-genai", written == expected and bool(written), f"wrote {written}", f"{expected}")
    if request.checkpoint.tokenizer is not None:
        cut = model.encode(TEXT)[:_MOST_TOKENS]
        yield Check("onnxruntime-genai's tokenizer", cut == ids, f"{cut}", f"{ids}")


def greedy(session: OnnxSession, prompt: list[int], count: int) -> list[int]:
    """The `count` likeliest ids after a prompt."""
    found: list[int] = []
    logits = session.step(prompt)
    while len(found) < count:
        found.append(int(logits[-1].argmax()))
        logits = session.step(found[-1:])
    return found

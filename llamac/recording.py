"""Runs one prompt and records every intermediate value: of an artifact, or of its IR in the interpreter.

An artifact carries the IR that its code was generated from, so a build that hands out every value can be made of it at
any time, for this machine, whatever target the artifact has code for. It runs on the artifact's own weights, mapped in
place. Whether the code in the file does the same is checked bit for bit where this machine can run it.
"""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.analysis.memory import value_bytes
from llamac.analysis.weight_plan import PlacedWeight
from llamac.artifact.read import Artifact
from llamac.backends.cpu.codegen import Limits, generate
from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.errors import LlamacError
from llamac.ir.dims import evaluate
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.parser import parse_module
from llamac.ir.types import TensorType
from llamac.ir.verifier import verify

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

NO_LAYER = 0xFFFFFFFF
_STORED_AS = re.compile(r"(\.(packed|f32|f16|bf16|e4m3fn|[iu][48]))+$")
_PLAIN = {"linear_dense": "linear", "linear_grouped": "linear"}
_RESIDUAL_AT = {"linear_dense": 2, "linear_grouped": 4}


@dataclass(frozen=True)
class Activation:
    """One value of one run: `where` in the model, `what` op made it, [rows, columns], and the weights the op read.

    `where` and `what` are the same for a linear over f32 and one over int4, so that runs of two quantizations compare.
    """

    where: str
    what: str
    values: Floats
    weights: tuple[str, ...]


@dataclass
class Recording:
    """What one run gave. `weight` gives the stored bytes of a weight by the name that `Activation.weights` uses."""

    name: str
    activations: list[Activation]
    logits: Floats
    weight: Callable[[str], Bytes | None]
    quantized: bool
    notes: list[str] = field(default_factory=list)
    faithful: bool | None = None
    """Whether the code in the file gives the same logits, bit for bit; None when it was not or could not be run."""


def model_weight(name: str) -> str:
    """The model-level name of a stored weight: `layers.0.mlp.down.i4.packed` -> `layers.0.mlp.down`."""
    return _STORED_AS.sub("", name)


def stored_module(artifact: Artifact) -> Module:
    """The IR in an artifact, verified (LLC0713 when it has none)."""
    member = artifact.manifest.get("ir")
    if member is None:
        reason = "carries no IR: an older llamac made it"
        raise LlamacError("LLC0713", str(artifact.path), reason, "compile it again")
    where = f"{artifact.path}:{member}"
    module = parse_module(artifact.member_bytes(member).decode("utf-8", "replace"), where)
    verify(module)
    return module


def stored_weights(artifact: Artifact) -> dict[str, tuple[dict[str, Any], Bytes]]:
    """Name -> (manifest entry, mapped bytes) of every weight of the first layout."""
    entry = artifact.manifest["weights"][0]
    data = artifact.map(entry["member"])
    return {t["name"]: (t, data[t["offset"] : t["offset"] + t["bytes"]]) for t in entry["tensors"]}


class Collector:
    """Gathers the results of ops, from C or from the interpreter, into activations in the order of execution."""

    def __init__(self, module: Module, tokens: int, rows: int) -> None:
        self.module = module
        self.symbols = {"T": tokens, "R": rows}
        self.found: list[tuple[str, int, int | None, dict[int, NDArray[Any]]]] = []

    def add(self, graph: str, index: int, layer: int | None, number: int, values: NDArray[Any]) -> None:
        """One result of op `index` of `graph`."""
        if not self.found or self.found[-1][:3] != (graph, index, layer):
            self.found.append((graph, index, layer, {}))
        self.found[-1][3][number] = values

    def from_native(self, graph: bytes, index: int, number: int, layer: int, address: int, stride: int) -> None:
        """The trace callback of a tracing build: copies `rows` rows that lie `stride` elements apart."""
        name = graph.decode()
        result = self.module.graphs[name].ops[index].results[number].tensor
        rows, columns = (evaluate(d, self.symbols) for d in result.shape)
        kind = result.dtype.storage
        count = (rows - 1) * stride + columns
        flat = np.frombuffer(ctypes.string_at(address, count * kind.itemsize), kind)
        padded = np.zeros(rows * stride, kind)
        padded[:count] = flat
        values = padded.reshape(rows, stride)[:, :columns]
        self.add(name, index, None if layer == NO_LAYER else layer, number, values)

    def observe(self, graph: Graph, index: int, symbols: Any, results: Sequence[Any]) -> None:
        """The observer of an interpreter."""
        op = graph.ops[index]
        if op.opcode == "call":
            return
        for number, (value, found) in enumerate(zip(op.results, results, strict=True)):
            if isinstance(value.type, TensorType):
                self.add(graph.name, index, symbols.get("layer"), number, np.array(found))

    def activations(self) -> list[Activation]:
        """Everything gathered, under names that another run shares."""
        made: list[Activation] = []
        seen: dict[tuple[str, str], int] = {}
        for graph, index, layer, results in self.found:
            op = self.module.graphs[graph].ops[index]
            where = op.location if layer is None else op.location.replace("layers", f"layers.{layer}", 1)
            weights = tuple(self._weights(graph, op, layer))
            for suffix, values in _values(op, results):
                what = " ".join([_plain(op), *(_role(w) for w in weights), *suffix])
                count = seen[where, what] = seen.get((where, what), 0) + 1
                name = what if count == 1 else f"{what} ({count})"
                made.append(Activation(where, name, values, weights))
        return made

    def _weights(self, graph: str, op: Op, layer: int | None) -> list[str]:
        calls = self._calls.get((graph, layer))
        found = []
        for operand in op.operands:
            if isinstance(operand, Weight):
                found.append(operand.name)
            elif calls is not None and operand in self.module.graphs[graph].arguments:
                given = calls.operands[self.module.graphs[graph].arguments.index(operand)]
                found += [given.name] if isinstance(given, Weight) else []
        return found

    @functools.cached_property
    def _calls(self) -> dict[tuple[str, int | None], Op]:
        calls = [op for op in self.module.step.ops if op.opcode == "call"]
        return {(str(op.attributes["callee"]), int(str(op.attributes["layer"]))): op for op in calls}


def _plain(op: Op) -> str:
    name = _PLAIN.get(op.opcode, op.opcode.removesuffix("_quantized"))
    has_residual = len(op.operands) > _RESIDUAL_AT.get(op.opcode, 99)
    return f"{name}+residual" if has_residual else name


def _role(weight: str) -> str:
    return re.sub(r"^layers\.\d+\.", "", model_weight(weight))


def _values(op: Op, results: dict[int, NDArray[Any]]) -> list[tuple[list[str], Floats]]:
    """What the results of an op stand for: int8 activations with their scales are one value."""
    if "block" in op.attributes and len(op.results) == 3:
        quants, scales = results[0].astype(np.float32), results[1].astype(np.float32)
        values = quants * np.repeat(scales, quants.shape[1] // scales.shape[1], axis=1)
        width = int(str(op.operands[0].tensor.shape[-1])) // (2 if op.opcode == "swiglu_quantized" else 1)
        return [([], values[:, :width])]  # the rest is padding
    tensors = [number for number, value in enumerate(op.results) if isinstance(value.type, TensorType)]
    suffixes = {"rope_angles": [["cos"], ["sin"]], "rope_append": [["q"]]}.get(op.opcode, [[] for _ in tensors])
    return [(suffix, results[number].astype(np.float32)) for suffix, number in zip(suffixes, tensors, strict=True)]


def record_artifact(artifact: Artifact, ids: Sequence[int], folder: Path) -> Recording:
    """Run the artifact's IR, built anew with tracing into `folder`, on its own weights; then the code it ships."""
    module = stored_module(artifact)
    weights = stored_weights(artifact)
    limits = _limits(artifact)
    placed = _placed(artifact, module, weights)
    _check_arena(artifact, module, limits)
    notes = _source_note(artifact, module, placed, limits)
    library = folder / "traced.so"
    source = generate(module, placed, limits, "a tracing build", trace=True)
    _build(source, library)
    collector = Collector(module, len(ids), len(ids))
    logits = _run_native(artifact, library, ids, collector)
    name = str(artifact.path)
    activations = collector.activations()
    recording = Recording(name, activations, logits, _reader(weights), _is_quantized(module), notes)
    _check_shipped(artifact, ids, recording)
    return recording


def record_interpreter(artifact: Artifact, ids: Sequence[int]) -> Recording:
    """Run the artifact's IR in the interpreter, on the artifact's own weights: what its code should give."""
    module = stored_module(artifact)
    weights = stored_weights(artifact)
    _placed(artifact, module, weights)
    name = "the interpreter on the artifact's IR and weights"
    return interpret(name, module, ids, _reader(weights), overrides=_arrays(module, weights))


def interpret(
    name: str,
    module: Module,
    ids: Sequence[int],
    weight: Callable[[str], Bytes | None],
    read_rows: Callable[[str, int, int], NDArray[Any]] | None = None,
    overrides: dict[str, NDArray[Any]] | None = None,
) -> Recording:
    """Run a kernel-level module in the interpreter, all ids in one step."""
    collector = Collector(module, len(ids), len(ids))
    readers: dict[str, Any] = {"read_rows": read_rows} if read_rows is not None else {}
    interpreter = Interpreter(module, observe=collector.observe, **readers)
    for given, values in (overrides or {}).items():
        interpreter.override(given, values)
    cache = module.step.argument("cache").cache
    pages = -(-len(ids) // cache.page)
    logits, _ = interpreter.run(
        {
            "token_ids": np.array(ids, np.int32),
            "positions": np.arange(len(ids), dtype=np.int32),
            "sequence_of_token": np.zeros(len(ids), np.int32),
            "page_tables": np.arange(pages, dtype=np.int32)[None],
            "logit_rows": np.arange(len(ids), dtype=np.int32),
            "cache": CacheState.empty(cache, pages, False),
        }
    )
    logits = np.asarray(logits, np.float32)
    return Recording(name, collector.activations(), logits, weight, _is_quantized(module))


# What an artifact says, checked against its IR: the file is not trusted, and the code it becomes trusts its numbers.


def _limits(artifact: Artifact) -> Limits:
    manifest = artifact.manifest
    model, memory = manifest["model"], manifest["memory"]
    return Limits(
        model["vocab_size"],
        model["context_length"],
        memory["max_step_tokens"],
        memory["arena_bytes"],
        manifest["weights"][0]["bytes"],
    )


def _placed(artifact: Artifact, module: Module, weights: dict[str, tuple[dict[str, Any], Bytes]]) -> list[PlacedWeight]:
    used = {v for op in module.step.ops for v in op.operands if isinstance(v, Weight)}
    placed = []
    for weight in used:
        entry = weights.get(weight.name)
        size = weight.tensor.dtype.storage.itemsize
        for dim in weight.tensor.shape:
            size *= int(str(dim))
        if entry is None or entry[0]["bytes"] != size:
            reason = f"the IR reads {size} bytes of {weight.reference}, the manifest has {entry and entry[0]['bytes']}"
            raise LlamacError("LLC0711", str(artifact.path), reason, "the file is damaged, or not made by llamac")
        row = entry[0]
        placed.append(PlacedWeight(weight, row["offset"], size, row["format"], tuple(row["shape"])))
    return placed


def _check_arena(artifact: Artifact, module: Module, limits: Limits) -> None:
    """Every value that `plan-memory` placed ends inside the arena."""
    for _, op in module.ops():
        for value, offset in zip(op.results, _offsets(op), strict=False):
            fits = offset < 0 or offset + value_bytes(value, limits.max_tokens) <= limits.arena_bytes
            if isinstance(value.type, TensorType) and not fits:
                reason = f"the IR puts {value!r} outside the arena of {limits.arena_bytes} bytes"
                raise LlamacError("LLC0711", str(artifact.path), reason, "the file is damaged, or not made by llamac")


def _offsets(op: Op) -> tuple[int, ...]:
    found = op.attributes.get("buffers")
    return tuple(int(str(v)) for v in found) if isinstance(found, tuple) else ()


def _arrays(module: Module, weights: dict[str, tuple[dict[str, Any], Bytes]]) -> dict[str, NDArray[Any]]:
    """The stored weights in the shapes that the IR gives them."""
    arrays = {}
    used: set[Value] = {v for op in module.step.ops for v in op.operands if isinstance(v, Weight)}
    for weight in used:
        shape = tuple(int(str(d)) for d in weight.tensor.shape)
        arrays[weight.name] = weights[weight.name][1].view(weight.tensor.dtype.storage).reshape(shape)
    return arrays


def _reader(weights: dict[str, tuple[dict[str, Any], Bytes]]) -> Callable[[str], Bytes | None]:
    by_model_name = {model_weight(name): data for name, (_, data) in weights.items()}
    return lambda name: by_model_name.get(model_weight(name))


def _is_quantized(module: Module) -> bool:
    return any(op.opcode == "linear_grouped" for _, op in module.ops())


def _source_note(artifact: Artifact, module: Module, placed: list[PlacedWeight], limits: Limits) -> list[str]:
    """Whether this llamac generates, from the IR, the very source that lies in the file (its first comment aside)."""
    member = artifact.manifest["targets"][0]["source"]
    if member is None:
        return []
    kept = artifact.member_bytes(member).decode("utf-8", "replace")
    if _body(generate(module, placed, limits, "")) == _body(kept):
        return ["this llamac generates the same C from its IR as it carries"]
    return ["this llamac generates other C from its IR than it carries: another version made it"]


def _body(source: str) -> str:
    return source.partition("*/")[2]


# Native code.


@functools.lru_cache(maxsize=2)
def _compiled(source: str) -> bytes:
    from llamac.driver import resolve_targets

    (target,) = resolve_targets(["cpu"])
    with tempfile.TemporaryDirectory(prefix="llamac-trace-") as folder:
        out = Path(folder) / "traced.so"
        compile_shared_library({"model.c": source}, triple=target.triple, cpu=target.cpu, out=out)
        return out.read_bytes()


def _build(source: str, out: Path) -> None:
    """Two artifacts that differ in weights alone share their code, which is compiled once."""
    out.write_bytes(_compiled(source))


def _run_native(artifact: Artifact, library: Path, ids: Sequence[int], collector: Collector) -> Floats:
    from llamac.runtime.native import NativeLibrary

    handle = ctypes.CDLL(str(library))
    u32, pointer = ctypes.c_uint32, ctypes.c_void_p
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, u32, u32, u32, pointer, ctypes.c_uint64)(collector.from_native)
    handle.llamac_set_trace.argtypes = [type(callback)]
    handle.llamac_set_trace(callback)
    return _step(artifact, NativeLibrary(handle, "the tracing build"), ids)


def _step(artifact: Artifact, library: Any, ids: Sequence[int]) -> Floats:
    """Logits after every id, all in one step, on one thread."""
    from llamac.runtime.device_cpu import CpuDevice
    from llamac.runtime.run_plan import read_run_plan

    plan = read_run_plan(artifact.manifest)
    weights = artifact.map(artifact.manifest["weights"][0]["member"])
    pages = -(-len(ids) // plan.memory.kv_page_tokens)
    device = CpuDevice(library, plan.memory, plan.vocab_size, weights, pages, 1)
    logits = np.zeros((len(ids), plan.vocab_size), np.float32)
    order = np.arange(len(ids), dtype=np.int32)
    tables = np.arange(pages, dtype=np.int32)[None]
    try:
        device.step(np.array(ids, np.int32), order, np.zeros(len(ids), np.int32), tables, order, logits)
    finally:
        device.close()
    return logits


def _check_shipped(artifact: Artifact, ids: Sequence[int], recording: Recording) -> None:
    """Run the code in the file too, where this machine can, and compare the logits bit for bit."""
    from llamac.runtime.host_cpu import detect_host, pick_target
    from llamac.runtime.native import load_library
    from llamac.runtime.run_plan import read_run_plan

    try:
        target = pick_target(read_run_plan(artifact.manifest).targets, detect_host(), None)
    except LlamacError:
        recording.notes.append("none of its code fits this machine: only its IR was run")
        return
    shipped = _step(artifact, load_library(artifact.member_bytes(target.code), target.code), ids)
    recording.faithful = shipped.tobytes() == recording.logits.tobytes()
    if recording.faithful:
        recording.notes.append(f"{target.code} gives the same logits as the traced build, bit for bit")
    else:
        largest = float(np.abs(shipped - recording.logits).max())
        recording.notes.append(f"{target.code} gives OTHER logits than its own IR: they differ by up to {largest:.3g}")

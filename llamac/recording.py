"""Runs one prompt and records every intermediate value: of an artifact, or of its IR in the interpreter.

An artifact carries the IR that its code was generated from, so a build that hands out every value can be made of it at
any time, for this machine, whatever target the artifact has code for. It runs on the artifact's own weights, mapped in
place. Whether the code in the file does the same is checked bit for bit where this machine can run it.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.analysis.weight_plan import PlacedWeight
from llamac.artifact.read import Artifact
from llamac.errors import LlamacError
from llamac.ir.dims import evaluate
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import single_sequence
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_graph
from llamac.ir.types import TensorType
from llamac.ir.verifier import verify

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

Raw = dict[tuple[str, int, int | None], dict[int, NDArray[Any]]]
"""(graph, index of the op, layer) -> number of the result -> its array."""

StoredWeights = dict[str, tuple[dict[str, Any], Bytes]]
"""Name -> (manifest entry, mapped bytes)."""

NO_LAYER = 0xFFFFFFFF
_STORED_AS = re.compile(r"(\.(packed|f32|f16|bf16|e4m3fn|[iu][48]))+$")
_PLAIN = {
    "linear_dense": "linear",
    "linear_grouped": "linear",
    "gated_linear_dense": "swiglu",
    "gated_linear_grouped": "swiglu",
    "qkv_dense": "rope_append",
    "qkv_grouped": "rope_append",
}
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
    step: Floats | None = None
    """Of int8 activations: how far apart two neighbouring values are."""


@dataclass
class Recording:
    """What one run gave. `weight` gives the stored bytes of a weight by the name that `Activation.weights` uses.

    code: the graphs as text; runs of equal code compare op by op.
    """

    name: str
    activations: list[Activation]
    logits: Floats
    raw: Raw
    weight: Callable[[str], Bytes | None]
    code: str
    quantized: bool
    notes: list[str] = field(default_factory=list)
    forced: bool = False
    """Whether every op was run on the values of another recording, so that differences do not add up."""
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


def stored_image_module(artifact: Artifact) -> Module | None:
    """The IR of the image encoder in an artifact, verified; None for a model without one."""
    entry = artifact.manifest.get("image")
    if entry is None:
        return None
    where = f"{artifact.path}:{entry['ir']}"
    module = parse_module(artifact.member_bytes(entry["ir"]).decode("utf-8", "replace"), where)
    verify(module)
    return module


def module_text(module: Module) -> str:
    """The graphs of a module as text, its weights aside."""
    return "\n".join(print_graph(graph) for graph in module.graphs.values())


def stored_weights(artifact: Artifact) -> StoredWeights:
    """Name -> (manifest entry, mapped bytes) of every weight of the first layout."""
    entry = artifact.manifest["weights"][0]
    data = artifact.map(entry["member"])
    return {t["name"]: (t, data[t["offset"] : t["offset"] + t["bytes"]]) for t in entry["tensors"]}


class Collector:
    """Gathers the results of ops, from C or from the interpreter, into activations in the order of execution."""

    def __init__(self, module: Module, tokens: int, forced: Raw | None = None) -> None:
        self.module = module
        self.symbols = {"T": tokens, "R": tokens}
        self.forced = forced or {}
        self.found: Raw = {}

    def add(self, graph: str, index: int, layer: int | None, number: int, values: NDArray[Any]) -> None:
        """One result of op `index` of `graph`."""
        self.found.setdefault((graph, index, layer), {})[number] = values

    def from_native(self, graph: bytes, index: int, number: int, layer: int, address: int, stride: int) -> None:
        """The trace callback of a tracing build: copies `rows` rows that lie `stride` elements apart."""
        name = graph.decode()
        result = self.module.graphs[name].ops[index].results[number].tensor
        rows, *width = (evaluate(d, self.symbols) for d in result.shape)
        columns = width[0] if width else 1
        kind = result.dtype.storage
        count = (rows - 1) * stride + columns
        flat = np.frombuffer(ctypes.string_at(address, count * kind.itemsize), kind)
        padded = np.zeros(rows * stride, kind)
        padded[:count] = flat
        values = padded.reshape(rows, stride)[:, :columns].reshape(rows, *width)
        self.add(name, index, None if layer == NO_LAYER else layer, number, values)

    def observe(self, graph: Graph, index: int, symbols: Any, results: list[Any]) -> Sequence[Any]:
        """The observer of an interpreter: goes on with the values of `forced` where it has them."""
        op, layer = graph.ops[index], symbols.get("layer")
        if op.opcode == "call":
            return results
        for number, value in enumerate(op.results):
            if isinstance(value.type, TensorType):
                self.add(graph.name, index, layer, number, np.array(results[number]))
        for number, values in self.forced.get((graph.name, index, layer), {}).items():
            results[number] = values.astype(results[number].dtype)
        return results

    def activations(self) -> list[Activation]:
        """Everything gathered, under names that another run shares."""
        made: list[Activation] = []
        seen: dict[tuple[str, str], int] = {}
        for (graph, index, layer), results in self.found.items():
            op = self.module.graphs[graph].ops[index]
            # Inside a function `layer` is a layer's place in its cache; the call knows which layer that is.
            where = (
                op.location if layer is None else op.location.replace("layers", self._calls[graph, layer].location, 1)
            )
            weights = tuple(self._weights(graph, op, layer))
            for suffix, values, step in _values(op, results):
                what = " ".join([_plain(op), *(_role(w) for w in weights), *suffix])
                count = seen[where, what] = seen.get((where, what), 0) + 1
                name = what if count == 1 else f"{what} ({count})"
                made.append(Activation(where, name, values, weights, step))
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


def _values(op: Op, results: dict[int, NDArray[Any]]) -> list[tuple[list[str], Floats, Floats | None]]:
    """What the results of an op stand for: int8 activations with their scales are one value."""
    if "block" in op.attributes and len(op.results) == 3:
        quants, scales = results[0].astype(np.float32), results[1].astype(np.float32)
        step = np.repeat(scales, quants.shape[1] // scales.shape[1], axis=1)
        width = _width(op)
        return [([], (quants * step)[:, :width], step[:, :width])]  # the rest is padding
    tensors = [number for number, value in enumerate(op.results) if isinstance(value.type, TensorType)]
    named = {"rope_angles": [["cos"], ["sin"]], "rope_append": [["q"]], "qkv_dense": [["q"]], "qkv_grouped": [["q"]]}
    suffixes = named.get(op.opcode, [[] for _ in tensors])
    pairs = zip(suffixes, tensors, strict=True)
    return [(suffix, results[number].astype(np.float32), None) for suffix, number in pairs]


def _width(op: Op) -> int:
    """Columns of quantized activations without their padding."""
    if op.opcode == "gated_linear_grouped":
        return int(str(op.attributes["rows"])) // 2
    return int(str(op.operands[0].tensor.shape[-1])) // (2 if op.opcode == "swiglu_quantized" else 1)


def record_interpreter(
    artifact: Artifact,
    ids: Sequence[int],
    compiled: Recording,
    kind: type[Interpreter] = Interpreter,
    called: str = "the interpreter",
) -> Recording:
    """Run the artifact's IR in an interpreter on its own weights, each op on what `compiled` had for it."""
    module = stored_module(artifact)
    weights = stored_weights(artifact)
    placed_weights(artifact, module, weights)
    name = f"{called} on the artifact's IR and weights"
    arrays = weight_arrays(module, weights)
    return interpret(name, module, ids, weight_reader(weights), compiled, overrides=arrays, kind=kind)


def interpret(
    name: str,
    module: Module,
    ids: Sequence[int],
    weight: Callable[[str], Bytes | None],
    compiled: Recording,
    read_rows: Callable[[str, int, int], NDArray[Any]] | None = None,
    overrides: dict[str, NDArray[Any]] | None = None,
    kind: type[Interpreter] = Interpreter,
) -> Recording:
    """Run a kernel-level module in the interpreter, or in another `kind` of it, all ids in one step.

    When `compiled` ran the same ops, each is run on the values that it had there.
    """
    code = module_text(module)
    forced = code == compiled.code
    collector = Collector(module, len(ids), compiled.raw if forced else None)
    readers: dict[str, Any] = {"read_rows": read_rows} if read_rows is not None else {}
    interpreter = kind(module, observe=collector.observe, **readers)
    for given, values in (overrides or {}).items():
        interpreter.override(given, values)
    logits = np.asarray(interpreter.run(single_sequence(module.step, ids))[0], np.float32)
    notes = [] if forced else ["its graphs are not those of A: differences add up from op to op"]
    quantized = is_quantized(module)
    return Recording(name, collector.activations(), logits, collector.found, weight, code, quantized, notes, forced)


def placed_weights(artifact: Artifact, module: Module, weights: StoredWeights) -> list[PlacedWeight]:
    """The weights that the IR reads where the manifest has them (LLC0711 when the two disagree)."""
    used = {v for op in module.main.ops for v in op.operands if isinstance(v, Weight)}
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


def weight_arrays(module: Module, weights: StoredWeights) -> dict[str, NDArray[Any]]:
    """The stored weights in the shapes that the IR gives them."""
    arrays = {}
    used: set[Value] = {v for op in module.main.ops for v in op.operands if isinstance(v, Weight)}
    for weight in used:
        shape = tuple(int(str(d)) for d in weight.tensor.shape)
        arrays[weight.name] = weights[weight.name][1].view(weight.tensor.dtype.storage).reshape(shape)
    return arrays


def weight_reader(weights: StoredWeights) -> Callable[[str], Bytes | None]:
    """Looks weights up by model-level name, whatever they are stored as."""
    by_model_name = {model_weight(name): data for name, (_, data) in weights.items()}
    return lambda name: by_model_name.get(model_weight(name))


def is_quantized(module: Module) -> bool:
    """Whether activations are rounded to int8."""
    return any(op.opcode.endswith("linear_grouped") for _, op in module.ops())

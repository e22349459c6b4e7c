"""The tensors of a GGUF file: their names, shapes and types, decided before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llamac.errors import LlamacError
from llamac.models.checkpoint import StoredTensor, bytes_of
from llamac.models.gguf_reader import EXPERT_NAMES
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.weights import GGUF, expected_shapes, stored_name

from ..model_weights import ModelWeights
from ..request import ExportRequest
from .recipes import FLOATS, Choice, choose, fits

Way = Literal["copy", "integers", "values"]
"""How a tensor is made: its bytes as they are, its integers in other blocks, or its values rounded."""

INTEGER_KINDS = {("i4", False): "q4_0", ("u4", True): "q4_1", ("i8", False): "q8_0"}
"""Dtype of the integers and whether there are minima -> the blocks that hold both."""
SMALL_BLOCK = 32
_SUFFIX_OF = {model: f"{stored}.weight" for stored, model in EXPERT_NAMES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file. `shape` is row-major; experts have an axis of their own in front."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: str
    way: Way

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        found = bytes_of(self.kind, self.shape)
        assert found is not None, self
        return found


def plan_tensors(request: ExportRequest, weights: ModelWeights) -> tuple[list[PlannedTensor], Notes]:
    """Every weight of the text model in its order in the file, and what the ledger should say of them.

    LLC0947 when no matrix could have the type that was asked for.
    """
    config, scheme = request.checkpoint.config, request.quantize
    notes = Notes()
    planned: list[PlannedTensor] = []
    for name in _in_order(config, weights):
        stored = weights.stored(name)
        choice = _kept(weights, stored) if scheme == "keep" else choose(name, scheme, config, stored.shape)
        way = _way(weights, stored, choice.kind)
        _note(notes, name, stored, choice, way)
        planned.append(PlannedTensor(gguf_name(name), name, _file_shape(config, name, stored), choice.kind, way))
    if scheme not in ("keep", *FLOATS) and all(t.kind in FLOATS for t in planned):
        rows = sorted({t.shape[-1] for t in planned if len(t.shape) > 1})
        reason = f"no matrix has rows of whole {scheme.upper()} blocks: they have {', '.join(map(str, rows))} values"
        raise LlamacError("LLC0947", "--quantize", reason, "choose f16, bf16 or f32")
    return planned, notes


def _in_order(config: LlamaConfig, weights: ModelWeights) -> list[str]:
    """The text model's weights: in the model's order, or as they follow one another in a GGUF file."""
    names = list(expected_shapes(config))
    is_gguf = weights.checkpoint.format == "gguf"
    return sorted(names, key=lambda name: weights.stored(name).offset) if is_gguf else names


def gguf_name(name: str) -> str:
    """`layers.3.moe.gate` -> `blk.3.ffn_gate_exps.weight`."""
    if ".moe." in name:
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{_SUFFIX_OF[part]}"
    return stored_name(name, GGUF)


def most_frequent_scheme(planned: Iterable[PlannedTensor]) -> str:
    """The type that most bytes of matrices have."""
    sizes: dict[str, int] = {}
    for tensor in planned:
        if len(tensor.shape) > 1:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.nbytes
    return max(sizes, key=lambda kind: sizes[kind])


class Notes:
    """Ledger entries that say the same of many weights, as one each."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str, str], list[str]] = {}

    def add(self, kind: str, name: str, what: str, reason: str) -> None:
        """As `ExportRequest.note`, for one weight."""
        self._names.setdefault((kind, what, reason), []).append(name)

    def write(self, request: ExportRequest) -> None:
        """Into the ledger."""
        for (kind, what, reason), names in self._names.items():
            others = "" if len(names) == 1 else " and 1 other" if len(names) == 2 else f" and {len(names) - 1} others"
            request.note(kind, f"{names[0]}{others}", what, reason)


def _kept(weights: ModelWeights, stored: StoredTensor) -> Choice:
    """The type that a weight has already, or the nearest that can hold it."""
    if weights.checkpoint.format == "gguf":
        return Choice(stored.encoding)
    if stored.encoding in FLOATS:
        # llama.cpp multiplies by norms and routers in f32 only; every float of 16 bits is one of 32, too.
        return Choice("f32") if len(stored.shape) == 1 or ".moe.router" in stored.name else Choice(stored.encoding)
    if stored.encoding == "e4m3fn":
        return Choice("f16")
    dtype = weights.integer_dtype(stored.name)
    rows = weights.quantized_rows(stored.name, 0, 1) if dtype else None
    if rows is not None and rows.group % SMALL_BLOCK == 0 and fits("q8_0", stored.shape[1]):
        kind = INTEGER_KINDS.get((dtype or "", rows.minima is not None))
        if kind is not None:
            return Choice(kind)
    return Choice("q8_0" if fits("q8_0", stored.shape[1]) else "f16")


def _way(weights: ModelWeights, stored: StoredTensor, kind: str) -> Way:
    if stored.encoding == kind:
        return "copy"
    dtype = weights.integer_dtype(stored.name)
    if dtype is None or kind not in INTEGER_KINDS.values():
        return "values"
    rows = weights.quantized_rows(stored.name, 0, 1)
    holders = {"q4_0": [("i4", False)], "q4_1": [("u4", True)], "q8_0": [("i4", False), ("i8", False)]}[kind]
    return "integers" if rows.group % SMALL_BLOCK == 0 and (dtype, rows.minima is not None) in holders else "values"


def _note(notes: Notes, name: str, stored: StoredTensor, choice: Choice, way: Way) -> None:
    if choice.falls_back:
        kind = "unquantized" if choice.kind in FLOATS else "note"
        notes.add(kind, name, f"stored as {choice.kind.upper()}", choice.reason)
    elif choice.reason:
        notes.add("note", name, f"stored as {choice.kind.upper()}", choice.reason)
    is_quantized = stored.encoding not in FLOATS
    if way == "values" and is_quantized and choice.kind not in FLOATS:
        reason = f"the source has it as {stored.encoding}, which {choice.kind.upper()} blocks cannot hold"
        notes.add("requantized", name, f"rounded again to {choice.kind.upper()}", reason)


def _file_shape(config: LlamaConfig, name: str, stored: StoredTensor) -> tuple[int, ...]:
    if name.endswith((".moe.gate", ".moe.up", ".moe.down")):
        assert config.moe is not None
        return (config.moe.experts, stored.shape[0] // config.moe.experts, stored.shape[1])
    return stored.shape

"""How far the values of two stored weights lie apart, and which ops read a weight: what `llamac diff` needs IR for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.artifact.diff import ArtifactDiff, TensorChange, tensor_bytes
from llamac.artifact.read import Artifact
from llamac.errors import LlamacError
from llamac.ir.definition import OpError
from llamac.ir.dtypes import DTYPES, widen
from llamac.ir.graph import Module, Weight
from llamac.ir.layouts import LAYOUT, PANEL, format_of, unpack

from .recording import stored_module

_ROWS = 16 * PANEL
"""Rows that are unpacked at a time."""


def explain_weights(found: ArtifactDiff, a: Artifact, b: Artifact) -> None:
    """Fill in `difference` and `readers` of every weight that differs."""
    modules = [_module(artifact) for artifact in (a, b)]
    found.tensors = [_explain(change, a, b, modules) for change in found.tensors]


def _module(artifact: Artifact) -> Module | None:
    try:
        return stored_module(artifact)
    except LlamacError:
        return None


def _explain(change: TensorChange, a: Artifact, b: Artifact, modules: list[Module | None]) -> TensorChange:
    readers: dict[str, None] = {}
    for module, entry in zip(modules, (change.a, change.b), strict=True):
        if module is not None and entry is not None:
            readers.update(dict.fromkeys(weight_readers(module, entry["name"])))
    return dataclasses.replace(change, difference=_difference(change, a, b), readers=tuple(readers))


def weight_readers(module: Module, name: str) -> list[str]:
    """The ops that read a weight, through calls of layers too: `layers.1.mlp linear_dense`."""
    found = []
    for op in module.step.ops:
        for index, operand in enumerate(op.operands):
            if not isinstance(operand, Weight) or operand.name != name:
                continue
            if op.opcode != "call":
                found.append(f"{op.location} {op.opcode}")
                continue
            layer, callee = op.attributes["layer"], module.graphs[str(op.attributes["callee"])]
            argument = callee.arguments[index]
            users = [user for user in callee.ops if argument in user.operands]
            found += [f"{user.location.replace('layers', f'layers.{layer}', 1)} {user.opcode}" for user in users]
    return found


def _difference(change: TensorChange, a: Artifact, b: Artifact) -> dict[str, Any] | None:
    """Largest difference of values, absolute and relative to B's largest; None where they cannot be compared."""
    x, y = change.a, change.b
    if x is None or y is None or x["shape"] != y["shape"] or change.layout != LAYOUT:
        return None
    largest = scale = 0.0
    where = (0, 0)
    try:
        rows = x["shape"][0] if len(x["shape"]) == 2 else 1
        for start in range(0, rows, _ROWS):
            ours = _values(x, tensor_bytes(a, change.layout, x), start)
            theirs = _values(y, tensor_bytes(b, change.layout, y), start)
            distance = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
            here = float(distance.max(initial=0.0))
            if here > largest:
                row, column = (int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
                largest, where = here, (start + row, column)
            scale = max(scale, float(np.abs(theirs).max(initial=0.0)))
    except (OpError, ValueError, KeyError):
        return None
    return {"absolute": largest, "relative": largest / max(scale, 1e-30), "row": where[0], "column": where[1]}


def _values(entry: dict[str, Any], data: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    """Rows [start, start + _ROWS) of a stored weight as f32; a vector is one row."""
    if len(entry["shape"]) != 2:
        return widen(data.view(DTYPES[entry["format"]].storage)).reshape(1, -1)
    rows, columns = entry["shape"]
    stop = min(start + _ROWS, rows)
    fmt = format_of(entry["format"])
    if data.size != fmt.packed_bytes(rows, columns):
        return widen(data.view(DTYPES[entry["format"]].storage)).reshape(rows, columns)[start:stop]
    panels = data.reshape(fmt.panels(rows), -1)[start // PANEL : -(-stop // PANEL)]
    return unpack(fmt, panels, stop - start, columns)

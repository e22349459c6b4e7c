"""Measured tile sizes: tables as data, a file an instruction set, looked up before `cost_model` is asked.

`tuning/sm_90.json` holds rows that `bench/gpu/tune.py` measured: what the kernel is (`shape_of`), what it should be
given (`CHOICES`, warps, stages), and on which GPU, with which driver, on which day that was the fastest. A shape
without a row keeps what the cost model chose; no row is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from .architectures import Architecture
from .cost_model import NARROW
from .request import Constant, KernelRequest

CHOICES = ("BN", "BM", "BK", "BP", "KEYS", "SPLITS")
"""Constants of kernels that say how work is divided, and nothing of what is computed."""

SHAPE = (
    "N", "K", "HEADS", "KV_HEADS", "HEAD", "PAGE", "CHUNK", "EXPERTS", "TOP", "M", "WEIGHT", "GROUP", "DOT", "QK_EPS",
)  # fmt: skip
"""Constants that say what is computed, as far as speed depends on it."""

Row = Mapping[str, Any]


def shape_of(request: KernelRequest, tokens: int | None = None) -> dict[str, Constant]:
    """What a row is found by: kernel, types, sizes, and the class of rows: a number, "narrow" or "wide" tiles."""
    found: dict[str, Constant] = {"kernel": request.kernel}
    found |= {n: request.signature[n] for n in ("x_ptr", "w_ptr", "cache_ptr", "q_ptr") if n in request.signature}
    found |= {name: request.constants[name] for name in SHAPE if name in request.constants}
    if "QK_EPS" in found:
        found["QK_EPS"] = float(found["QK_EPS"] or 0.0) >= 0
    if "BM" in request.constants:
        found["tokens"] = "narrow" if request.constants["BM"] == NARROW else "wide"
    elif tokens is not None:
        found["tokens"] = tokens
    return found


def key_of(shape: Mapping[str, Constant]) -> str:
    """The shape as one line."""
    return json.dumps(dict(shape), sort_keys=True)


@cache
def table(architecture: str) -> Mapping[str, Row]:
    """The rows for an instruction set by `key_of` their shapes; none where nothing was measured."""
    file = files("llamac.backends.gpu").joinpath("tuning", f"{architecture}.json")
    return read_table(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def read_table(found: Mapping[str, Any]) -> Mapping[str, Row]:
    """The rows of a table's text (ValueError for a rehearsal's, whose times mean nothing, and for unknown choices)."""
    if found.get("rehearsal"):
        raise ValueError("a rehearsal measures nothing: its rows are no table")
    rows = {}
    for row in found["rows"]:
        wrong = [name for name, value in row["choices"].items() if name not in CHOICES or not _is_size(value)]
        if wrong or not _is_size(row["warps"]) or not 1 <= int(row["stages"]) <= 8:
            raise ValueError(f"{key_of(row['shape'])}: no such choices: {row}")
        rows[key_of(row["shape"])] = row
    return rows


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value > 0 and value & (value - 1) == 0


def tuned(machine: Architecture, request: KernelRequest, tokens: int | None = None) -> KernelRequest:
    """The request as the row for its shape wants it, or as it is; `tokens` of kernels whose constants say none."""
    row = table(machine.name).get(key_of(shape_of(request, tokens)))
    return chosen(request, row["choices"], row["warps"], row["stages"]) if row else request


def chosen(request: KernelRequest, choices: Mapping[str, int], warps: int, stages: int) -> KernelRequest:
    """The request with other choices; one that the kernel has no constant for is left out."""
    constants = {**request.constants, **{n: v for n, v in choices.items() if n in request.constants}}
    options = replace(request.options, warps=warps, stages=stages)
    return replace(request, constants=constants, options=options)

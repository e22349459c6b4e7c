"""The source of kernels for devices that this machine need not have: what TVM writes for their own compilers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from .build import refusal
from .lowering import Lowered

_HOST = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}
_MORE: dict[str, dict[str, Any]] = {"cuda": {"arch": "sm_80"}}
"""What TVM has to know of a kind of device."""


@dataclass(frozen=True)
class Sources:
    """The text of the kernels that could be written, their names, and why the others could not be."""

    text: str
    names: tuple[str, ...]
    refused: dict[str, str]


def kernel_sources(lowered: Lowered, kind: str) -> Sources:
    """Every kernel of `lowered` for a device of `kind` (metal, webgpu, opencl, cuda), one after the other."""
    target = tvm.target.Target({"kind": kind, **_MORE.get(kind, {}), "host": _HOST})
    texts, names, refused = [], [], {}
    for name in lowered.kernels:
        try:
            text = _source(lowered.module[name], name, target)
        except Exception as error:  # TVM raises whatever its C++ side threw
            refused[name] = refusal(kind, error).reason
            continue
        texts.append(f"// {name}\n{text.strip()}\n")
        names.append(name)
    return Sources("\n".join(texts), tuple(names), refused)


def _source(function: Any, name: str, target: Any) -> str:
    module = tirx.transform.ForceNarrowIndexToInt32()(tvm.IRModule({name: function}))
    built = tvm.tirx.build(module, target=target)
    return "\n".join(part.inspect_source() for part in built.imports)

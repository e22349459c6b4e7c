"""How the code of a TVM target is called: what its function takes, in order, as JSON that a reader does not trust.

    step(weights..., inputs..., past...) -> (logits [R, vocab], present...)

`inputs` are token_ids [T], positions [T] and logit_rows [R], all i32, and those of pictures where the model takes some.
The image encoder has a plan of its own. It takes pixels [tiles, channels, height, width], of one tile, and gives its
embeddings [rows, width]; or those of a whole picture with aspect_ratio [1] and positions [M], both i32, and gives keys
and values of its first M vision tokens, layer by layer of those that see pictures.

`past` and `present` are the keys and values of each layer of each cache, [KV heads, P, head size] and [KV heads, P + T,
head size], in the order of the caches in the manifest, of their layers, keys before values.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from llamac.errors import LlamacError

FORMAT = "llamac-tvm-plan"
VERSION = 1

VERSIONS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""The releases that code is built with and run by: others may emit other bytes, and 0.1.15 of the second crashes."""

INSTALL = 'pip install "llamac[tvm]"'

ITEM_BYTES = {"float32": 4, "float16": 2, "int32": 4, "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4}
"""Bytes of an element, by TVM's name of the dtype."""

_STATE_DTYPES = ("float32", "float16", "uint16")


@dataclass(frozen=True)
class TvmWeight:
    """A weight as the code sees it: one array over all its bytes. `name` is that of the manifest's tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        total = ITEM_BYTES[self.dtype]
        for dim in self.shape:
            total *= dim
        return total


@dataclass(frozen=True)
class TvmState:
    """Keys (part 0) or values (part 1) of one layer: `cache` and `layer` count the manifest's caches and their layers.

    dtype: uint16 holds the bits of bf16.
    """

    cache: int
    layer: int
    part: int
    kv_heads: int
    head_dim: int
    dtype: str


@dataclass(frozen=True)
class TvmPlan:
    """One function. code: the member with the shared library, or with the source of the kernels of a device.

    image_width: the width of the embeddings of pictures, 0 where the function takes none. encoder: the member with the
    plan of the image encoder, "" where the model has none.
    """

    target: str
    function: str
    code: str
    weights: tuple[TvmWeight, ...]
    inputs: tuple[str, ...]
    image_width: int
    past: tuple[TvmState, ...]
    kernels: tuple[str, ...]
    encoder: str = ""

    @property
    def members(self) -> list[str]:
        """The members that belong to the plan, beside its own."""
        return [self.code, *([self.encoder] if self.encoder else [])]


def require_tvm() -> None:
    """Check that the pinned TVM is there (LLC0940 when it is missing, LLC0941 when its version is another)."""
    for package, wanted in VERSIONS.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise LlamacError("LLC0940", package, "TVM is not installed", INSTALL) from None
        if version != wanted:
            reason = f"version {version} is installed, code is built with {wanted} and run by it"
            raise LlamacError("LLC0941", package, reason, INSTALL)


def write_tvm_plan(plan: TvmPlan) -> bytes:
    """The one text of a plan."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "versions": VERSIONS,
        "target": plan.target,
        "function": plan.function,
        "code": plan.code,
        "weights": [[w.name, w.dtype, list(w.shape)] for w in plan.weights],
        "inputs": list(plan.inputs),
        "image_width": plan.image_width,
        "past": [[s.cache, s.layer, s.part, s.kv_heads, s.head_dim, s.dtype] for s in plan.past],
        "kernels": list(plan.kernels),
        "encoder": plan.encoder,
    }
    lines = [f"{json.dumps(key)}:{json.dumps(value[key], sort_keys=True)}" for key in sorted(value)]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_tvm_plan(data: bytes, where: str) -> TvmPlan:
    """The inverse of `write_tvm_plan`; LLC0711 for anything else."""
    try:
        value = json.loads(data)
        if value["format"] != FORMAT or value["version"] != VERSION:
            _refuse(where, f"is no TVM plan of version {VERSION}")
        plan = TvmPlan(
            _text(value["target"]),
            _text(value["function"]),
            _text(value["code"]),
            tuple(TvmWeight(_text(n), _dtype(d, ITEM_BYTES), tuple(map(_count, s))) for n, d, s in value["weights"]),
            tuple(map(_text, value["inputs"])),
            _index(value["image_width"]),
            tuple(
                TvmState(_index(c), _index(n), _index(part), _count(heads), _count(dim), _dtype(kind, _STATE_DTYPES))
                for c, n, part, heads, dim, kind in value["past"]
            ),
            tuple(map(_text, value["kernels"])),
            _text(value["encoder"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        _refuse(where, f"is no TVM plan: {ascii(str(error))[:80]}")
    return plan


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError("a text is missing")
    return value


def _index(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError("a number is out of its range")
    return value


def _count(value: Any) -> int:
    if _index(value) == 0:
        raise ValueError("a size is 0")
    return int(value)


def _dtype(value: Any, known: Any) -> str:
    if value not in known:
        raise ValueError("a dtype is unknown")
    return str(value)


def _refuse(where: str, reason: str) -> NoReturn:
    raise LlamacError("LLC0711", where, reason, "get the file again from its source, or compile it again")

"""The kernels around the layers on a GPU, embedding, angles, norms and the choice of a token: see `linear_requests`."""

from __future__ import annotations

from llamac.ir.row_layouts import RowLayout

from .architectures import Architecture
from .cost_model import padded_tokens
from .linear_requests import weight_types
from .request import CompileOptions, Constant, KernelRequest

BLOCK = 1024
"""Elements that one block of an elementwise kernel takes at once."""


def embed_rows(machine: Architecture, layout: RowLayout) -> KernelRequest:
    """Rows of the table as f32."""
    signature, constants = weight_types(machine, layout)
    signature |= {"ids_ptr": "*i32", "y_ptr": "*fp32"}
    block = min(BLOCK, padded_tokens(layout.padded_columns))
    return KernelRequest(
        "embed", "embed_rows", signature, constants | {"K": layout.columns, "BK": block}, CompileOptions(4, 1)
    )


def rope_angles(half: int) -> KernelRequest:
    """cos and sin of a step, from its positions."""
    signature = {"positions_ptr": "*i32", "frequency_ptr": "*fp32", "cos_ptr": "*fp32", "sin_ptr": "*fp32"}
    return KernelRequest(
        "qkv", "rope_angles", signature, {"HALF": half, "BLOCK": padded_tokens(half)}, CompileOptions(1, 1)
    )


EIGHT_BITS = {"e4m3fn": "fp8e4nv", "e4m3fnuz": "fp8e4b8", "": "u8"}
"""What a machine's matrix units multiply of 8-bit floats -> Triton's type of activations in them; bytes where none."""

_LARGEST = {"fp8e4nv": 448.0, "u8": 448.0, "fp8e4b8": 224.0}
"""The largest of a row becomes this: of e4m3fnuz half of what it can be of e4m3fn, so that the bits are the same."""


def norm_rows(
    machine: Architecture, columns: int, kind: str, eps: float, *, x: str = "fp32", norm: bool = True
) -> KernelRequest:
    """[Normed] rows as `kind`: 16-bit floats, or 8-bit ones with a scale a row."""
    largest = _LARGEST.get(kind)
    signature = {"x_ptr": f"*{x}", "y_ptr": f"*{kind}"} | ({"norm_ptr": "*fp32"} if norm else {})
    constants: dict[str, Constant] = {
        "K": columns, "EPS": eps, "LARGEST": largest or 0.0, "BLOCK": padded_tokens(columns),
        "PDL": machine.dependent_launch,
    }  # fmt: skip
    if largest:
        signature["scale_ptr"] = "*fp32"
    constants |= {name: None for name in ("scale_ptr", "norm_ptr") if name not in signature}
    return KernelRequest("linear", "norm_rows", signature, constants, CompileOptions(8, 1, dependent_launch=True))


def best_of_tiles(machine: Architecture, tiles: int) -> KernelRequest:
    """The token of each row from the best of each tile of the head."""
    signature = {"best_ptr": "*fp32", "index_ptr": "*i32", "id_ptr": "*i32"}
    constants: dict[str, Constant] = {"TILES": tiles, "BLOCK": BLOCK, "PDL": machine.dependent_launch}
    return KernelRequest("head", "best_of_tiles", signature, constants, CompileOptions(4, 1, dependent_launch=True))


def best_of_logits(vocab: int) -> KernelRequest:
    """The token of each row from its logits."""
    signature = {"logits_ptr": "*fp32", "id_ptr": "*i32"}
    return KernelRequest("head", "best_of_logits", signature, {"N": vocab, "BLOCK": 4096}, CompileOptions(8, 1))

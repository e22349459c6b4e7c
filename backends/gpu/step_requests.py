"""The kernels around the layers on a GPU, embedding, angles, norms and the choice of a token: see `linear_requests`."""

from __future__ import annotations

from llamac.ir.row_layouts import RowLayout

from .architectures import Architecture
from .linear_requests import padded_tokens, weight_types
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


def norm_rows(machine: Architecture, columns: int, kind: str, eps: float) -> KernelRequest:
    """Normed f32 rows as `kind`: 16-bit floats, or 8-bit ones with a scale a row."""
    largest = {"fp8e4nv": 448.0, "fp8e4b8": 240.0}.get(kind)
    signature = {"x_ptr": "*fp32", "norm_ptr": "*fp32", "y_ptr": f"*{kind}"}
    constants: dict[str, Constant] = {
        "K": columns, "EPS": eps, "LARGEST": largest or 0.0, "BLOCK": padded_tokens(columns),
        "PDL": machine.dependent_launch,
    }  # fmt: skip
    if largest:
        signature["scale_ptr"] = "*fp32"
    else:
        constants["scale_ptr"] = None
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

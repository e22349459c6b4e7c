"""Which kernels a mixture of experts gets on a GPU: see `linear_requests`."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.layouts import WeightFormat
from llamac.ir.row_layouts import RowLayout

from .architectures import Architecture
from .cost_model import few_tiles, many_tiles, padded_tokens
from .linear_requests import between, product_type, weight_types
from .request import CompileOptions, Constant, KernelRequest
from .tuned_rows import tuned


@dataclass(frozen=True)
class Experts:
    """A mixture: `top` of `count` experts a token, each hidden -> inner -> hidden, in `format`."""

    count: int
    top: int
    hidden: int
    inner: int
    format: WeightFormat

    @property
    def gate_up(self) -> RowLayout:
        """The stack of gates and ups."""
        return RowLayout(self.format, self.count * 2 * self.inner, self.hidden)

    @property
    def down(self) -> RowLayout:
        """The stack of downs."""
        return RowLayout(self.format, self.count * self.hidden, self.inner)

    @property
    def width(self) -> int:
        """The power of two that holds all experts."""
        return width_of(self.count)


def width_of(count: int) -> int:
    """The power of two that holds so many experts."""
    return max(2, padded_tokens(count))


def route(machine: Architecture, count: int, top: int, tokens: int) -> KernelRequest:
    """The choice of `top` of `count` experts for all tokens of a step, in one block."""
    signature = {
        "logits_ptr": "*fp32", "chosen_ptr": "*i32", "slot_score_ptr": "*fp32", "order_ptr": "*i32",
        "place_ptr": "*i32", "score_ptr": "*fp32", "offset_ptr": "*i32", "tokens": "i32",
    }  # fmt: skip
    block = min(64, max(4, padded_tokens(tokens * top)))
    constants: dict[str, Constant] = {
        "EXPERTS": count, "WIDTH": width_of(count), "TOP": top, "BLOCK": block, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return KernelRequest("moe", "route", signature, constants, CompileOptions(4, 1, dependent_launch=True))


def decode_gate_up(machine: Architecture, experts: Experts, eps: float) -> KernelRequest:
    """Norm, gather, score, gate and up of each routed row of few tokens."""
    layout = experts.gate_up
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, 1, True)
    signature |= _routing() | {
        "x_ptr": "*fp32",
        "norm_ptr": "*fp32",
        "score_ptr": "*fp32",
        "y_ptr": f"*{between(layout)}",
    }
    constants |= _mixture(machine, experts) | {
        "N": experts.inner, "K": experts.hidden, "EPS": eps, "TOP": experts.top, "BN": tile.rows, "BK": tile.columns,
    }  # fmt: skip
    return tuned(machine, KernelRequest("moe", "decode_expert_gate_up", signature, constants, _few(tile.warps)))


def decode_down(machine: Architecture, experts: Experts, onto: bool) -> KernelRequest:
    """The way back of each routed row; `onto` its token's row, which has no other."""
    layout = experts.down
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, 1, False)
    signature |= _routing() | {"x_ptr": f"*{between(layout)}", "y_ptr": "*fp32"} | _base(onto)
    constants |= _mixture(machine, experts) | _no_base(onto) | {
        "N": experts.hidden, "K": experts.inner, "BN": tile.rows, "BK": tile.columns,
    }  # fmt: skip
    return tuned(machine, KernelRequest("moe", "decode_expert_down", signature, constants, _few(tile.warps)))


def prefill_gate_up(
    machine: Architecture, experts: Experts, tokens: int, *, x: str, norm: bool, eps: float
) -> KernelRequest:
    """As `decode_gate_up`, with matrix units; `tokens`: what an expert may expect."""
    layout = experts.gate_up
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, tokens, paired=True, busy=True)
    kind = between(layout)
    signature |= _routing() | {"x_ptr": f"*{x}", "score_ptr": "*fp32", "y_ptr": f"*{kind}"}
    signature |= {"norm_ptr": "*fp32"} if norm else {}
    constants |= _mixture(machine, experts) | sizes | ({} if norm else {"norm_ptr": None}) | {
        "x_scale_ptr": None, "N": experts.inner, "K": experts.hidden, "EPS": eps, "TOP": experts.top,
        "DOT": product_type(layout),
    }  # fmt: skip
    return tuned(machine, KernelRequest("moe", "prefill_expert_gate_up", signature, constants, options))


def prefill_down(machine: Architecture, experts: Experts, tokens: int, onto: bool) -> KernelRequest:
    """As `decode_down`, with matrix units."""
    layout = experts.down
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, tokens, busy=True)
    signature |= _routing() | {"x_ptr": f"*{between(layout)}", "y_ptr": "*fp32"} | _base(onto)
    constants |= _mixture(machine, experts) | _no_base(onto) | sizes | {
        "x_scale_ptr": None, "N": experts.hidden, "K": experts.inner, "DOT": product_type(layout),
    }  # fmt: skip
    return tuned(machine, KernelRequest("moe", "prefill_expert_down", signature, constants, options))


def scatter(machine: Architecture, columns: int, top: int) -> KernelRequest:
    """The answers of `top` experts added to the tokens' rows."""
    signature = {"routed_ptr": "*fp32", "place_ptr": "*i32", "base_ptr": "*fp32", "y_ptr": "*fp32"}
    constants: dict[str, Constant] = {
        "N": columns, "TOP": top, "BLOCK": 1024, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return KernelRequest("moe", "scatter_routed", signature, constants, _few(4))


def _routing() -> dict[str, str]:
    return {"order_ptr": "*i32", "offset_ptr": "*i32"}


def _mixture(machine: Architecture, experts: Experts) -> dict[str, Constant]:
    return {"EXPERTS": experts.count, "WIDTH": experts.width, "PDL": machine.dependent_launch}


def _base(onto: bool) -> dict[str, str]:
    return {"base_ptr": "*fp32"} if onto else {}


def _no_base(onto: bool) -> dict[str, Constant]:
    return {} if onto else {"base_ptr": None}


def _few(warps: int) -> CompileOptions:
    return CompileOptions(warps, 1, dependent_launch=True)

"""Fuses a chain of reshapes, transposes and slices into one copy, `rearrange`.

Before: `reshape(transpose(reshape %pixels))` to a matrix: the patches of an image, or squares of patches as one row
After:  `rearrange %pixels {offset, shape, strides, columns}`

Element i of the result is the element offset + i . strides of what the chain begins with: the view that the chain is.
The copy is made as soon as x is there. Must not fire on a chain that only reshapes, nor on one whose reshapes no
strides can express.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import LOWERING, MODEL
from llamac.ir.types import TensorType
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

_MOVES = ("reshape", "transpose", "slice")
Axis = tuple[int, int]
"""Length and stride in elements."""


@dataclass(frozen=True)
class FuseRearrange(Pass):
    """Chains of reshape, transpose and slice that end in a matrix -> rearrange."""

    name = "fuse-rearrange"
    requires = (MODEL, LOWERING)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                chain = _chain(op) if _is_last(op, graph) else []
                if all(move.opcode == "reshape" for move in chain):
                    continue
                reason = _fuse(rewriter, chain)
                fused += reason is None
                refusals += [] if reason is None else [Refusal(op.location, reason)]
            rewriter.finish()
        return PassResult({"rearrange": fused}, tuple(refusals))


def _moves(value: Value) -> Op | None:
    """The op that makes `value` from others by moving elements of a fixed shape; None for other ops and weights."""
    op = value.producer
    if op is None or isinstance(value, Weight) or op.opcode not in _MOVES:
        return None
    return op if all(isinstance(d, int) for d in op.operands[0].tensor.shape) else None


def _chain(op: Op) -> list[Op]:
    """The moves that end in `op`, the first one first."""
    found: list[Op] = []
    here = _moves(op.results[0])
    while here is not None:
        found.insert(0, here)
        here = _moves(here.operands[0])
    return found


def _is_last(op: Op, graph: Graph) -> bool:
    """Whether `op` gives a matrix that something computes with."""
    result = op.results[0]
    if not isinstance(result.type, TensorType) or result.type.rank != 2:
        return False
    return result in graph.outputs or any(user.opcode not in _MOVES for user in result.users)


def _fuse(rewriter: Rewriter, chain: Sequence[Op]) -> str | None:
    """Replace the chain, or give the reason not to."""
    root, x = chain[-1], chain[0].operands[0]
    axes, offset = _packed([d for d in x.tensor.shape if isinstance(d, int)]), 0
    # Reshapes at the end only say where rows end, which is free in a copy.
    end = max(i for i, op in enumerate(chain) if op.opcode != "reshape") + 1
    for op in chain[:end]:
        lengths = [d for d in op.result.tensor.shape if isinstance(d, int)]
        if op.opcode == "slice":
            axis, start = op.attributes["axis"], op.attributes["start"]
            assert isinstance(axis, int) and isinstance(start, int)
            offset += start * axes[axis][1]
            axes[axis] = (lengths[axis], axes[axis][1])
        elif op.opcode == "transpose":
            order = op.attributes["permutation"]
            assert isinstance(order, tuple)
            axes = [axes[i] for i in order if isinstance(i, int)]
        else:
            split = _reshaped(axes, lengths)
            if split is None:
                return f"no strides express the reshape to {lengths}"
            axes = split
    rewriter.at(_after(rewriter.graph, x) or root, root.location)
    joined = _joined(axes)
    columns = root.result.tensor.shape[1]
    assert isinstance(columns, int)
    shape, strides = tuple(n for n, _ in joined), tuple(s for _, s in joined)
    made = rewriter.op("rearrange", x, offset=offset, shape=shape, strides=strides, columns=columns)
    rewriter.replace(root.result, made)
    return None


def _after(graph: Graph, value: Value) -> Op | None:
    """The op that follows the one that makes `value`: copied there, it may be overwritten later."""
    if value.producer is None:
        return None
    place = graph.ops.index(value.producer) + 1
    return graph.ops[place] if place < len(graph.ops) else None


def _packed(lengths: Sequence[int]) -> list[Axis]:
    """The axes of elements in row-major order."""
    return [(n, math.prod(lengths[i + 1 :])) for i, n in enumerate(lengths)]


def _joined(axes: Sequence[Axis]) -> list[Axis]:
    """The same elements with as few axes as it takes, at least one."""
    found: list[Axis] = []
    for length, stride in axes:
        if found and found[-1][1] == length * stride:
            found[-1] = (found[-1][0] * length, stride)
        elif length > 1:
            found.append((length, stride))
    return found or [(1, 1)]


def _reshaped(axes: Sequence[Axis], lengths: Sequence[int]) -> list[Axis] | None:
    """The same elements in axes of other lengths; None when a new axis would need two strides."""
    left, found = _joined(axes), list[Axis]()
    for length in reversed(lengths):
        if length == 1:
            found.insert(0, (1, 1))
            continue
        # Axes that could serve as one have been joined: an axis takes part of one of them, or all of it.
        have, stride = left.pop()
        if have % length:
            return None
        found.insert(0, (length, stride))
        if have > length:
            left.append((have // length, stride * length))
    return found

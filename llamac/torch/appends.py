"""Where a graph puts keys and values of new tokens into a cache outside, and the same graph without that cache.

A cache is a pair of tensors for each layer. A growing one is joined with what is new (`torch.cat`, transformers'
DynamicCache); one with a place for every token is written in place (`index_copy_`, its StaticCache). Order tells the
layers apart: the first two appends are those of the first layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llamac.errors import LlamacError

_JOINS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True)
class Append:
    """`new` joins `held` along `axis` of four; `node` is what comes of it.

    held: an input, or a tensor that the graph makes; None for nothing. in_place: written at the positions `index`.
    length: columns of a tensor that is written in place, of the example.
    """

    node: Node
    held: Node | None
    new: Node
    axis: int
    index: Node | None = None
    length: int = 0

    @property
    def in_place(self) -> bool:
        """Whether the tensor that holds the past is written to, and stays the cache's."""
        return self.index is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys or values."""
        found: torch.dtype = self.new.meta["example_value"].dtype
        return found


def find_appends(graph: GraphModule) -> list[Append]:
    """All of a graph, in its order; LLC0957 when they are not two for each layer."""
    found = [append for node in graph.graph.nodes if (append := _append(node)) is not None]
    if len(found) % 2:
        reason = f"the graph appends to {len(found)} tensors of a cache outside, where a layer has keys and values"
        raise LlamacError("LLC0957", "the graph", reason, "keep one tensor of keys and one of values for each layer")
    return found


def _append(node: Node) -> Append | None:
    if node.op == "call_function" and node.target in _JOINS:
        return _join(node)
    if node.op == "call_method" and node.target == "index_copy_" and len(node.args) == 4:
        held, axis, index, new = node.args
        assert isinstance(held, Node) and isinstance(axis, int) and isinstance(new, Node) and isinstance(index, Node)
        shape = held.meta["example_value"].shape
        return Append(node, held, new, axis % 4, index, int(shape[axis])) if len(shape) == 4 else None
    return None


def _join(node: Node) -> Append | None:
    """A join of an input, or of nothing, with something computed."""
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not isinstance(axis, int):
        return None
    held, new = parts
    if not isinstance(new, Node) or new.meta["example_value"].ndim != 4 or axis % 4 not in (1, 2):
        return None
    example = held.meta["example_value"]
    if example.ndim == 1 and not example.numel():
        return Append(node, None, new, axis % 4)
    return Append(node, held, new, axis % 4) if held.op == "placeholder" and example.ndim == 4 else None


def without_past(graph: GraphModule, appends: Sequence[Append], logits: Node) -> GraphModule:
    """The graph with `logits` alone as its output, and something of each layer's own in the place of its past.

    Shapes stay, and where keys and values come from: enough to see what model it is. What it gives means nothing.
    """
    by_node = {append.node: append for append in appends}
    made = torch.fx.Graph()
    copies: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        append = by_node.get(node)
        if node.op == "output":
            made.output((copies[logits],))
        elif append is None:
            copies[node] = made.node_copy(node, copies.__getitem__)
        elif append.held is None:
            copies[node] = copies[append.new]
        else:
            length = made.call_method("size", (copies[append.held], append.axis))
            how = (copies[append.new], length, append.axis, append.in_place)
            copies[node] = made.call_function(as_if_appended, how)
            if append.in_place:
                copies[append.held] = copies[node]
    return GraphModule(graph, made)


def as_if_appended(new: torch.Tensor, length: int, axis: int, in_place: bool) -> torch.Tensor:
    """`new` as long as a cache that it was appended to, out of its first token."""
    shape = list(new.shape)
    shape[axis] = length if in_place else length + shape[axis]
    return new.narrow(axis, 0, 1).expand(shape)


def find_logits(graph: GraphModule, appends: Sequence[Append]) -> Node:
    """The one output that is neither keys, values nor a count of tokens; LLC0957 when there are more."""
    (output,) = graph.graph.find_nodes(op="output")
    known = {append.node for append in appends} | {append.held for append in appends}
    returned = [leaf for leaf in torch.utils._pytree.tree_leaves(output.args[0]) if isinstance(leaf, Node)]
    shaped = [node for node in returned if isinstance(node.meta["example_value"], torch.Tensor)]
    rest = [node for node in shaped if node not in known and node.meta["example_value"].ndim]
    if len(rest) != 1:
        shapes = ", ".join(str([str(n) for n in node.meta["example_value"].shape]).replace("'", "") for node in rest)
        reason = (
            f"the graph returns {len(rest)} values beside a cache, {shapes}, where a Llama's forward returns logits"
        )
        hint = "leave out output_hidden_states, output_attentions and labels, and use a DynamicCache or a StaticCache"
        raise LlamacError("LLC0957", "the graph", reason, hint)
    return rest[0]

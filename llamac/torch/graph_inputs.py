"""What the inputs of a graph from Dynamo are: ids, mask, positions, weights, small tables and sizes, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llamac.errors import LlamacError
from llamac.models.capture.call import module_path, source_line

TABLE_LIMIT = 1 << 24
"""Elements of the largest input that may be a table, such as cosines by position, and not a weight."""

NO_PAST = (
    "call the module with use_cache=False; to generate, compile the checkpoint and use llamac.torch.LlamacModel, whose "
    "generate() keeps the past in the artifact's own cache"
)


@dataclass(frozen=True)
class GraphInputs:
    """The placeholders of a graph by what they are, each with its place among the inputs.

    weights: parameters. tables: other tensors that the module holds. sizes: whole numbers that Dynamo left open.
    """

    ids: Node
    mask: Node | None
    positions: Node | None
    weights: dict[Node, torch.Tensor]
    tables: dict[Node, torch.Tensor]
    sizes: dict[Node, Any]
    places: dict[Node, int]
    shape: tuple[int, ...]
    """The shape of the example ids, [batch, columns] or [columns]."""

    @property
    def batch(self) -> int:
        """Rows of the example; ids without that axis are one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def columns(self) -> int:
        """Tokens in each row of the example."""
        return self.shape[-1]

    @property
    def fixed_columns(self) -> bool:
        """Whether the graph holds for one number of columns only."""
        return any(isinstance(node.meta["example_value"].shape[-1], int) for node in self._free)

    @property
    def fixed_batch(self) -> bool:
        """Whether the graph holds for one number of rows only."""
        shapes = [node.meta["example_value"].shape for node in self._free]
        # Positions may be one row for all.
        return (
            len(self.shape) == 1
            or any(len(s) == 2 and isinstance(s[0], int) and s[0] != 1 for s in shapes)
            or (isinstance(shapes[0][0], int))
        )

    @property
    def _free(self) -> list[Node]:
        return [node for node in (self.ids, self.mask, self.positions) if node is not None]

    def size(self, node: Node, batch: int, columns: int) -> int:
        """The number that an open size stands for in a call of that shape."""
        wanted = self.sizes[node]
        own = self.ids.meta["example_value"].shape
        if str(node.meta.get("example_value")) == str(own[-1]):
            return columns
        if len(own) == 2 and str(node.meta.get("example_value")) == str(own[0]):
            return batch
        return columns if int(wanted) == self.shape[-1] else batch if int(wanted) == self.shape[0] else int(wanted)


def read_inputs(graph: GraphModule, examples: Sequence[Any]) -> GraphInputs:
    """Tell the inputs apart; LLC0957 for what a Llama's `forward(ids) -> logits` does not take."""
    nodes = graph.graph.find_nodes(op="placeholder")
    given = dict(zip(nodes, examples, strict=True))
    sizes = {node: value for node, value in given.items() if not isinstance(value, torch.Tensor)}
    held = {node: value for node, value in given.items() if isinstance(value, torch.Tensor)}
    own = {node: value for node, value in held.items() if _is_held(node, value)}
    free = {node: value for node, value in held.items() if node not in own}
    ids = _ids(graph, free)
    rest = {node: value for node, value in free.items() if node is not ids}
    shape = tuple(int(size) for size in free[ids].shape)
    mask, positions = (_named(rest, word, shape) for word in ("mask", "position"))
    strangers = [node for node in rest if node not in (mask, positions)]
    if strangers:
        raise _stranger(strangers[0], rest[strangers[0]])
    weights = {node: value for node, value in own.items() if isinstance(value, torch.nn.Parameter)}
    tables = {node: value for node, value in own.items() if node not in weights}
    for node, value in tables.items():
        if value.numel() > TABLE_LIMIT:
            reason = f"a buffer of {value.numel()} elements, more than {TABLE_LIMIT}"
            raise LlamacError("LLC0957", argument(node), reason, "hold weights as nn.Parameter")
    _check_output(graph)
    places = {node: index for index, node in enumerate(nodes)}
    return GraphInputs(ids, mask, positions, weights, tables, sizes, places, shape)


def argument(node: Node) -> str:
    """The name of an input as the caller knows it."""
    return str(node.target).removeprefix("L_").removeprefix("kwargs_").strip("_")


def _is_held(node: Node, value: torch.Tensor) -> bool:
    """Whether the module holds the tensor: a parameter, a buffer or an attribute of it, not an argument of the call."""
    if isinstance(value, torch.nn.Parameter):
        return True
    source = str(getattr(getattr(node.meta.get("grapharg"), "source", None), "name", node.target))
    return "_buffers" in source or "['self']" in source or "_modules" in source or "L_self_" in str(node.target)


def _ids(graph: GraphModule, free: dict[Node, torch.Tensor]) -> Node:
    """The argument that a table of embeddings is read with."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "embedding":
            found = node.args[0]
            if isinstance(found, Node) and found in free and free[found].ndim in (1, 2):
                return found
    first = next((node for node in graph.graph.nodes if node.op.startswith("call_")), None)
    begins = "it is empty" if first is None else f"it begins in {module_path(first)}, {source_line(first)}"
    reason = f"the graph is no whole forward(ids) -> logits, no ids look embeddings up: {begins}{_break_reason()}"
    hint = "compile the whole model with fullgraph=True: Dynamo then says where it cannot go on"
    raise LlamacError("LLC0957", "the graph", reason, hint)


def _break_reason() -> str:
    """What Dynamo says of the places where it cut the module in pieces."""
    from torch._dynamo.utils import counters

    reasons = [str(reason).splitlines()[0] for reason in counters["graph_break"]]
    return f"; Dynamo cut the module in pieces ({'; '.join(reasons[:3])})" if reasons else ""


def _check_output(graph: GraphModule) -> None:
    (output,) = graph.graph.find_nodes(op="output")
    returned = torch.utils._pytree.tree_leaves(output.args[0])
    if len(returned) != 1:
        reason = f"the graph returns {len(returned)} values, where forward(ids) -> logits returns one"
        raise LlamacError("LLC0957", "the graph", f"{reason}: keys and values of a cache outside", NO_PAST)


def _named(rest: dict[Node, torch.Tensor], word: str, shape: tuple[int, ...]) -> Node | None:
    for node, value in rest.items():
        if word in argument(node) and not value.is_floating_point() and tuple(value.shape)[-len(shape) :] == shape:
            return node
    return None


def _stranger(node: Node, value: torch.Tensor) -> LlamacError:
    name = argument(node)
    reason = f"the graph takes {name}, {value.dtype} {list(value.shape)}, beside the ids"
    if "past" in name or "cache" in name or value.ndim == 4:
        return LlamacError("LLC0957", name, f"{reason}: keys and values of a cache outside", NO_PAST)
    return LlamacError(
        "LLC0957", name, reason, "pass input_ids, and attention_mask and position_ids as [batch, columns]"
    )

"""What the inputs of a graph from Dynamo are: ids, mask, positions, a cache, weights, tables, sizes, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llamac.errors import LlamacError
from llamac.models.capture.call import module_path, source_line

from .appends import Append

TABLE_LIMIT = 1 << 24
"""Elements of the largest input that may be a table, such as cosines by position, and not a weight."""

CACHE_HINT = (
    "use a DynamicCache or a StaticCache of full attention, or call the module with use_cache=False; an artifact "
    "behind llamac.torch.LlamacModel keeps the past itself"
)


@dataclass(frozen=True)
class CallShape:
    """The sizes of a call: rows, tokens of each that are in the cache, and new tokens of each."""

    batch: int
    past: int
    columns: int

    @property
    def total(self) -> int:
        """Columns that the new tokens may see."""
        return self.past + self.columns


@dataclass(frozen=True)
class GraphInputs:
    """The placeholders of a graph by what they are, each with its place among the inputs.

    weights: parameters. tables: other tensors that the module holds. sizes: whole numbers that Dynamo left open.
    pasts: keys and values of a cache outside. counters: tensors of one number, in which a cache counts its tokens.
    """

    ids: Node
    mask: Node | None
    positions: Node | None
    weights: dict[Node, torch.Tensor]
    tables: dict[Node, torch.Tensor]
    pasts: dict[Node, torch.Tensor]
    counters: dict[Node, torch.Tensor]
    sizes: dict[Node, Any]
    appends: tuple[Append, ...]
    places: dict[Node, int]
    shape: tuple[int, ...]
    """The shape of the example ids, [batch, columns] or [columns]."""

    def of_copy(self, graph: GraphModule) -> GraphInputs:
        """The same for a graph with copies of the inputs, and without the appends to what comes in."""
        copies = dict(zip(self.places, graph.graph.find_nodes(op="placeholder"), strict=True))
        groups = ("weights", "tables", "pasts", "counters", "sizes", "places")
        moved: dict[str, Any] = {name: {copies[n]: v for n, v in getattr(self, name).items()} for name in groups}
        moved |= {name: copies.get(getattr(self, name)) for name in ("ids", "mask", "positions")}
        appends = tuple(replace(append, held=copies.get(append.held, append.held)) for append in self.appends)
        return replace(self, appends=appends, **moved)

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
        bound = [node for node in (self.ids, self.positions) if node is not None]
        bound += [self.mask] if self.mask is not None and self.growing is None and self.capacity is None else []
        return any(isinstance(node.meta["example_value"].shape[-1], int) for node in bound)

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

    @property
    def example(self) -> CallShape:
        """The sizes of the example."""
        return CallShape(self.batch, self._example_past, self.columns)

    @property
    def _example_past(self) -> int:
        """Tokens in the example's cache."""
        if self.growing is not None:
            return int(self.pasts[self.growing.held].shape[self.growing.axis])
        return max((int(count) for count in self.counters.values()), default=0)

    @property
    def growing(self) -> Append | None:
        """The first append to keys or values that come in, where a cache grows by joining."""
        return next((a for a in self.appends if not a.in_place and a.held in self.pasts), None)

    @property
    def capacity(self) -> int | None:
        """Columns of a cache with a place for every token, which is written in place."""
        return next((a.length for a in self.appends if a.in_place), None)

    @property
    def fixed_past(self) -> bool:
        """Whether the graph holds for one number of tokens in the cache only."""
        if self.growing is not None:
            return isinstance(self.growing.held.meta["example_value"].shape[self.growing.axis], int)  # type: ignore[union-attr]
        return not (self.pasts and self.counters)

    def size(self, node: Node, call: CallShape) -> int:
        """The number that an open size stands for in a call of that shape."""
        symbol = str(node.meta.get("example_value"))
        own = self.ids.meta["example_value"].shape
        known = [(own[-1], call.columns)]
        if len(own) == 2:
            known.append((own[0], call.batch))
        joined = [a for a in self.appends if not a.in_place and a.held in self.pasts]
        known += [(a.held.meta["example_value"].shape[a.axis], call.past) for a in joined if a.held is not None]
        if self.mask is not None and self.mask.meta["example_value"].ndim == 2:
            known.append((self.mask.meta["example_value"].shape[1], call.total))
        for size, value in known:
            if str(size) == symbol:
                return value
        wanted = int(self.sizes[node])  # asking for its value fixes it
        return call.columns if wanted == self.shape[-1] else call.batch if wanted == self.shape[0] else wanted


def read_inputs(graph: GraphModule, examples: Sequence[Any], appends: Sequence[Append] = ()) -> GraphInputs:
    """Tell the inputs apart; LLC0957 for what the forward of a Llama does not take.

    appends: where the graph puts new keys and values into a cache outside (`appends.find_appends`).
    """
    nodes = graph.graph.find_nodes(op="placeholder")
    given = dict(zip(nodes, examples, strict=True))
    sizes = {node: value for node, value in given.items() if not isinstance(value, torch.Tensor)}
    held = {node: value for node, value in given.items() if isinstance(value, torch.Tensor)}
    own = {node: value for node, value in held.items() if _is_held(node, value)}
    free = {node: value for node, value in held.items() if node not in own}
    ids = _ids(graph, free)
    rest = {node: value for node, value in free.items() if node is not ids}
    shape = tuple(int(size) for size in free[ids].shape)
    mask, positions = _mask(rest, shape), _positions(rest, shape)
    pasts = {a.held: rest[a.held] for a in appends if a.held in rest}
    counters = {node: value for node, value in rest.items() if not value.ndim and not value.is_floating_point()}
    strangers = [node for node in rest if node not in (mask, positions, *pasts, *counters)]
    if strangers:
        raise _stranger(strangers[0], rest[strangers[0]])
    weights = {node: value for node, value in own.items() if isinstance(value, torch.nn.Parameter)}
    tables = {node: value for node, value in own.items() if node not in weights}
    for node, value in tables.items():
        if value.numel() > TABLE_LIMIT:
            reason = f"a buffer of {value.numel()} elements, more than {TABLE_LIMIT}"
            raise LlamacError("LLC0957", argument(node), reason, "hold weights as nn.Parameter")
    places = {node: index for index, node in enumerate(nodes)}
    return GraphInputs(ids, mask, positions, weights, tables, pasts, counters, sizes, tuple(appends), places, shape)


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
        # torch's function takes the ids first, the op of an exported graph the table.
        if node.op == "call_function" and getattr(node.target, "__name__", "").partition(".")[0] == "embedding":
            for found in node.args[:2]:
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


def _mask(rest: dict[Node, torch.Tensor], shape: tuple[int, ...]) -> Node | None:
    """A mask of columns, [batch, past + new], or of scores, [batch or 1, 1, new, columns of the cache]."""
    for node, value in rest.items():
        sizes = tuple(int(size) for size in value.shape)
        if "mask" not in argument(node):
            continue
        if sizes[:-1] == shape[:-1] and sizes and sizes[-1] >= shape[-1]:
            return node
        if len(sizes) == 4 and sizes[1:3] == (1, shape[-1]) and sizes[0] in (1, shape[0]):
            return node
    return None


def _positions(rest: dict[Node, torch.Tensor], shape: tuple[int, ...]) -> Node | None:
    for node, value in rest.items():
        sizes = tuple(int(size) for size in value.shape)
        is_shaped = sizes in (shape, shape[-1:], (1, shape[-1]))
        if "position" in argument(node) and not value.is_floating_point() and is_shaped:
            return node
    return None


def _stranger(node: Node, value: torch.Tensor) -> LlamacError:
    name = argument(node)
    reason = f"the graph takes {name}, {value.dtype} {list(value.shape)}, beside the ids"
    if "past" in name or "cache" in name or value.ndim == 4:
        return LlamacError(
            "LLC0957", name, f"{reason}, and does not append keys or values of full attention", CACHE_HINT
        )
    return LlamacError(
        "LLC0957", name, reason, "pass input_ids, and attention_mask and position_ids as [batch, columns]"
    )

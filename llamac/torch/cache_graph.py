"""What is left for torch of a graph with a cache outside: putting new keys and values where the graph puts them.

Everything that is computed from ids comes out of one call of compiled code. The cache's own bookkeeping, joins, writes
in place and counts, stays torch's, as the graph has it: the cache outside is what it would be without llamac.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llamac.errors import LlamacError

from .graph_inputs import GraphInputs, argument

Step = Callable[..., list[torch.Tensor]]
"""(ids, mask, positions, index of the first write in place, keys and values that come in...) -> logits, and for each
append what is new."""


def cache_graph(graph: GraphModule, inputs: GraphInputs, logits: Node, step: Step) -> GraphModule:
    """`graph` with `step` in place of all that depends on ids: it returns (the graph's outputs, the caches' tensors).

    LLC0957 when an output depends on ids otherwise.
    """
    return _CacheGraph(graph, inputs, logits, step).build()


class _CacheGraph:
    def __init__(self, graph: GraphModule, inputs: GraphInputs, logits: Node, step: Step) -> None:
        self.graph = graph
        self.inputs = inputs
        self.logits = logits
        self.step = step
        self.moving = _moving(graph, inputs, {append.node for append in inputs.appends})
        self.made = torch.fx.Graph()
        self.copies: dict[Node, Any] = {}
        self.results: list[Node] = []

    def build(self) -> GraphModule:
        appends = {append.node: place for place, append in enumerate(self.inputs.appends, start=1)}
        kept = self._kept()
        for node in self.graph.graph.nodes:
            if node is self.logits:
                self.copies[node] = self._result(0)
            elif node.op == "output":
                caches = [a.held if a.in_place else a.node for a in self.inputs.appends]
                self.made.output(torch.fx.map_arg((node.args[0], caches), self._copy))
            elif node in kept and node not in self.moving:
                if node in appends:
                    self.copies[self.inputs.appends[appends[node] - 1].new] = self._result(appends[node])
                self.copies[node] = self.made.node_copy(node, self._copy)
        return GraphModule(self.graph, self.made)

    def _copy(self, node: Node) -> Any:
        if node not in self.copies:
            reason = "an output beside the logits and the cache depends on the ids"
            raise LlamacError("LLC0957", argument(node), reason, "return logits, and a DynamicCache or StaticCache")
        return self.copies[node]

    def _result(self, place: int) -> Node:
        """What the step gives at that place; it is called before the first use."""
        if not self.results:
            inputs = self.inputs
            index = next((append.index for append in inputs.appends if append.in_place), None)
            given = (inputs.ids, inputs.mask, inputs.positions, index, *inputs.pasts)
            called = self.made.call_function(self.step, tuple(None if n is None else self.copies[n] for n in given))
            count = 1 + len(inputs.appends)
            self.results = [self.made.call_function(operator.getitem, (called, at)) for at in range(count)]
        return self.results[place]

    def _kept(self) -> set[Node]:
        """Inputs, and what an output, an append or a write to something that is kept needs."""
        nodes = list(self.graph.graph.nodes)
        kept = {node for node in nodes if node.op in ("placeholder", "output")}
        kept |= {append.node for append in self.inputs.appends}
        before = -1
        while before != len(kept):
            before = len(kept)
            for node in reversed(nodes):
                if node in self.moving or node is self.logits:
                    continue
                if node in kept or (_writes(node) and node.args[0] in kept):
                    kept |= {node, *(source for source in node.all_input_nodes if source not in self.moving)}
        return kept


def _moving(graph: GraphModule, inputs: GraphInputs, appends: set[Node]) -> set[Node]:
    """Nodes that depend on ids or weights, but for the appends and what is made of them."""
    moving = {inputs.ids, *inputs.weights}
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and node not in appends and _depends(node, moving, appends):
            moving.add(node)
    return moving - {inputs.ids, *inputs.weights}


def _depends(node: Node, moving: set[Node], appends: set[Node]) -> bool:
    if node.op == "call_method" and node.target in ("size", "dim"):
        return any(source in moving and source.op != "placeholder" for source in node.all_input_nodes)
    return any(source in moving or source in appends for source in node.all_input_nodes)


def _writes(node: Node) -> bool:
    """Whether it changes its first operand."""
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__") and bool(node.args)

"""Computes ahead what in a graph depends on shapes and small tables alone, and leaves what depends on ids and weights.

A Llama's mask and rotary tables come in a hundred spellings: comparisons of ranges, triangles, buffers, products. None
of them depends on the ids. Computed ahead for a given shape they are plain tensors, whose values can be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node

from llamac.errors import LlamacError

from .arguments import arguments_of
from .graph_inputs import CallShape, GraphInputs

SHAPE_QUERIES = frozenset({"size", "dim", "numel", "ndimension"})
SHAPE_ATTRIBUTES = frozenset({"shape", "device", "dtype", "ndim"})


@dataclass(frozen=True)
class Ahead:
    """What was computed ahead: `fixed`, every node that depends on no id and no weight, with its value."""

    fixed: dict[Node, Any]

    def edge(self) -> dict[Node, torch.Tensor]:
        """The tensors among them that other nodes read, in graph order."""
        return {
            node: value
            for node, value in self.fixed.items()
            if isinstance(value, torch.Tensor) and any(user not in self.fixed for user in node.users)
        }


def compute_ahead(graph: GraphModule, inputs: GraphInputs, call: CallShape, first: int | None = None) -> Ahead:
    """Everything fixed in a call of that shape without padding; the rest runs on tensors without data.

    first: the position of the first new token, where positions come in; as many as are in the cache unless given.
    LLC0957 when torch cannot run the graph so.
    """
    runner = _Ahead(graph, inputs)
    rows = (call.batch,) if len(inputs.shape) == 2 else ()
    ids = torch.zeros((*rows, call.columns), dtype=inputs.ids.meta["example_value"].dtype)
    given = dict(zip(inputs.places, arguments_of(inputs, ids, None, call.past, first), strict=True))
    for node in (inputs.ids, *inputs.weights):
        given[node] = runner.mode.from_tensor(given[node].detach())
    try:
        with torch.no_grad(), outside_of_tracing():
            runner.run(*given.values())
    except RuntimeError as error:
        reason = f"torch cannot run it for ids {[*rows, call.columns]}: {str(error).strip().splitlines()[0][:200]}"
        hint = "let sizes be open (dynamic=True), and make no tensor's size depend on values"
        raise LlamacError("LLC0957", "the graph", reason, hint) from error
    return Ahead(runner.fixed)


@contextmanager
def outside_of_tracing() -> Iterator[None]:
    """Dynamo's own tensors without data must not meet ours."""
    from torch._guards import tracing

    with tracing(None):
        yield


class _Ahead(Interpreter):  # type: ignore[misc]
    """Runs fixed nodes on their values, and the others on tensors that have shapes only."""

    def __init__(self, graph: GraphModule, inputs: GraphInputs) -> None:
        super().__init__(graph)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.fixed: dict[Node, Any] = {}
        self._moving = {inputs.ids, *inputs.weights}

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return super().run_node(n)
        if n.op in ("placeholder", "get_attr"):
            value = super().run_node(n)
            if n not in self._moving:
                self.fixed[n] = value
            return value
        moving = [source for source in n.all_input_nodes if source not in self.fixed]
        if not moving:
            self.fixed[n] = value = super().run_node(n)
            return value
        with self.mode:
            value = super().run_node(n)
        if _asks_for_shape(n) or not _holds_tensors(value):
            self.fixed[n] = value
        return value

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if all(source in self.fixed for source in n.all_input_nodes):
            return args, kwargs
        without_data: tuple[Any, Any] = torch.utils._pytree.tree_map(self._without_data, (args, kwargs))
        return without_data

    def _without_data(self, value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return self.mode.from_tensor(value) if is_real else value


def _asks_for_shape(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in SHAPE_QUERIES
    return node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(value))


def without_fixed(graph: GraphModule, ahead: Ahead) -> tuple[GraphModule, Mapping[Node, Node]]:
    """The graph of what is left, whose inputs are ids, weights and the edge; its inputs -> the nodes they stand for."""
    left, stands_for = torch.fx.Graph(), {}
    copies: dict[Node, Any] = {}
    edge = ahead.edge()
    for node in graph.graph.nodes:
        if node in edge or (node.op == "placeholder" and node not in ahead.fixed):
            copies[node] = left.placeholder(node.name)
            copies[node].meta = dict(node.meta)
            stands_for[copies[node]] = node
        elif node in ahead.fixed:
            copies[node] = ahead.fixed[node]
        elif node.op == "output":
            left.output(torch.fx.map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = left.node_copy(node, copies.__getitem__)
    return GraphModule(graph, left), stands_for

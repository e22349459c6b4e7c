"""Compiled code beside torch itself on random ids, before it is used: a test, not a proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from llamac.errors import LlamacError

from .arguments import arguments_of, past_shapes
from .graph_inputs import CallShape, GraphInputs

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""How far the logits of nine tokens in ten may be from the graph's own, relative to the largest of all."""

MOST = {torch.float32: 1e-2, torch.bfloat16: 1e-1, torch.float16: 1e-1}
"""The same of every token. After some random ids rounding grows a hundredfold, in torch's own arithmetic too."""

HINT = "the module computes something beside a Llama: compare it with transformers' LlamaForCausalLM"


@dataclass(frozen=True)
class Trial:
    """A call with random ids, and random keys and values in its cache. shown: [batch, past + new], None for all."""

    call: CallShape
    seed: int
    shown: torch.Tensor | None = None

    def arguments(self, inputs: GraphInputs, vocabulary: int) -> list[Any]:
        """What the graph is called with; tensors of the cache are new ones each time."""
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(vocabulary, _rows(inputs, self.call, self.call.columns), generator=generator)
        held = {node: 0.5 * torch.randn(shape, generator=generator) for node, shape in past_shapes(inputs, self.call)}
        ids = ids.to(inputs.ids.meta["example_value"].dtype)
        return arguments_of(inputs, ids, self.shown, self.call.past, held=held)

    @property
    def columns(self) -> torch.Tensor:
        """Which columns hold tokens, [batch, past + new]."""
        shown = torch.ones((self.call.batch, self.call.total)) if self.shown is None else self.shown
        return shown.reshape(self.call.batch, -1).bool()


def check_by_trials(
    graph: GraphModule, inputs: GraphInputs, logits: Node, made: Callable[..., Any], vocabulary: int, context: int
) -> None:
    """LLC0958 when the code gives other logits than torch, or leaves a cache otherwise behind.

    Calls are of the example's shape, of another where the graph takes others, and with padding.
    """
    for trial in _trials(inputs, context):
        theirs, ours = (trial.arguments(inputs, vocabulary) for _ in range(2))
        expected = _leaves(run_graph(graph, theirs)) + _changeable(inputs, theirs)
        found = _leaves(made(*ours)) + _changeable(inputs, ours)
        for node, wanted, got in zip(_nodes(graph, inputs), expected, found, strict=True):
            _compare(trial, inputs, node, wanted, got, node is logits)


def first_logits(graph: GraphModule, inputs: GraphInputs, logits: Node, vocabulary: int) -> torch.Tensor:
    """The logits of an example."""
    trial = Trial(inputs.example, 0)
    leaves = _leaves(run_graph(graph, trial.arguments(inputs, vocabulary)))
    return leaves[_nodes(graph, inputs).index(logits)]


def run_graph(graph: GraphModule, arguments: list[Any]) -> Any:
    """What torch gives for the graph."""
    return Interpreter(graph).run(*arguments)


def _leaves(value: Any) -> list[Any]:
    leaves: list[Any] = torch.utils._pytree.tree_leaves(value)
    return leaves


def _changeable(inputs: GraphInputs, arguments: list[Any]) -> list[Any]:
    return [arguments[inputs.places[node]] for node in (*inputs.pasts, *inputs.counters)]


def _nodes(graph: GraphModule, inputs: GraphInputs) -> list[Any]:
    """What the values are that are compared: the graph's outputs, then what may have been written to."""
    (output,) = graph.graph.find_nodes(op="output")
    return [*_leaves(output.args[0]), *inputs.pasts, *inputs.counters]


def _rows(inputs: GraphInputs, call: CallShape, columns: int) -> tuple[int, ...]:
    return (call.batch, columns) if len(inputs.shape) == 2 else (columns,)


def _trials(inputs: GraphInputs, context: int) -> Iterator[Trial]:
    example, most = inputs.example, inputs.capacity or context
    calls = [example]
    if not inputs.fixed_columns or not inputs.fixed_past:
        columns = example.columns if inputs.fixed_columns else 2 * example.columns + 5
        past = example.past if inputs.fixed_past else example.past + 3
        columns = min(columns, most - example.past)
        batch = example.batch if inputs.fixed_batch else 1
        calls.append(CallShape(batch, min(past, most - columns), columns))
    for seed, call in enumerate(calls, start=1):
        yield Trial(call, seed)
        if inputs.mask is not None and call.total > 2:
            shown = torch.ones(_rows(inputs, call, call.total), dtype=torch.int64)
            shown[..., 0, : call.total // 3] = 0
            yield Trial(call, seed, shown)


def _compare(trial: Trial, inputs: GraphInputs, node: Any, expected: Any, found: Any, is_logits: bool) -> None:
    """LLC0958 for an output, or an input that was written to, which is not what torch makes it."""
    appended = next((a for a in inputs.appends if node in (a.node, a.held)), None)
    if is_logits:
        what, shown = "logits", trial.columns[:, trial.call.past :]
        shown = shown[:, -expected.shape[1] :] if expected.ndim == 3 else shown
    elif appended is not None:
        what, shown = "keys or values", trial.columns
        expected, found = (t.transpose(1, 2) if appended.axis == 2 else t for t in (expected, found))
        if not torch.equal(expected[:, trial.call.total :], found[:, trial.call.total :]):
            raise _differs(trial, "the places behind the cache's last token", "written to")
        expected, found = (t[:, : trial.call.total] for t in (expected, found))
    else:
        if not bool(expected == found):
            raise _differs(trial, str(node), f"{found}, not {expected}")
        return
    found, expected = (t.reshape(1, *t.shape) if t.ndim == 2 and expected.ndim == 2 else t for t in (found, expected))
    if found.shape[:2] == shown.shape:
        found, expected = found[shown], expected[shown]
    scale = float(expected.abs().max()) or 1.0
    errors = (found - expected).abs().flatten(1 if appended is not None else 0, -2).amax(dim=-1).flatten()
    errors = errors.double() / scale
    usual, largest = float(errors.nan_to_num(torch.inf).quantile(0.9, interpolation="higher")), float(errors.max())
    most = MOST[expected.dtype]
    # Of a few tokens, any may be such a one.
    allowed = TOLERANCE[expected.dtype] if len(errors) >= 10 else min(10 * TOLERANCE[expected.dtype], most)
    if not (usual <= allowed and largest <= most):
        raise _differs(trial, f"the code's {what}", f"{largest:.2g} of the largest away from torch's own")


def _differs(trial: Trial, what: str, how: str) -> LlamacError:
    call = trial.call
    after = f" after {call.past} in the cache" if call.past else ""
    return LlamacError("LLC0958", "the graph", f"for {call.batch} x {call.columns} ids{after} {what} are {how}", HINT)

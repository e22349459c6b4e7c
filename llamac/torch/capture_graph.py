"""From a graph of Dynamo to the model behind it."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.fx.traceback
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from llamac.models.capture.forward import CapturedForward, ModelShape, StoredWeight, capture_forward
from llamac.models.capture.rotation import with_frequencies
from llamac.models.llama.config import LlamaConfig, shape_name

from .fixed_values import Floats, frequencies_of
from .graph_inputs import CallShape, GraphInputs
from .partial import Ahead, compute_ahead, without_fixed

LONGEST = 1 << 17
"""Context of the compiled model: nothing depends on it but how long a text may be loaded for."""


def capture_graph(graph: GraphModule, inputs: GraphInputs) -> CapturedForward:
    """The model that the graph is for its example's shape, with what is fixed computed ahead.

    LLC0314, LLC0315 and LLC0318 where it is no Llama.
    """
    ahead = compute_ahead(graph, inputs, inputs.example)
    edge = ahead.edge()
    left, stands_for = without_fixed(graph, ahead)
    values: dict[Node, torch.Tensor] = {inputs.ids: example_ids(inputs.shape, 2), **inputs.weights, **edge}
    origins = list(stands_for.values())
    traced = _traced(left, [values[origin] for origin in origins])
    places = dict(zip(traced.graph.find_nodes(op="placeholder"), origins, strict=True))
    ids = next(place for place, origin in places.items() if origin is inputs.ids)
    weights = {
        place: StoredWeight(weight_path(origin), inputs.weights[origin])
        for place, origin in places.items()
        if origin in inputs.weights
    }
    fixed = {place: edge[origin] for place, origin in places.items() if origin in edge}
    return capture_forward(traced.graph, ids, weights, fixed)


def config_of_graph(graph: GraphModule, inputs: GraphInputs, found: ModelShape, context: int) -> LlamaConfig:
    """The architecture, with mask and rotation checked for texts as long as the graph takes, up to `context`."""
    frequencies: Floats | None = None
    for call, first in _calls(inputs, context):
        ahead: Ahead = compute_ahead(graph, inputs, call, first)
        held = [value for value in ahead.fixed.values() if isinstance(value, torch.Tensor)]
        frequencies = frequencies_of(ahead.edge(), held, call, first, found.head_dim, frequencies)
    assert frequencies is not None
    config = LlamaConfig(
        name="",
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        layers=found.layers,
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        vocab_size=found.vocab_size,
        rms_norm_eps=found.rms_norm_eps,
        rope_theta=10000.0,
        rope_scaling=None,
        context_length=max(LONGEST, context, inputs.columns, inputs.capacity or 0),
        tied_head=found.tied_head,
        dtype=found.dtype,
        rope_style=found.rope_style,
    )
    named = with_frequencies(config, frequencies)
    return LlamaConfig(**{**vars(named), "name": shape_name(named.parameters)})


def _calls(inputs: GraphInputs, context: int) -> list[tuple[CallShape, int]]:
    """The calls for which mask and rotation are checked, each with the position of its first token: to the longest."""
    batch, (past, columns) = inputs.batch if inputs.fixed_batch else 1, (inputs.example.past, inputs.columns)
    longest = inputs.capacity or max(context, past + columns)
    if not inputs.fixed_columns:
        past = past if inputs.fixed_past else 0
        return [(CallShape(batch, past, longest - past), past)]
    if inputs.fixed_past:
        last = max(context - columns, past) if inputs.positions is not None else past
        return [(CallShape(batch, past, columns), first) for first in dict.fromkeys((past, last))]
    return [(CallShape(batch, p, columns), p) for p in dict.fromkeys((past, longest - columns))]


def example_ids(shape: tuple[int, ...], vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def weight_path(node: Node) -> str:
    """The path of a parameter: `L['self']._modules['norm']._parameters['weight']` -> `norm.weight`."""
    source = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", "")
    name = source() if callable(source) else source
    parts = re.findall(r"\['([^']+)'\]|\.(\w+)", str(name))
    words = [quoted or plain for quoted, plain in parts if quoted != "self"]
    plain = [word for word in words if word not in ("_modules", "_parameters", "_buffers")]
    return ".".join(plain) or str(node.target)


def _traced(graph: GraphModule, inputs: list[Any]) -> GraphModule:
    """The same in ATen ops, each with the place in the user's code that it comes from."""
    with torch.fx.traceback.preserve_node_meta():
        traced: GraphModule = make_fx(lambda *values: Interpreter(graph).run(*values), pre_dispatch=True)(*inputs)
    return traced

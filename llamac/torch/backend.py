"""`torch.compile(model, backend="llamac")`: the forward of a Llama runs through llamac's generated code.

Dynamo's graph `forward(ids) -> logits` is taken apart: what depends on shapes alone must be a causal mask and rotary
tables (`fixed_values`), the rest a Llama (`models.capture.forward`), which is compiled like any checkpoint. Before the
code is used its logits are compared with the graph's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter

import llamac.driver
from llamac.errors import LlamacError
from llamac.models.capture.forward import CapturedForward
from llamac.models.llama.config import LlamaConfig
from llamac.runtime.loader import load
from llamac.runtime.model import Model

from .capture_graph import capture_graph, config_of_graph, example_ids, weight_path
from .code_cache import cache_folder, cached, key_of
from .compiled import CompiledForward, OutputShape
from .graph_inputs import GraphInputs, read_inputs
from .options import CompileOptions, read_options
from .partial import arguments_of, outside_of_tracing
from .prefixes import Prefixes

SEQUENCES = 8
"""Full contexts that the cache of compiled code has room for."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""How far the logits of nine tokens in ten may be from the graph's own, relative to the largest of all."""

MOST = {torch.float32: 1e-2, torch.bfloat16: 1e-1, torch.float16: 1e-1}
"""The same of every token. After some random ids rounding grows a hundredfold, in torch's own arithmetic too."""


def llamac_backend(
    graph: GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo: what `torch.compile(model, backend="llamac", options={...})` calls.

    The module must be a Llama in evaluation mode without gradients, its forward one graph from token ids to logits,
    without a cache outside (docs/torch.md). options: see `CompileOptions`. Errors: LLC0957 for a graph that is not
    taken, LLC0314, LLC0315 and LLC0318 for ops and forms that no Llama has, LLC0958 when the code's logits differ from
    the graph's; compiling and loading have their own. With `fallback="eager"` these are warnings.
    """
    chosen = read_options(options, mode)
    try:
        _refuse_gradients(examples)
        with torch.no_grad(), outside_of_tracing():
            return _compiled(graph, read_inputs(graph, examples), chosen)
    except LlamacError as error:
        if chosen.fallback != "eager":
            raise
        warnings.warn(f"torch runs the graph itself: {error.message()}", stacklevel=2)
        forward: Callable[..., Any] = graph.forward
        return forward


def _refuse_gradients(examples: Sequence[Any]) -> None:
    tensors = [value for value in examples if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        hint = "call it under torch.no_grad() or torch.inference_mode(), or call model.requires_grad_(False)"
        raise LlamacError("LLC0957", "the module", "its weights want gradients, and compiled code has none", hint)


def _compiled(graph: GraphModule, inputs: GraphInputs, options: CompileOptions) -> CompiledForward:
    captured = capture_graph(graph, inputs)
    config = config_of_graph(graph, inputs, captured, options.context)
    vocabulary = config.vocab_size
    shown = _run(graph, inputs, example_ids(inputs.shape, vocabulary))
    form = OutputShape(shown, inputs.shape, vocabulary)
    artifact = _artifact(captured, config, inputs, options)
    made = CompiledForward(inputs, Prefixes(artifact.session, options.keep), form)
    for ids, mask in _trials(inputs, vocabulary, options.context):
        _compare(made, ids, mask, _run(graph, inputs, ids, mask))
    return made


def _run(graph: GraphModule, inputs: GraphInputs, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What torch gives for the graph."""
    (found,) = torch.utils._pytree.tree_leaves(Interpreter(graph).run(*arguments_of(inputs, ids, mask)))
    return found


def _artifact(captured: CapturedForward, config: LlamaConfig, inputs: GraphInputs, options: CompileOptions) -> Model:
    """The compiled model, from the folder of compiled code where it is there already."""
    scheme = "f32" if config.dtype == "f32" else "keep"
    (target,) = llamac.driver.resolve_targets(["cpu"])
    named = sorted((weight_path(node), weight) for node, weight in inputs.weights.items())
    key = key_of([repr(config), scheme, target.name], (weight for _, weight in named))

    def make(path: Path) -> None:
        checkpoint = captured.checkpoint(config)
        llamac.driver.compile(checkpoint, target=target.name, output=path, quantize=scheme, tokenizer=False)

    path = cached(cache_folder(options.cache), key, make)
    longest = min(config.context_length, max(options.context, inputs.columns))
    return load(path, threads=options.threads, sequences=SEQUENCES, context=longest, device="cpu")


def _trials(inputs: GraphInputs, vocabulary: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Calls to compare: of the example's shape, of another where the graph takes others, and with padding."""
    batch, columns = inputs.batch, inputs.columns
    shapes = [(batch, columns)]
    if not inputs.fixed_columns:
        shapes.append((batch if inputs.fixed_batch else 1, min(context, 2 * columns + 5)))
    trials: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for seed, (rows, length) in enumerate(shapes, start=1):
        shape = (rows, length) if len(inputs.shape) == 2 else (length,)
        trials.append((example_ids(shape, vocabulary, seed), None))
        if inputs.mask is not None and length > 1:
            mask = torch.ones(shape, dtype=torch.int64)
            mask[..., 0, : length // 3] = 0
            trials.append((example_ids(shape, vocabulary, seed), mask))
    return trials


def _compare(made: CompiledForward, ids: torch.Tensor, mask: torch.Tensor | None, expected: torch.Tensor) -> None:
    """LLC0958 when the code gives other logits than torch: the graph does what its structure does not show."""
    found, wanted = made.logits(ids, mask), expected
    if mask is not None and found.shape[:-1] == mask.shape:
        found, wanted = found[mask.bool()], wanted[mask.bool()]
    scale = float(wanted.abs().max()) or 1.0
    errors = (found - wanted).abs().amax(dim=-1).flatten().double() / scale
    usual, largest = float(errors.nan_to_num(torch.inf).quantile(0.9, interpolation="higher")), float(errors.max())
    if not (usual <= TOLERANCE[wanted.dtype] and largest <= MOST[wanted.dtype]):
        reason = f"for ids {list(ids.shape)} the code's logits are {largest:.2g} of the largest away from torch's own"
        hint = "the module computes something beside a Llama: compare it with transformers' LlamaForCausalLM"
        raise LlamacError("LLC0958", "the graph", reason, hint)

"""`torch.compile(model, backend="llamac")`: the forward of a Llama runs through llamac's generated code.

Dynamo's graph `forward(ids) -> logits` is taken apart: what depends on shapes alone must be a causal mask and rotary
tables (`fixed_values`), the rest a Llama (`models.capture.forward`), which is compiled like any checkpoint. Where keys
and values come in and go out, putting them together stays torch's (`cache_graph`). Before the code is used, what it
gives is compared with what the graph gives (`trials`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

import llamac.driver
from llamac.errors import LlamacError
from llamac.models.capture.forward import CapturedForward
from llamac.models.llama.config import LlamaConfig

from .appends import find_appends, find_logits, without_past
from .capture_graph import capture_graph, config_of_graph, weight_path
from .code_cache import cache_folder, cached, key_of
from .compiled import CompiledForward, CompiledStep, OutputShape
from .graph_inputs import GraphInputs, read_inputs
from .known_models import known_model, remember_model
from .loaded import load_code
from .options import CompileOptions, read_options
from .partial import outside_of_tracing
from .trials import check_by_trials, first_logits


def llamac_backend(
    graph: GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo: what `torch.compile(model, backend="llamac", options={...})` calls.

    The module must be a Llama in evaluation mode without gradients, its forward one graph from token ids to logits,
    with or without a cache outside (docs/torch.md). options: see `CompileOptions`. Errors: LLC0957 for a graph that is
    not taken, LLC0314, LLC0315 and LLC0318 for ops and forms that no Llama has, LLC0958 when the code's logits differ
    from the graph's; compiling and loading have their own. With `fallback="eager"` these are warnings.
    """
    chosen = read_options(options, mode)
    try:
        _refuse_gradients(examples)
        with torch.no_grad(), outside_of_tracing():
            return _compiled(graph, examples, chosen)
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


def _compiled(graph: GraphModule, examples: Sequence[Any], options: CompileOptions) -> Callable[..., Any]:
    appends = find_appends(graph)
    inputs = read_inputs(graph, examples, appends)
    logits = find_logits(graph, appends)
    bare = without_past(graph, appends, logits)
    own = inputs.of_copy(bare)
    config, path = _code(bare, own, options)
    shape = OutputShape(first_logits(graph, inputs, logits, config.vocab_size), inputs.shape, config.vocab_size)
    loaded = load_code(path, config, inputs, options)

    def checked(made: Callable[..., Any]) -> Callable[..., Any]:
        check_by_trials(graph, inputs, logits, made, config.vocab_size, options.context)
        return made

    if not appends:
        return checked(CompiledForward(inputs, loaded, shape))
    keys_first, values_first = (CompiledStep(graph, inputs, logits, loaded, shape, kinds) for kinds in ((0, 1), (1, 0)))
    try:
        return checked(keys_first)
    except LlamacError as error:
        if error.code != "LLC0958":
            raise
        try:
            return checked(values_first)
        except LlamacError:
            raise error from None


def _code(graph: GraphModule, inputs: GraphInputs, options: CompileOptions) -> tuple[LlamaConfig, Path]:
    """The model of a graph without a past, and its code: compiled, or known from another graph or another process."""
    folder = cache_folder(options.cache)
    known = known_model(inputs, folder)
    if known is not None and config_of_graph(graph, inputs, known.shape, options.context) == known.config:
        return known.config, known.path
    captured = capture_graph(graph, inputs)
    config = config_of_graph(graph, inputs, captured.shape, options.context)
    path = _artifact(captured, config, inputs, folder)
    remember_model(inputs, captured.shape, config, folder, path)
    return config, path


def _artifact(captured: CapturedForward, config: LlamaConfig, inputs: GraphInputs, folder: Path) -> Path:
    """The compiled model in the folder of compiled code, where it may be already."""
    scheme = "f32" if config.dtype == "f32" else "keep"
    (target,) = llamac.driver.resolve_targets(["cpu"])
    named = sorted((weight_path(node), weight) for node, weight in inputs.weights.items())
    key = key_of([repr(config), scheme, target.name], (weight for _, weight in named))

    def make(path: Path) -> None:
        checkpoint = captured.checkpoint(config)
        # Keys and values as the module keeps them: what goes into a cache outside and comes back is the same.
        how = partial(llamac.driver.compile, target=target.name, quantize=scheme, kv=config.dtype)
        how(checkpoint, output=path, tokenizer=False)

    return cached(folder, key, make)

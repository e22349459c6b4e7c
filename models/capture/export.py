"""Runs torch.export on a module as one step of one sequence with explicit past."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamac.errors import LlamacError

from ..llama.config import LlamaConfig
from .torch_library import require_torch

PAST_TOKENS = 7
"""Example length of the past; any number but those of other dimensions would do."""

TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def is_transformers_llama(module: object) -> bool:
    """Whether `module` is transformers' LlamaForCausalLM."""
    kind = type(module)
    return kind.__name__ == "LlamaForCausalLM" and kind.__module__.startswith("transformers.")


def export_step(module: Any, config: LlamaConfig, tokens: int) -> Any:
    """The ExportedProgram of `module(ids, positions, past_k.0, past_v.0, ...)`, tokens and past dynamic.

    LLC0313 with torch's reason when the module cannot be exported.
    """
    torch = require_torch()
    step = _transformers_step(torch, module) if is_transformers_llama(module) else _plain_step(torch, module)
    dtype = getattr(torch, TORCH_DTYPES[config.dtype])
    past = torch.zeros(config.kv_heads, PAST_TOKENS, config.head_dim, dtype=dtype)
    ids, positions = torch.zeros(tokens, dtype=torch.int64), torch.arange(PAST_TOKENS, PAST_TOKENS + tokens)
    # No upper bound: the longest context is the artifact's business.
    new, old = torch.export.Dim("tokens"), torch.export.Dim("past")
    shapes = ({0: new}, {0: new}, ({1: old},) * (2 * config.layers))
    with _quiet(module), torch.no_grad():
        try:
            inputs = (ids, positions, *(past.clone() for _ in range(2 * config.layers)))
            return torch.export.export(step.eval(), inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            hint = "torch.export must accept forward(ids, positions, past_k.0, past_v.0, ...) -> logits, k.0, v.0, ..."
            raise LlamacError("LLC0313", type(module).__name__, f"torch.export failed: {first}", hint) from error


@contextmanager
def _quiet(module: Any) -> Iterator[None]:
    """The module in evaluation mode, and back."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _plain_step(torch: Any, module: Any) -> Any:
    class PlainStep(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.step = module

        def forward(self, ids: Any, positions: Any, *past: Any) -> Any:
            return self.step(ids, positions, *past)

    return PlainStep()


def _transformers_step(torch: Any, module: Any) -> Any:
    """An adapter that makes the past explicit and drops the batch axis; the mask is the model's own."""
    cache_class = sys.modules["transformers"].DynamicCache

    class TransformersStep(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.step = module

        def forward(self, ids: Any, positions: Any, *past: Any) -> Any:
            cache = cache_class()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer][None], past[2 * layer + 1][None], layer)
            out = self.step(input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
            states = [state for layer in out.past_key_values.layers for state in (layer.keys[0], layer.values[0])]
            return (out.logits[0], *states)

    return TransformersStep()

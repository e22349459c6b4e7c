"""The second front door: a torch module or an exported program -> `CapturedModel`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.verifier import verify

from ..ledger import LedgerEntry
from ..llama.config import LlamaConfig, check_config, shape_name
from ..llama.hf_config import config_from_hf
from .captured import CapturedModel, torch_checkpoint
from .export import TORCH_DTYPES, export_step, is_transformers_llama
from .importer import import_program
from .parameters import Parameters
from .roles import name_weights
from .torch_library import ir_dtype, require_torch


def capture(
    module_or_exported_program: Any,
    *,
    config: LlamaConfig | None = None,
    example_tokens: int = 5,
    dtype: str | None = None,
) -> CapturedModel:
    """Capture a torch Llama as a graph, with its weights where they are.

    module_or_exported_program: a transformers LlamaForCausalLM (eager or sdpa attention); or an nn.Module whose
    `forward(ids[T], positions[T], past_k.0[K, P, h], past_v.0, ...)` returns `logits[T, V], k.0[K, P + T, h], v.0,
    ...`; or a torch.export.ExportedProgram of such a step, each tensor with or without a batch axis of one. config: the
    architecture; taken from the module when transformers made it, needed otherwise. example_tokens: how many tokens the
    export traces with. dtype: "f32", "f16" or "bf16" captures a copy so converted.

    `positions[t]` is `P + t`: a mask that the module makes from sizes and one that it makes from positions are one.
    Raises LLC0311..LLC0318; LLC03xx for a config, LLC02xx for weights that are not those of a Llama.
    """
    torch = require_torch()
    held = module_or_exported_program
    is_program = isinstance(held, torch.export.ExportedProgram)
    if not is_program and not isinstance(held, torch.nn.Module):
        reason = f"a {type(held).__name__} is neither a torch module nor an exported program"
        raise LlamacError("LLC0312", "capture", reason, "pass an nn.Module or what torch.export.export returns")
    if not 2 <= example_tokens <= 4096:
        raise LlamacError("LLC0312", "capture", f"example_tokens is {example_tokens}", "use 2 to 4096")
    held = held if dtype is None else _converted(torch, held, dtype, is_program)
    found, ledger = _config(held, config)
    program = held if is_program else export_step(held, found, example_tokens)
    return _imported(program, found, ledger)


def _imported(program: Any, config: LlamaConfig, ledger: list[LedgerEntry]) -> CapturedModel:
    parameters = Parameters(program, config, ledger)
    module = import_program(program, parameters)
    module.step.remove_dead_ops()
    module.remove_dead_weights()
    renamed = name_weights(module, config)
    verify(module)
    tensors = {renamed[name]: held for name, held in parameters.tensors.items() if name in renamed}
    names = {after: before.removeprefix("step.") for before, after in renamed.items()}
    return CapturedModel(module, torch_checkpoint(module, config, tensors, names, ledger))


def _converted(torch: Any, held: Any, dtype: str, is_program: bool) -> Any:
    if dtype not in TORCH_DTYPES:
        near = did_you_mean(dtype, TORCH_DTYPES)
        raise LlamacError("LLC0312", "capture", f"unknown dtype '{dtype}'{near}", f"choose {', '.join(TORCH_DTYPES)}")
    if is_program:
        raise LlamacError(
            "LLC0312", "capture", "an exported program has the dtype it was exported with", "leave dtype out"
        )
    wanted = getattr(torch, TORCH_DTYPES[dtype])
    return held if _dtype(held) == dtype else copy.deepcopy(held).to(wanted)


def _config(held: Any, config: LlamaConfig | None) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """The architecture, with the dtype in which the module holds its weights."""
    ledger: list[LedgerEntry] = []
    if is_transformers_llama(held) and config is None:
        config, ledger = config_from_hf({**held.config.to_dict(), "dtype": TORCH_DTYPES[_dtype(held)]})
    if config is None:
        reason = f"the sizes of a {type(held).__name__} are not known"
        raise LlamacError("LLC0312", "capture", reason, "pass config=LlamaConfig(...) from llamac.models.llama.config")
    config = replace(config, dtype=_dtype(held), name=config.name or shape_name(config.parameters))
    return check_config(config, "config"), ledger


def _dtype(held: Any) -> str:
    """The dtype of the largest parameter: the one a model computes in."""
    parameters = list(held.parameters())
    if not parameters:
        raise LlamacError("LLC0312", "capture", "the module has no parameters", "pass a Llama")
    return ir_dtype(max(parameters, key=lambda p: p.numel()).dtype, "parameters").name

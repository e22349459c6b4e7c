"""An artifact as one op of a torch graph: `torch.ops.llamac.step`, which traces, compiles and exports.

llamac.torch.use_artifact("smollm2", LlamacModel.from_artifact("smollm2.llamac"))
logits = llamac.torch.step("smollm2", input_ids)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llamac.errors import LlamacError, did_you_mean
from llamac.runtime.model import Model

from .columns import real_columns
from .model import LlamacModel
from .prefixes import Prefixes


@dataclass(frozen=True)
class _Used:
    """An artifact by name, and what it computed last."""

    artifact: Model
    prefixes: Prefixes


_USED: dict[str, _Used] = {}
"""A graph can hold a name, but no model: an exported graph finds its artifact here when it runs."""


def use_artifact(name: str, model: LlamacModel | Model | None) -> None:
    """Let graphs find `model` under `name` from now on, in place of what was there; None takes the name away."""
    before = _USED.pop(name, None)
    if before is not None:
        before.prefixes.close()
    if model is not None:
        artifact = model.artifact if isinstance(model, LlamacModel) else model
        _USED[name] = _Used(artifact, Prefixes(artifact.session))


@torch.library.custom_op("llamac::step", mutates_args=())  # type: ignore[untyped-decorator]
def step(
    artifact: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, last: bool = False
) -> torch.Tensor:
    """Logits [batch, columns, vocabulary] after every column of `input_ids` [batch, columns], f32 on the CPU.

    artifact: the name given to `use_artifact` (LLC0956 when there is none). attention_mask [batch, columns] marks
    padding, on either side, whose logits are zero. last: only the last column's, [batch, 1, vocabulary]; a call whose
    texts begin as those of a call before computes only what is new. There is no gradient.
    """
    used = _used(artifact)
    if input_ids.ndim != 2 or input_ids.is_floating_point() or not input_ids.numel():
        reason = f"expected token ids [batch, columns], got {input_ids.dtype} {list(input_ids.shape)}"
        raise LlamacError("LLC0956", "llamac::step", reason, "pass what a tokenizer returns")
    ids = input_ids.detach().cpu().numpy().astype(np.int64)
    real = real_columns(attention_mask, np.zeros((len(ids), 0), bool), ids.shape[1])
    return torch.from_numpy(used.prefixes.logits(ids, real, 1 if last else ids.shape[1])).to(input_ids.device)


@step.register_fake  # type: ignore[untyped-decorator]
def _shape_of_step(
    artifact: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, last: bool = False
) -> torch.Tensor:
    batch, columns = input_ids.shape
    vocabulary = _used(artifact).artifact.vocab_size
    return input_ids.new_empty((batch, 1 if last else columns, vocabulary), dtype=torch.float32)


def _used(name: str) -> _Used:
    if name not in _USED:
        reason = f"no artifact is in use under the name '{name}'{did_you_mean(name, _USED)}"
        hint = "call llamac.torch.use_artifact(name, model) before the graph is traced or run"
        raise LlamacError("LLC0956", "llamac::step", reason, hint)
    return _USED[name]

"""What the capture tests share: small models, captured once a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.ir.interpreter import Interpreter
from llamac.models.capture.captured import CapturedModel

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("torch", reason="capture needs torch: pip install -e '.[test]'")
pytest.importorskip("transformers", reason="the capture tests compare with transformers: pip install -e '.[test]'")

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Floats = NDArray[np.float32]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _rope(scaling: str) -> dict[str, Any]:
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": 10000.0}
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": "llama3", "rope_theta": 5e5, **factors, "original_max_position_embeddings": 64}


@cache
def _model(attention: str, dtype: str, group: int, kv_heads: int, tied: bool, scaling: str) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=71,
        hidden_size=24 * group * kv_heads,
        intermediate_size=60,
        num_hidden_layers=2,
        num_attention_heads=group * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rope_parameters=_rope(scaling),
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim >= 2:
            weight.mul_(8)
        else:
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.to(getattr(torch, dtype))


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """A small transformers Llama, made once for each set of options."""

    def make(
        attention: str = "eager",
        dtype: str = "float32",
        group: int = 2,
        kv_heads: int = 2,
        tied: bool = False,
        scaling: str = "none",
    ) -> LlamaForCausalLM:
        return _model(attention, dtype, group, kv_heads, tied, scaling)

    return make


@pytest.fixture(scope="session")
def captured(make_llama: Callable[..., LlamaForCausalLM]) -> Callable[..., CapturedModel]:
    """`make_llama`, captured once for each set of options."""
    import llamac

    @cache
    def take(**options: Any) -> CapturedModel:
        return llamac.capture(make_llama(**options))

    return take


def interpreted(model: CapturedModel, ids: list[int], cuts: tuple[int, ...] = ()) -> Floats:
    """Logits of the captured graph after every id, in steps that end at `cuts`."""
    interpreter = Interpreter(model.module, model.read_rows)
    config = model.config
    past = [np.zeros((config.kv_heads, 0, config.head_dim), np.float32)] * (2 * config.layers)
    rows, bounds = [], (0, *cuts, len(ids))
    for start, stop in pairwise(bounds):
        inputs: dict[str, Any] = {"ids": ids[start:stop], "positions": np.arange(start, stop)}
        inputs |= {a.name: p for a, p in zip(model.module.step.arguments[2:], past, strict=True)}
        logits, *past = interpreter.run(inputs)
        rows.append(logits)
    return np.concatenate(rows).astype(np.float32)


@pytest.fixture(name="interpreted", scope="session")
def interpreted_fixture() -> Callable[..., Floats]:
    return interpreted

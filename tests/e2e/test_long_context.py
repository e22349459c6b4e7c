"""The far end of a 128k context: logits at chosen positions against transformers, and memory against the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_llama import TinyShape, make_reference, save_checkpoint
from tiny_llama4 import Tiny4, checkpoint_of, make_model, reference_logits, weights_of

import llamac
from llamac.models.llama.config_json import config_from_json
from llamac.planning.kv import kv_groups
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

TOKENS = 131072
POSITIONS = (8191, 8192, 65536, 131071)


def _rows(model: Model, ids: list[int], positions: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits at the positions, each decoded as a step of one token after a prefill of everything before it."""
    sequence, rows = model.session.open(), []
    for position in positions:
        if len(sequence) < position:
            model.session.prefill(sequence, ids[len(sequence) : position])
        rows.append(model.session.step([Feed(sequence, [ids[position]])])[0])
    config, steps = config_from_json(model.manifest["model"]["config"]), model.session.max_step_tokens
    planned = kv_groups(config, model.context, steps, "f32")
    assert model.session.device.kv_bytes == sum(group.bytes for group in planned)
    used = kv_groups(config, len(sequence), steps, "f32")
    assert [table.owned for table in sequence.tables] == [group.pages for group in used]
    return np.stack(rows)


def _close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    for row, (a, b) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(a - b).max() / np.abs(b).max()
        assert difference <= 1e-5, f"row {row}: {difference:.2e}"


@pytest.mark.slow
def test_llama_at_the_end_of_128k(tmp_path: Path) -> None:
    import torch

    shape = TinyShape(group=2, kv_heads=1, head_dim=16, width=64, layers=2, context=TOKENS, vocab=67)
    reference = make_reference(shape)
    save_checkpoint(reference, shape, tmp_path)
    reference.set_attn_implementation("sdpa")
    ids = np.random.default_rng(1).integers(3, shape.vocab, TOKENS).tolist()
    with torch.no_grad():
        hidden = reference.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        expected = reference.lm_head(hidden[list(POSITIONS)]).float().numpy()
    path = tmp_path / "long.llamac"
    llamac.compile(tmp_path, output=path, quantize="f32", tokenizer=False, validate=False)
    with llamac.load(path) as model:
        _close(_rows(model, ids, POSITIONS), expected)


@pytest.mark.slow
def test_llama4_across_its_chunks_and_temperatures(tmp_path: Path) -> None:
    """Scout's own chunk of 8192 and temperature steps, at positions around both."""
    shape = Tiny4(chunk=8192, floor=8192, hidden=48, heads=2, kv_heads=1, step=1)
    reference = make_model(shape)
    reference.set_attn_implementation("sdpa")
    config = replace(shape.config(), context_length=20480)
    positions = (8190, 8191, 8192, 8193, 16383, 16384)
    ids = np.random.default_rng(2).integers(3, shape.vocab, positions[-1] + 1).tolist()
    expected = reference_logits(reference, ids)[list(positions)]
    path = tmp_path / "long4.llamac"
    checkpoint = checkpoint_of(weights_of(reference, config), config)
    llamac.compile(checkpoint, output=path, quantize="f32", tokenizer=False, validate=False)
    with llamac.load(path) as model:
        _close(_rows(model, ids, positions), expected)

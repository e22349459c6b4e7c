"""Both ONNX forms through onnxruntime against transformers in fp32 and against the interpreter."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
import tiny_llama4
from emitted_models import Floats, Notes, Running, interpreted, lowered, written
from tiny_llama import TinyShape, relative_error, some_ids
from tiny_llama4 import Tiny4

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source

TOLERANCE = 1e-4
"""Of f32 logits, relative to the largest."""

FORMS = ("standard", "contributed")
LLAMAS = {
    "tied": TinyShape(group=2, width=128, inner=128, tied=True),
    "untied": TinyShape(width=96, inner=128, group=1, scaled=False),
    "odd": TinyShape(group=4, head_dim=32),
    "narrow": TinyShape(head_dim=24),
    "bf16": TinyShape(width=96, inner=128, dtype="bf16"),
}
"""Name -> shape: sizes of whole groups of 32 or not, rope scaling or none, one query head for a key head or several,
and heads that ONNX Runtime does not rotate within its attention."""

MIXTURES = {"one": Tiny4(), "two": Tiny4(top_k=2, experts=5, tied=True, interval=2), "dense": Tiny4(experts=0)}
IDS = some_ids(131, 21)


@cache
def llama(name: str) -> tuple[Checkpoint, Floats]:
    """A model and transformers' logits for `IDS`."""
    shape = LLAMAS[name]
    model = tiny_llama.make_reference(shape)
    folder = Path(tempfile.mkdtemp(prefix=f"llamac-{name}-"))
    atexit.register(shutil.rmtree, folder)
    checkpoint = open_source(tiny_llama.save_checkpoint(model, shape, folder))
    return checkpoint, tiny_llama.reference_logits(model, IDS)


@cache
def mixture(name: str) -> tuple[Checkpoint, Floats]:
    """The same of a Llama 4."""
    shape = MIXTURES[name]
    model, config = tiny_llama4.make_model(shape), shape.config()
    checkpoint = tiny_llama4.checkpoint_of(tiny_llama4.weights_of(model, config), config)
    return checkpoint, tiny_llama4.reference_logits(model, IDS)


def check_steps(folder: Path, reference: Floats) -> None:
    """One prompt at once; a prompt, a piece and single tokens."""
    assert relative_error(Running(folder).step([IDS])[0], reference) < TOLERANCE
    running, found = Running(folder), []
    for start, end in ((0, 11), (11, 18), (18, 19), (19, 20), (20, 21)):
        found.append(running.step([IDS[start:end]])[0])
    assert relative_error(np.concatenate(found), reference) < TOLERANCE


def test_heads_that_onnxruntime_does_not_take(tmp_path: Path) -> None:
    """Refused by the layer's name, not when it runs."""
    shape = TinyShape(head_dim=12)
    source = tiny_llama.save_checkpoint(tiny_llama.make_reference(shape), shape, tmp_path / "source")
    with pytest.raises(LlamacError, match=r"LLC0932 layers\.0.* multiple of 8 numbers, not of 12.*--to onnx"):
        written(open_source(source), tmp_path, "contributed")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LLAMAS)
def test_a_llama_matches_transformers(name: str, form: str, tmp_path: Path) -> None:
    checkpoint, reference = llama(name)
    written(checkpoint, tmp_path, form)
    check_steps(tmp_path, reference)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MIXTURES)
def test_a_llama4_matches_transformers(name: str, form: str, tmp_path: Path) -> None:
    """Chunks of 8, temperature in steps of 4, norms of q and k, experts: 21 tokens show all of them."""
    checkpoint, reference = mixture(name)
    written(checkpoint, tmp_path, form)
    check_steps(tmp_path, reference)


@pytest.mark.parametrize("scheme", ["f16", "int8", "int4", "int4:g64", "int4:asym", "int8:asym"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["tied", "odd"])
def test_quantized_weights_mean_what_they_should(name: str, form: str, scheme: str, tmp_path: Path) -> None:
    """With activations in f32 nothing but the order of sums differs from the interpreter."""
    checkpoint, _ = llama(name)
    notes: Notes = []
    written(checkpoint, tmp_path, form, scheme, notes=notes)
    check_steps(tmp_path, interpreted(lowered(checkpoint, scheme), checkpoint, IDS))
    assert name == "odd" or not notes
    assert {kind for kind, *_ in notes} <= {"widened"}


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4:asym"])
@pytest.mark.parametrize("form", FORMS)
def test_quantized_experts(form: str, scheme: str, tmp_path: Path) -> None:
    checkpoint, _ = mixture("one")
    written(checkpoint, tmp_path, form, scheme)
    check_steps(tmp_path, interpreted(lowered(checkpoint, scheme), checkpoint, IDS))


@pytest.mark.parametrize("make", [lambda: llama("tied"), lambda: mixture("one")], ids=["llama", "llama4"])
def test_a_batch_with_padding_before_the_text(make: Any, tmp_path: Path) -> None:
    """As transformers pads: padding moves neither positions nor chunks, and its rows are finite."""
    checkpoint, reference = make()
    written(checkpoint, tmp_path, "standard")
    running, short = Running(tmp_path), IDS[:15]
    found = running.step([IDS[:20], [0] * 5 + short], [[1] * 20, [0] * 5 + [1] * 15])
    assert np.isfinite(found).all()
    assert relative_error(found[0], reference[:20]) < TOLERANCE
    assert relative_error(found[1, 5:], reference[:15]) < TOLERANCE
    found = running.step([IDS[20:21], IDS[15:16]])
    assert relative_error(found[0], reference[20:21]) < TOLERANCE
    assert relative_error(found[1], reference[15:16]) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_the_last_token_alone(form: str, tmp_path: Path) -> None:
    checkpoint, reference = llama("tied")
    written(checkpoint, tmp_path, form, logits="last")
    found = Running(tmp_path).step([IDS])
    assert found.shape == (1, 1, 131)
    assert relative_error(found[0], reference[-1:]) < TOLERANCE

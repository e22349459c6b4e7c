"""What passes enter in the ledger, so that nothing they decide stays hidden."""

from __future__ import annotations

import pytest

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.graph import build_llama
from llamac.models.llama.shrink import SyntheticWeights, small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import cpu_pipeline, parse_quantization, plain_layers
from llamac.transform.base import LedgerEntry, PassContext
from llamac.transform.pipeline import run_pipeline

CONFIG = LlamaConfig(
    name="small",
    hidden_size=256,
    intermediate_size=256,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=64,
    vocab_size=32,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    context_length=64,
    tied_head=True,
    dtype="f32",
    rope_style="interleaved",
)


def _ledger(encoding: str, scheme: str) -> list[LedgerEntry]:
    encodings = {n: encoding if len(s) == 2 else "f32" for n, s in expected_shapes(CONFIG).items()}
    tensors = small_tensors(CONFIG, encodings)
    context = PassContext(SyntheticWeights(tensors, 0).read_rows)
    run_pipeline(
        build_llama(CONFIG, tensors), cpu_pipeline(plain_layers(1), parse_quantization(scheme), "f32", 8), context
    )
    return context.ledger


@pytest.mark.parametrize(
    ("encoding", "held"),
    [
        ("q5_0", "i8 in groups of 32 with f16 scales"),
        ("q5_1", "u8 in groups of 32 with f16 scales and f16 minima"),
        ("q4_k", "u4 in groups of 32 with f32 scales and f32 minima"),
        ("q5_k", "u8 in groups of 32 with f32 scales and f32 minima"),
        ("q6_k", "i8 in groups of 16 with f32 scales"),
    ],
)
def test_blocks_held_in_a_wider_scheme_are_named(encoding: str, held: str) -> None:
    (entry,) = [e for e in _ledger(encoding, "keep") if e.kind == "widened"]
    assert entry.what == f"{encoding} blocks are held as {held}"
    assert entry.where == "embed and 4 more"


@pytest.mark.parametrize("encoding", ["q4_0", "q4_1", "q8_0", "f32"])
def test_blocks_held_as_they_are_need_no_entry(encoding: str) -> None:
    assert not [e for e in _ledger(encoding, "keep") if e.kind == "widened"]


def test_what_is_quantized_again_is_not_called_widened() -> None:
    kinds = {e.kind for e in _ledger("q6_k", "int4")}
    assert "widened" not in kinds and "requantized" in kinds


def test_fp8_says_what_stays_unquantized() -> None:
    (entry,) = [e for e in _ledger("f32", "fp8") if e.kind == "unquantized"]
    assert entry.where == "embed" and "f32" in entry.what

"""What is measured and checked on GPUs, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A model of random weights: preset, `--quantize`, `--kv`, and the most tokens of one of its steps."""

    name: str
    preset: str
    quantize: str
    kv: str
    max_tokens: int = 2048


@dataclass(frozen=True)
class Row:
    """One line of the table: `batch` sequences decode a token each behind `context` others, or `prefill` tokens."""

    case: str
    batch: int = 1
    context: int = 128
    prefill: int = 0
    goal: str = ""
    """What `docs/benchmarks/gpu.md` compares with, on one H200."""


CASES = {
    case.name: case
    for case in (
        Case("1b-bf16", "llama-3.2-1b", "keep", "bf16"),
        Case("1b-fp8", "llama-3.2-1b", "fp8", "bf16"),
        Case("1b-int4", "llama-3.2-1b", "int4:g128", "bf16"),
        Case("1b-fp8-activations", "llama-3.2-1b", "fp8:fp8-activations", "fp8"),
        Case("3b-bf16", "llama-3.2-3b", "keep", "bf16"),
        Case("8b-bf16", "llama-3.1-8b", "keep", "bf16"),
        Case("8b-fp8", "llama-3.1-8b", "fp8", "bf16"),
        Case("8b-fp8-8k", "llama-3.1-8b", "fp8:fp8-activations", "fp8", 8192),
        Case("8b-int4", "llama-3.1-8b", "int4:g128", "bf16"),
        Case("70b-fp8", "llama-3.1-70b", "fp8", "bf16"),
        Case("70b-int4", "llama-3.1-70b", "int4:g128", "bf16"),
    )
}

ROWS = (
    Row("1b-bf16", goal="0.690 ms"),
    Row("1b-fp8", goal="0.47 ms"),
    Row("1b-int4", goal="0.36 ms"),
    Row("3b-bf16"),
    Row("8b-bf16", goal="3.88 ms"),
    Row("8b-fp8", goal="2.20 ms"),
    Row("8b-int4", goal="1.45 ms"),
    Row("70b-fp8", goal="17.8 ms"),
    Row("70b-int4", goal="10.2 ms"),
    Row("1b-bf16", context=32_768, goal="1.03 ms"),
    Row("8b-bf16", context=32_768, goal="5.1 ms"),
    Row("8b-bf16", context=131_000),
    Row("8b-bf16", batch=16, context=2048),
    Row("8b-bf16", batch=64, context=2048, goal="9.0 ms"),
    Row("8b-fp8-8k", batch=64, context=2048, goal="4.85 ms"),
    Row("8b-fp8-8k", batch=256, context=2048, goal="12.3 ms"),
    Row("8b-bf16", prefill=2048, goal="620 TFLOPS"),
    Row("8b-fp8-8k", prefill=8192, goal="950 TFLOPS"),
)

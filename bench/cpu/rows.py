"""What the CPU benchmark measures, as data: the rows, the recipes whose quality stands beside them, and the goals."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_SCHEME = "int4"
"""The scheme of `--quantize` that the row of the default recipe compiles with."""
SEED = 0
CONTEXT = 4096


@dataclass(frozen=True)
class Point:
    """One run: tokens of the prompt, new tokens, and how many sequences are decoded together.

    With one sequence prefill and decode are timed, with several the decode only. `new` 1 times the prefill alone.
    """

    prompt: int
    new: int
    sequences: int = 1


@dataclass(frozen=True)
class Row:
    """One comparison.

    shape: a preset. file: block types of matrices and tables of the random GGUF file that the peers run, and llamac too
    unless `scheme` says otherwise: then llamac quantizes random bf16 weights of the same shape. unit: the arithmetic
    unit whose peak prefill is measured against, None where its peak is not that of the instructions in use. most_pairs:
    for rows of many points, which only plots are made of.
    """

    title: str
    shape: str
    recipe: str
    unit: str | None
    points: tuple[Point, ...]
    file: tuple[str, str] | None = ("q4_0", "q8_0")
    peers: tuple[str, ...] = ()
    scheme: str = "keep"
    target: str = "cpu"
    most_pairs: int | None = None


_ALL = ("llama.cpp", "openvino", "onnxruntime")
_GGUF = ("llama.cpp",)

ROWS = {
    "1b-q4": Row("1B, int4", "llama-3.2-1b", "q4_0", "int8", (Point(512, 64),), peers=_ALL),
    "1b-default": Row(
        "1B, default recipe", "llama-3.2-1b", "default", "int8", (Point(512, 64),), peers=_GGUF, scheme=DEFAULT_SCHEME
    ),
    "smollm2-q4": Row("SmolLM2-135M, int4", "smollm2-135m", "q4_0", "int8", (Point(512, 128),), peers=_ALL),
    "8b-q4": Row("8B, int4", "llama-3.1-8b", "q4_0", "int8", (Point(256, 24),), peers=_GGUF),
    "1b-q8": Row(
        "1B, int8 blocks", "llama-3.2-1b", "q8_0", "int8", (Point(512, 48),), file=("q8_0", "q8_0"), peers=_GGUF
    ),
    "1b-bf16": Row("1B, bf16", "llama-3.2-1b", "bf16", "bf16", (Point(256, 32),), file=("bf16", "bf16"), peers=_GGUF),
    "1b-fp8": Row("1B, fp8", "llama-3.2-1b", "fp8", "bf16", (Point(256, 48),), file=None, scheme="fp8"),
    "1b-int8": Row("1B, int8", "llama-3.2-1b", "int8", "int8", (Point(256, 48),), file=None, scheme="int8"),
    "1b-avx2": Row(
        "1B, int4, AVX2",
        "llama-3.2-1b",
        "q4_0-avx2",
        None,
        (Point(512, 64),),
        peers=("llama.cpp-avx2",),
        target="x86-64-v3",
    ),
    "1b-batch": Row(
        "1B, int4, sequences together",
        "llama-3.2-1b",
        "q4_0",
        "int8",
        tuple(Point(32, 17, sequences) for sequences in (1, 8)),
        peers=_GGUF,
    ),
    "1b-batches": Row(
        "1B, int4, sequences together",
        "llama-3.2-1b",
        "q4_0",
        "int8",
        tuple(Point(32, 9, sequences) for sequences in (1, 2, 4, 8, 16, 32)),
        peers=_GGUF,
        most_pairs=3,
    ),
    "1b-prompts": Row(
        "1B, int4, by length of the prompt",
        "llama-3.2-1b",
        "q4_0",
        "int8",
        tuple(Point(tokens, 1) for tokens in (16, 64, 256, 1024)),
        peers=_ALL,
        most_pairs=3,
    ),
}


@dataclass(frozen=True)
class Recipe:
    """How SmolLM2-135M is made in a row's recipe. file: the type it is rewritten in for the peers (and for `keep`)."""

    title: str
    scheme: str = "keep"
    file: str | None = None
    peers: tuple[str, ...] = ()
    target: str = "cpu"


RECIPES = {
    "q4_0": Recipe("Q4_0, tables Q8_0", file="q4_0", peers=_ALL),
    "q4_0-avx2": Recipe("Q4_0, tables Q8_0, AVX2", file="q4_0", peers=("llama.cpp-avx2",), target="x86-64-v3"),
    "default": Recipe(f"--quantize {DEFAULT_SCHEME} (the default recipe)", scheme=DEFAULT_SCHEME),
    "q8_0": Recipe("Q8_0", file="q8_0", peers=_GGUF),
    "bf16": Recipe("bf16", file="bf16", peers=_GGUF),
    "fp8": Recipe("--quantize fp8", scheme="fp8"),
    "int8": Recipe("--quantize int8", scheme="int8"),
}


@dataclass(frozen=True)
class Goal:
    """One figure of a row with its bound: `figure` is a path into the row's point (`figures.py`).

    `at_most` turns the comparison round. A row that is no row of ROWS is another program's figure.
    """

    row: str
    words: str
    figure: str
    goal: float
    stretch: float | None = None
    point: int = 0
    at_most: bool = False


GOALS = (
    Goal("1b-q4", "prefill 512, times llama.cpp Q4_0", "ratios/llama.cpp/prefill", 2.2, 2.6),
    Goal("1b-q4", "prefill 512, times OpenVINO GenAI", "ratios/openvino/prefill", 1.3, 1.5),
    Goal("1b-q4", "prefill 512, times ONNX Runtime GenAI", "ratios/onnxruntime/prefill", 1.0),
    Goal("1b-q4", "prefill 512, share of the VNNI peak", "shares/peak", 0.58, 0.68),
    Goal("1b-q4", "decode, share of the paired read", "shares/mapped_read", 0.85, 0.93),
    Goal("1b-q4", "decode, times llama.cpp at equal bytes a token", "ratios/llama.cpp/decode", 1.0),
    Goal("1b-q4", "decode, times OpenVINO GenAI", "ratios/openvino/decode", 1.0),
    Goal("1b-q4", "decode, times ONNX Runtime GenAI", "ratios/onnxruntime/decode", 1.0),
    Goal("1b-q4", "KL, times llama.cpp Q4_0's", "quality/llama.cpp", 1.0, at_most=True),
    Goal("1b-default", "decode, times llama.cpp Q4_0", "ratios/llama.cpp/decode", 1.12),
    Goal("1b-default", "KL, times llama.cpp Q4_0's", "quality/llama.cpp", 1.0, at_most=True),
    Goal("smollm2-q4", "prefill 512, times llama.cpp Q4_0", "ratios/llama.cpp/prefill", 2.2, 2.6),
    Goal("smollm2-q4", "decode, times llama.cpp Q4_0", "ratios/llama.cpp/decode", 1.25, 1.6),
    Goal("smollm2-q4", "prefill 512, times OpenVINO GenAI", "ratios/openvino/prefill", 1.0),
    Goal("smollm2-q4", "decode, times OpenVINO GenAI", "ratios/openvino/decode", 1.0),
    Goal("smollm2-q4", "prefill 512, times ONNX Runtime GenAI", "ratios/onnxruntime/prefill", 1.0),
    Goal("smollm2-q4", "decode, times ONNX Runtime GenAI", "ratios/onnxruntime/decode", 1.0),
    Goal("8b-q4", "prefill 256, times llama.cpp Q4_0", "ratios/llama.cpp/prefill", 2.2),
    Goal("8b-q4", "decode, share of the paired read", "shares/mapped_read", 0.88, 0.94),
    Goal("8b-q4", "decode, times llama.cpp Q4_0", "ratios/llama.cpp/decode", 1.0),
    Goal("1b-q8", "prefill 512, times llama.cpp Q8_0", "ratios/llama.cpp/prefill", 1.0),
    Goal("1b-q8", "decode, times llama.cpp Q8_0", "ratios/llama.cpp/decode", 1.0),
    Goal("1b-q8", "KL, times llama.cpp Q8_0's", "quality/llama.cpp", 1.0, at_most=True),
    Goal("1b-bf16", "prefill 256, times llama.cpp BF16", "ratios/llama.cpp/prefill", 1.0, 1.5),
    Goal("1b-bf16", "prefill 256, share of the bf16 peak", "shares/peak", 0.72),
    Goal("1b-bf16", "decode, times llama.cpp BF16", "ratios/llama.cpp/decode", 1.0),
    Goal("1b-bf16", "decode, share of the paired read", "shares/mapped_read", 0.90),
    Goal("1b-bf16", "KL, times llama.cpp BF16's", "quality/llama.cpp", 1.0, at_most=True),
    Goal("1b-fp8", "decode, share of the paired read", "shares/mapped_read", 0.87, 0.95),
    Goal("1b-int8", "decode, share of the paired read", "shares/mapped_read", 0.87, 0.95),
    Goal("1b-batch", "8 rows, share of the larger of operations/peak and bytes/read", "shares/roof", 0.65, 0.8, 1),
    Goal("1b-batch", "8 sequences together, times one sequence's tokens/s", "multiple/llamac", 5.0, point=1),
    Goal("1b-avx2", "prefill 512, times llama.cpp without AVX-512", "ratios/llama.cpp-avx2/prefill", 1.3, 1.6),
    Goal("1b-avx2", "decode, times llama.cpp without AVX-512", "ratios/llama.cpp-avx2/decode", 1.0),
    Goal(
        "context.py",
        "1B, decode at 32k context, times its bytes over the read",
        "context/32768",
        1.4,
        1.2,
        at_most=True,
    ),
    Goal("load.py", "1B, load to the first token of 16, ms", "load/load_to_first_token_ms", 1000, at_most=True),
    Goal("load.py", "import of the runtime, ms", "load/import_ms", 150, at_most=True),
    Goal("load.py", "memory held, of the plan", "load/held_of_plan", 1.1, at_most=True),
)
"""The goals of CPU speed, in the order of the page. `page.py` knows figures of quality, load and context."""

"""Every type of `llamac export --to gguf` in llama.cpp: does it load, and does it write the same text?

    python bench/gguf_llama_cpp.py --llama-cpp PYTHON      PYTHON: an interpreter that can import llama_cpp
    python bench/gguf_llama_cpp.py --model llama4 --types q4_k q8_0

For SmolLM2-135M with real prompts, and for a tiny Llama and a tiny Llama 4 with random weights and ids. Each file is
exported with --check, then run by llama.cpp and by llamac, compiled from the same file and kept as it is. Compared are
the logits after every id of the prompts with the greedy text of the source behind them, and the greedy ids themselves.
Where the two choose differently, `gap` says how near the choice was: how far llama.cpp's id lies below llamac's, of the
spread of the logits there. Both round activations to 8 bits for weights in blocks, each in its own way, so near choices
fall either way; `--gap` is the largest that passes. With `--llama-cpp-avx2`, a build of the same llama.cpp for other
instructions, the same is counted between the two builds: what llama.cpp itself holds to.

The types in blocks are also made by llama.cpp's own quantizer, from the same values: `as llama.cpp's` counts tensors
that are equal byte for byte, and `error` is the squared error of the others, root mean, over that of llama.cpp's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from _llama_cpp import LlamaCpp
from _machine import machine, machine_line
from numpy.typing import NDArray

import llamac
from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.formats import FORMATS
from llamac.export.gguf.recipes import FILE_TYPES, FLOATS
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import EMBEDDED, open_source
from llamac.runtime.text.tokenizer import load_tokenizer

Floats = NDArray[np.float32]
TEXTS = (
    "The capital of France is Paris. The capital of Italy is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a small village by the sea, there lived",
    "Water boils at 100 degrees Celsius, and it freezes at",
)
MODELS = ("smollm2", "llama", "llama4")
NEW = 48
GAP = 0.1
WORST = 1.05
"""Most that rounding may lose, of what llama.cpp's own quantizer loses."""


@dataclass(frozen=True)
class Subject:
    """A model and the ids that it goes on from."""

    name: str
    source: str | Checkpoint
    prompts: list[list[int]]


def subject(name: str) -> Subject:
    """One of `MODELS`."""
    if name == "smollm2":
        source = open_source(EMBEDDED).tokenizer
        assert source is not None
        tokenizer = load_tokenizer(source.kind, source.files, source.info)
        return Subject(EMBEDDED, EMBEDDED, [tokenizer.encode(text) for text in TEXTS])
    config = _llama4() if name == "llama4" else _llama()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, config.vocab_size, 24).tolist() for _ in TEXTS]
    return Subject(f"tiny {config.architecture}", random_checkpoint(config, 1), prompts)


def _llama() -> LlamaConfig:
    """Rows that every block divides, and scaled rotary frequencies."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "heads": 8, "kv_heads": 2, "head_dim": 32, "layers": 8}
    return replace(preset("tiny-llama3"), vocab_size=512, dtype="f32", **sizes)


def _llama4() -> LlamaConfig:
    """Layers of every kind: with a mixture and without, rotated and not."""
    pattern = AttentionPattern((3, 7), 8192, True, 8192.0, 0.1)
    moe = MixtureOfExperts(4, 1, 256, (1, 3, 5, 7))
    return replace(
        _llama(), architecture="llama4", rope_style="interleaved", moe=moe, attention=pattern, context_length=10_485_760
    )


def measure(subject: Subject, kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Export, run both, compare."""
    path, artifact = folder / f"{kind}.gguf", folder / f"{kind}.llamac"
    started = time.perf_counter()
    result = export(subject.source, to="gguf", output=path, quantize=kind, overwrite=True)
    seconds = time.perf_counter() - started
    export(subject.source, to="gguf", output=path, quantize=kind, overwrite=True, check=True)
    floats = folder / "floats.gguf"
    export(subject.source, to="gguf", output=floats, quantize="f32", overwrite=True)
    llamac.compile(path, output=artifact, tokenizer=False)
    found: dict[str, Any] = {"type": kind, "megabytes": round(result.bytes / 1e6, 1), "seconds": round(seconds, 1)}
    longest = max(map(len, subject.prompts)) + NEW
    with (
        LlamaCpp(options.llama_cpp, path, options.threads, longest) as peer,
        llamac.load(artifact, threads=options.threads, context=longest) as model,
    ):
        runs = [_Run(prompt, _greedy(model, prompt)) for prompt in subject.prompts]
        mine = [np.asarray(model.logits(run.text), np.float32) for run in runs]
        others = [peer.logits(run.text) for run in runs]
        texts = [peer.greedy(run.prompt, NEW) for run in runs]
        found |= _compared(mine, others) | {"greedy_in_common": _common([run.new for run in runs], texts)}
        if options.llama_cpp_avx2:
            found["builds"] = _builds(options, path, longest, runs, others, texts)
        if kind not in ("keep", *FLOATS):
            peer.quantize(floats, folder / "theirs.gguf", FILE_TYPES[kind])
            found |= _beside_its_quantizer(path, folder / "theirs.gguf", floats)
        found["llama_cpp_python"] = peer.version
    artifact.unlink()
    path.unlink()
    return found


@dataclass(frozen=True)
class _Run:
    """A prompt and llamac's greedy ids behind it."""

    prompt: list[int]
    new: list[int]

    @property
    def text(self) -> list[int]:
        """Every id that a next one is chosen after."""
        return [*self.prompt, *self.new][:-1]


def _compared(mine: list[Floats], others: list[Floats]) -> dict[str, Any]:
    """How far the logits of the same texts lie apart, and what is chosen by them."""
    pairs = list(zip(mine, others, strict=True))
    equal = sum(int((a.argmax(axis=1) == b.argmax(axis=1)).sum()) for a, b in pairs)
    return {
        "logits_apart": float(f"{np.mean([_distance(b, a) for a, b in pairs]):.2g}"),
        "same_choices": f"{equal} of {sum(map(len, mine))}",
        "largest_gap": round(max([0.0, *(gap for a, b in pairs for gap in _gaps(a, b))]), 3),
    }


def _common(ours: list[list[int]], theirs: list[list[int]]) -> list[int]:
    """Ids of each text before the first that differs."""
    found = []
    for left, right in zip(ours, theirs, strict=True):
        found.append(next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), NEW))
    return found


def _builds(
    options: argparse.Namespace,
    path: Path,
    longest: int,
    runs: list[_Run],
    logits: list[Floats],
    texts: list[list[int]],
) -> dict[str, Any]:
    """llama.cpp beside llama.cpp built for AVX2: the same file, the same texts."""
    with LlamaCpp(options.llama_cpp_avx2, path, options.threads, longest) as other:
        found = _compared(logits, [other.logits(run.text) for run in runs])
        return found | {"greedy_in_common": _common(texts, [other.greedy(run.prompt, NEW) for run in runs])}


def _beside_its_quantizer(path: Path, theirs: Path, floats: Path) -> dict[str, Any]:
    """How many tensors are the same, and the errors of those that are not; types that differ count as infinite."""
    ours, others, values = _tensors(path), _tensors(theirs), _tensors(floats)
    apart = [name for name in values if ours[name].data.tobytes() != others[name].data.tobytes()]
    errors = [sum(_squared_error(file[name], values[name]) for name in apart) for file in (ours, others)]
    same_types = all(ours[name].tensor_type == others[name].tensor_type for name in values)
    ratio = float(np.sqrt(errors[0] / errors[1])) if apart else 1.0
    return {"equal_tensors": f"{len(values) - len(apart)} of {len(values)}", "error": ratio if same_types else np.inf}


def _tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _squared_error(tensor: Any, exact: Any) -> float:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return float(np.square(values.reshape(exact.data.shape) - exact.data, dtype=np.float64).sum())


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    found = model.generate(prompt, max_new_tokens=NEW, temperature=0, ignore_stop_ids=True)
    return [int(i) for i in found.token_ids]


def _distance(found: Floats, wanted: Floats) -> float:
    """Root mean square of the difference, of the spread of the logits."""
    return float(np.sqrt(np.square(found - wanted).mean() / np.square(_centered(wanted)).mean()))


def _centered(rows: Floats) -> Floats:
    centered: Floats = rows - rows.mean(axis=1, keepdims=True)
    return centered


def _gaps(mine: Floats, others: Floats) -> Iterator[float]:
    """For every id that is chosen otherwise: how far llamac's own logits have llama.cpp's choice below their best."""
    rows = np.arange(len(mine))
    below = (mine.max(axis=1) - mine[rows, others.argmax(axis=1)]) / (mine.max(axis=1) - mine.min(axis=1))
    yield from below[below > 0].tolist()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = sys.executable if importlib.util.find_spec("llama_cpp") else None
    peer = os.environ.get("LLAMAC_BENCH_LLAMA_CPP", own)
    parser.add_argument("--llama-cpp", default=peer, metavar="PYTHON", help="an interpreter that has llama_cpp")
    second = os.environ.get("LLAMAC_BENCH_LLAMA_CPP_AVX2")
    parser.add_argument("--llama-cpp-avx2", default=second, metavar="PYTHON", help="one that has it built for AVX2")
    parser.add_argument("--model", choices=MODELS, action="append", help="one of them instead of all")
    parser.add_argument("--types", nargs="+", default=FORMATS["gguf"].schemes, metavar="TYPE", help="instead of all")
    parser.add_argument("--threads", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--gap", type=float, default=GAP, help="[%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args()


def main() -> int:
    """The program; 1 when a file does not pass its check, a choice differs that was not near, or rounding lost more."""
    options = _options()
    if options.llama_cpp is None:
        print("llama.cpp is needed: --llama-cpp PYTHON or LLAMAC_BENCH_LLAMA_CPP", file=sys.stderr)
        return 2
    rows, bad = [], 0
    with tempfile.TemporaryDirectory(prefix="llamac-gguf-") as place:
        for name in options.model or MODELS:
            chosen = subject(name)
            for kind in options.types:
                try:
                    row = {"model": chosen.name, **measure(chosen, kind, options, Path(place))}
                except LlamacError as error:
                    row = {"model": chosen.name, "type": kind, "failure": error.message()}
                bad += "failure" in row or row["largest_gap"] > options.gap or row.get("error", 1) > WORST
                rows.append(row)
                print(_line(row), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    else:
        print(machine_line())
    return int(bad > 0)


def _line(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"{row['model']:12} {row['type']:5} {row['failure']}"
    beside = f"  as llama.cpp's {row['equal_tensors']}, error {row['error']:.3f}" if "error" in row else ""
    if "builds" in row:
        builds = row["builds"]
        beside += f"  two builds of llama.cpp: {builds['same_choices']}, {builds['greedy_in_common']}"
    return (
        f"{row['model']:12} {row['type']:5} {row['megabytes']:6} MB in {row['seconds']:5} s  logits apart "
        f"{row['logits_apart']:<7g} same choices {row['same_choices']:>10}  greedy in common {row['greedy_in_common']}"
        f"  largest gap {row['largest_gap']}{beside}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""How far an artifact's predictions are from an fp32 reference: KL divergence, top-1 agreement, perplexity on a text.

    python bench/quality.py                                       SmolLM2-135M as it is stored, against fp32
    python bench/quality.py m.llamac --reference f32.llamac       reference: an artifact of `compile --quantize f32`
    python bench/quality.py m.llamac --reference transformers --source CHECKPOINT
                                                                  reference: transformers in fp32 on the checkpoint
    python bench/quality.py --gpu --quantize fp8:fp8-activations --kv fp8 --windows 4
                                                                  what code for GPUs computes, in the IR's interpreter

The text is cut into windows of 512 tokens, each of which starts afresh (with the model's BOS, if it wants one). At
every position but a window's last both models predict the next token from all before it in the window:

    KL        sum over the vocabulary of p (log p - log q), p the reference and q the artifact, in nats
    top-1     the share of positions where both find the same token likeliest
    perplexity  exp of the mean of -log of the probability given to the token that really follows
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _interpreted import InterpretedModel
from _machine import machine
from _reference import ArtifactReference, Floats, Reference, TransformersReference
from numpy.typing import NDArray

import llamac
from llamac.models.sources import EMBEDDED

TEXT = Path(__file__).parent / "evaluation_text.txt"
WINDOW = 512
_ROWS = 64
"""Rows widened to f64 at a time: a whole window of a 128k vocabulary would take half a gigabyte."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One value a position: KL divergence, whether the likeliest tokens agree, -log p of the next token twice."""

    divergence: Doubles
    agrees: NDArray[np.bool_]
    surprise: Doubles
    reference_surprise: Doubles


def compare(reference: Floats, found: Floats, following: list[int]) -> Comparison:
    """Compare logits [rows, vocab] of reference and artifact; `following` holds the token that really follows each."""
    parts = [
        _compare_rows(reference[at : at + _ROWS], found[at : at + _ROWS], following[at : at + _ROWS])
        for at in range(0, len(following), _ROWS)
    ]
    return join(parts)


def join(parts: list[Comparison]) -> Comparison:
    """Comparisons one after the other, as one."""
    return Comparison(
        np.concatenate([part.divergence for part in parts]),
        np.concatenate([part.agrees for part in parts]),
        np.concatenate([part.surprise for part in parts]),
        np.concatenate([part.reference_surprise for part in parts]),
    )


def _compare_rows(reference: Floats, found: Floats, following: list[int]) -> Comparison:
    log_p, log_q = _log_softmax(reference), _log_softmax(found)
    rows = np.arange(len(following))
    return Comparison(
        # Rounding can leave a sum of -1e-16 where the two agree.
        np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0),
        reference.argmax(axis=1) == found.argmax(axis=1),
        -log_q[rows, following],
        -log_p[rows, following],
    )


def _log_softmax(logits: Floats) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def windows(ids: list[int], bos_id: int | None, size: int = WINDOW) -> list[list[int]]:
    """`ids` in pieces of `size` tokens, the BOS counted; a rest of less than two tokens predicts nothing."""
    start = [] if bos_id is None else [bos_id]
    step = size - len(start)
    pieces = [start + ids[at : at + step] for at in range(0, len(ids), step)]
    return [piece for piece in pieces if len(piece) >= 2]


def evaluate(model: Any, reference: Reference, pieces: list[list[int]]) -> Iterator[Comparison]:
    """Compare a loaded artifact with the reference, window by window."""
    for piece in pieces:
        yield compare(reference.logits(piece)[:-1], model.logits(piece)[:-1], piece[1:])


def summarize(result: Comparison) -> dict[str, Any]:
    """The figures that documents quote."""
    perplexity, own = float(np.exp(result.surprise.mean())), float(np.exp(result.reference_surprise.mean()))
    return {
        "positions": int(result.divergence.size),
        "kl_mean": float(result.divergence.mean()),
        "kl_median": float(np.median(result.divergence)),
        "kl_p99": float(np.percentile(result.divergence, 99)),
        "kl_max": float(result.divergence.max()),
        "top1_agreement": float(result.agrees.mean()),
        "perplexity": perplexity,
        "reference_perplexity": own,
        "perplexity_ratio": perplexity / own,
    }


def measure(
    artifact: Path, reference: Reference, text: str, size: int, limit: int | None,
    interpreted: InterpretedModel | None = None, quantize: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Evaluate one artifact on a text, or a graph with that artifact's tokenizer; progress goes to stderr."""
    with llamac.load(artifact) as model:
        if model.vocab_size != reference.vocab_size:
            reason = f"{model.vocab_size} tokens against {reference.vocab_size} of {reference.name}"
            raise SystemExit(f"{artifact}: the vocabularies differ, {reason}")
        plan = model.plan
        ids = model.tokenizer.encode(text)
        if plan.add_bos and ids[:1] == [plan.bos_id]:
            ids = ids[1:]
        pieces = windows(ids, plan.bos_id if plan.add_bos else None, size)[:limit]
        parts = []
        for part in evaluate(interpreted or model, reference, pieces):
            parts.append(part)
            print(f"\rwindow {len(parts)} of {len(pieces)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        facts = {"artifact": str(artifact), "model": model.name, "quantization": model.manifest["quantization"]}
        if interpreted is not None:
            facts = {"model": interpreted.name, "quantization": quantize}
    return {**facts, "reference": reference.name, "window": size, "windows": len(parts), **summarize(join(parts))}


def print_table(result: dict[str, Any], text: str) -> None:
    """The figures for people."""
    print(f"{result['model']}, {result['quantization']} weights, against {result['reference']}")
    print(f"{text}: {result['positions']} positions in {result['windows']} windows of {result['window']} tokens")
    print(f"  KL divergence   mean {result['kl_mean']:.6f}   median {result['kl_median']:.6f}", end="   ")
    print(f"p99 {result['kl_p99']:.5f}   max {result['kl_max']:.4f}  nats")
    print(f"  top-1 agreement {result['top1_agreement']:.3%}")
    print(f"  perplexity      {result['perplexity']:.4f}   reference {result['reference_perplexity']:.4f}", end="   ")
    print(f"ratio {result['perplexity_ratio']:.5f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="quality.py [ARTIFACT] [options]",
    )
    parser.add_argument("artifact", nargs="?", type=Path, help="the .llamac file; SmolLM2-135M is compiled without one")
    parser.add_argument(
        "--reference", metavar="FILE|transformers", help="an artifact of --quantize f32, or transformers"
    )
    parser.add_argument("--source", default=EMBEDDED, help="the checkpoint of --reference transformers [%(default)s]")
    parser.add_argument("--quantize", default="keep", help="scheme when SmolLM2 is compiled here [%(default)s]")
    parser.add_argument("--kv", help="its cache, as for `llamac compile`")
    parser.add_argument("--gpu", action="store_true", help="interpret SmolLM2's graph for GPUs; no GPU is needed")
    parser.add_argument(
        "--text", type=Path, default=TEXT, metavar="FILE", help="UTF-8 text [bench/evaluation_text.txt]"
    )
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N", help="tokens in a window [%(default)s]")
    parser.add_argument("--windows", type=int, metavar="N", help="only the first N windows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args()


def _reference(options: argparse.Namespace, folder: Path) -> Reference:
    if options.gpu and options.reference is not None:
        raise SystemExit("--gpu compares with fp32: name no reference")
    if options.reference == "transformers":
        return TransformersReference(options.source)
    if options.reference is not None:
        return ArtifactReference(options.reference)
    if options.gpu and options.artifact is not None:
        raise SystemExit("--gpu interprets SmolLM2: name no artifact")
    if options.artifact is not None:
        raise SystemExit("name a reference: --reference FILE.llamac (compiled with --quantize f32) or transformers")
    path = folder / "reference.llamac"
    llamac.compile(EMBEDDED, output=path, quantize="f32")
    return ArtifactReference(path)


def main() -> int:
    """The program."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="llamac-quality-") as name:
        reference = _reference(options, Path(name))
        artifact, interpreted = options.artifact, None
        if options.gpu:
            interpreted = InterpretedModel(EMBEDDED, options.quantize, options.kv)
            artifact = Path(name) / "reference.llamac"  # for its tokenizer
        elif artifact is None:
            artifact = Path(name) / "smollm2-135m.llamac"
            llamac.compile(EMBEDDED, output=artifact, quantize=options.quantize, kv=options.kv)
        text = options.text.read_text(encoding="utf-8")
        result = measure(artifact, reference, text, options.window, options.windows, interpreted, options.quantize)
    if options.json:
        print(json.dumps({**result, "text": options.text.name, **machine()}))
    else:
        print_table(result, options.text.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

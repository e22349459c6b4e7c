"""Makes golden vectors with transformers in fp32, the outside oracle, and checks the ones that are packaged.

    python bench/golden.py                                     recompute the vectors in llamac/data, report differences
    python bench/golden.py --write smollm2-135m -o FILE        make vectors for a source

A vector is a prompt, the oracle's greedy continuation, and its largest logits after the prompt. There is a set for
every scheme: transformers then computes, in fp32, on weights that were quantized here, independently of the compiler's
passes. So an artifact is compared with its own weights, and what quantization costs does not hide what a wrong compile
does: on SmolLM2 int4 moves logits further than a wrong rope_theta. Greedy ids where the oracle's two largest logits are
closer than MARGIN depend on rounding: a vector ends before the first of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _reference import Change, TransformersReference

from llamac.golden import DATA, fingerprint
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.runtime.text.chat import ChatTemplate
from llamac.runtime.text.tokenizer import load_tokenizer

PROMPTS: tuple[str | list[dict[str, str]], ...] = (
    "The capital of France is",
    [{"role": "user", "content": "Name the three primary colors."}],
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at 100 degrees Celsius. It freezes at",
)
GREEDY, TOP, MARGIN = 24, 5, 1e-3
"""Greedy ids a prompt, logits kept, and the least distance between the two largest logits."""


def _in_groups(weight: Any, lowest: int, highest: int) -> Any:
    """Symmetric integers in groups of 32 along the input, one f16 scale each; what they stand for."""
    import torch

    rows, columns = weight.shape
    padding = -columns % 32
    groups = torch.nn.functional.pad(weight, (0, padding)).reshape(rows, -1, 32)
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = _fitted(groups, extreme) if lowest == -8 else (extreme.abs() / highest).half().float()
    return (_nearest(groups, scale, lowest, highest) * scale).reshape(rows, -1)[:, :columns]


def _nearest(groups: Any, scale: Any, lowest: int, highest: int) -> Any:
    import torch

    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return (groups * inverse).round().clamp(lowest, highest)


def _fitted(groups: Any, extreme: Any) -> Any:
    """The f16 scale of -8..7 with the least squared error, of three fits with the extreme at another place."""
    import torch

    best, least = torch.zeros_like(extreme), torch.full_like(extreme, torch.inf)
    for place in (8.0, 7.5, 8.5):
        quants = _nearest(groups, (extreme / -place).half().float(), -8, 7)
        length = (quants * quants).sum(dim=2, keepdim=True)
        scale = ((quants * groups).sum(dim=2, keepdim=True) / length.clamp(min=1)).half().float()
        error = (groups - quants * scale).square().sum(dim=2, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _fp8(weight: Any) -> Any:
    import torch

    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return (weight / scale.clamp(min=1e-30)).to(torch.float8_e4m3fn).float() * scale


def _same(weight: Any) -> Any:
    return weight


def _int8(weight: Any) -> Any:
    return _in_groups(weight, -127, 127)


def _int4(weight: Any) -> Any:
    return _in_groups(weight, -8, 7)


SCHEMES: dict[str, tuple[Change, Change]] = {
    "f32": (_same, _same),
    "bf16": (lambda weight: weight.bfloat16().float(),) * 2,
    "f16": (lambda weight: weight.half().float(),) * 2,
    "fp8": (_fp8, _same),
    "int8": (_int8, _int8),
    "int4": (_int4, _int8),
}
"""Scheme of `--quantize` -> the matrices of layers, and the tables, that the oracle computes on. `keep` is as f32."""


def make_vector(reference: TransformersReference, prompt_ids: list[int]) -> dict[str, Any]:
    """The golden vector of one prompt."""
    rows = reference.greedy(prompt_ids, GREEDY)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
    largest = np.take_along_axis(rows, order, axis=1)
    near = np.flatnonzero(largest[:, 0] - largest[:, 1] < MARGIN)
    steps = int(near[0]) if near.size else GREEDY
    if not steps:
        raise SystemExit(f"the first greedy id after {prompt_ids[:8]}... is a near tie: choose another prompt")
    top = [[int(i), round(float(value), 5)] for i, value in zip(order[0], largest[0], strict=True)]
    return {"prompt_ids": prompt_ids, "greedy_ids": order[:steps, 0].tolist(), "top": top}


def make_golden(source: str) -> dict[str, Any]:
    """Everything that a file in llamac/data holds, for one source."""
    checkpoint = open_source(source)
    reference = TransformersReference(source)
    prompts = [_encode(checkpoint, prompt) for prompt in PROMPTS]
    sets: dict[str, list[dict[str, Any]]] = {}
    for scheme, changes in SCHEMES.items():
        print(f"{reference.name}: {scheme}", file=sys.stderr)
        reference.set_matrices(*changes)
        sets[scheme] = [make_vector(reference, ids) for ids in prompts]
    return {
        "model": checkpoint.name,
        "fingerprint": fingerprint(checkpoint),
        "oracle": reference.name,
        "prompts": list(PROMPTS),
        "vectors": sets.pop("f32"),
        "quantized": sets,
    }


def _encode(checkpoint: Checkpoint, prompt: str | list[dict[str, str]]) -> list[int]:
    """Ids of a text, or of a conversation in the checkpoint's chat format."""
    stored, generation = checkpoint.tokenizer, checkpoint.generation
    if stored is None:
        raise SystemExit(f"{checkpoint.name} has no tokenizer for the prompts of this program")
    info = {"bos_id": generation.bos_id, "add_bos": generation.add_bos, **stored.info}
    tokenizer = load_tokenizer(stored.kind, stored.files, info)
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if checkpoint.chat_template is None:
        raise SystemExit(f"{checkpoint.name} has no chat template for the prompts of this program")
    return ChatTemplate(checkpoint.chat_template).encode(tokenizer, prompt)


def to_text(golden: dict[str, Any]) -> str:
    """JSON with a line for every list of numbers, so that a change can be read in a diff."""
    text = json.dumps(golden, indent=1)
    numbers = re.compile(r"\[[-\d\s.,\[\]]*\]")
    return numbers.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def check(path: Path, source: str) -> bool:
    """Recompute the vectors of a packaged file; whether ids agree and logits lie within 1e-3."""
    stored, fresh = json.loads(path.read_text(encoding="utf-8")), make_golden(source)
    same: bool = stored["fingerprint"] == fresh["fingerprint"]
    print(f"{path.name}: {stored['oracle']}; source {'is the recorded one' if same else 'DIFFERS'}")
    for scheme, old, new in [("f32", stored["vectors"], fresh["vectors"])] + [
        (scheme, stored["quantized"][scheme], fresh["quantized"][scheme]) for scheme in fresh["quantized"]
    ]:
        ids = [[v[key] for key in ("prompt_ids", "greedy_ids")] for v in old] == [
            [v[key] for key in ("prompt_ids", "greedy_ids")] for v in new
        ]
        drift = max(
            abs(a[1] - b[1]) for v, w in zip(old, new, strict=True) for a, b in zip(v["top"], w["top"], strict=True)
        )
        same &= ids and drift < 1e-3
        print(f"  {scheme:5}: {len(old)} vectors, ids {'agree' if ids else 'DIFFER'}, logits within {drift:.2g}")
    return same


def main() -> int:
    """The program; exit code 1 when packaged vectors are not what the oracle gives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", metavar="SOURCE", help="make vectors for a Hugging Face folder, GGUF file or preset")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where --write puts them, else stdout")
    options = parser.parse_args()
    if options.write is None:
        return 0 if check(DATA / "golden-smollm2-135m.json", "smollm2-135m") else 1
    text = to_text(make_golden(options.write))
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles the code of benchmark cases into `FOLDER/CASE-TARGET.zip`, without their weights: needs Triton, no GPU.

    python bench/gpu/compile_cases.py --target h100,h200 -o build/gpu

The files are small and travel to the machine with the GPU, where weights are made when a case is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_cases import CASES, Case

from llamac.analysis.weight_plan import PlacedWeight
from llamac.artifact.launch_plan_file import write_plan
from llamac.backends.gpu.build import build
from llamac.driver import CompiledGraph, compile_graph
from llamac.errors import LlamacError
from llamac.gpu_side import gpu_side
from llamac.ir.evaluator import WeightEvaluator
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.target import find_target


def main() -> int:
    """Compile every case for every target that is asked for; 1 when one of them could not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="h100", help="names as `llamac targets` lists them, with commas")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.case or CASES:
        for target in options.target.split(","):
            path = options.output / f"{name}-{target}.zip"
            try:
                write_case(path, CASES[name], target)
            except LlamacError as error:
                failed += 1
                path.unlink(missing_ok=True)
                print(f"{path}: {error}", file=sys.stderr)
                continue
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 1 if failed else 0


def write_case(path: Path, case: Case, target: str, checkpoint: Checkpoint | None = None) -> None:
    """One case for one target. checkpoint: the model, instead of the case's preset with random weights."""
    source = checkpoint or open_source(case.preset, random_weights=0)
    quantization = parse_quantization(case.quantize)
    compiled = compile_graph(source, quantization, case.kv, case.max_tokens, None, [], kind="gpu")
    requests = [one for one in gpu_side(compiled, [find_target(target)]).requests if not one.portable]
    built = build(requests, lambda done, total: _show(case.name, done, total))
    evaluator = WeightEvaluator(source.read_rows)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("case.json", json.dumps(_description(case, target, source, compiled), indent=1))
        archive.writestr("plan.json", write_plan(built.plans[0]))
        for name, data in sorted(built.members.items()):
            archive.writestr(name, data)
        for item in compiled.placed:
            if item.weight.tensor.rank < 2:
                archive.writestr(f"small/{item.offset}", evaluator.whole(item.weight).tobytes())


def _show(name: str, done: int, total: int) -> None:
    print(f"\r{name}: {done} of {total} kernels", end="\n" if done == total else "", file=sys.stderr)


def _description(case: Case, target: str, source: Checkpoint, compiled: CompiledGraph) -> dict[str, Any]:
    config = source.config
    names = (
        "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size", "rms_norm_eps",
        "tied_head", "context_length", "dtype",
    )  # fmt: skip
    return {
        "case": case.name,
        "target": target,
        "quantize": case.quantize,
        "kv": case.kv,
        "config": {name: getattr(config, name) for name in names},
        "max_step_tokens": compiled.limits.max_tokens,
        "weights": [_row(item) for item in compiled.placed],
    }


def _row(item: PlacedWeight) -> dict[str, Any]:
    return {
        "name": item.weight.name,
        "offset": item.offset,
        "bytes": item.nbytes,
        "format": item.format,
        "shape": list(item.shape),
        "small": item.weight.tensor.rank < 2,
    }


if __name__ == "__main__":
    sys.exit(main())

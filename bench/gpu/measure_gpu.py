"""The table of docs/benchmarks/gpu.md, on the GPU of this machine: `make gpu-bench`.

    python bench/gpu/measure_gpu.py build/gpu --out build/gpu/result.json --page docs/benchmarks/gpu.md

Needs numpy, torch and cuda-bindings, and the files that `bench/gpu/compile_cases.py` compiled for this GPU. Every step
is timed by the GPU, greedy, with the head and the choice of the token; the floor is its bytes at the rate of a copy
measured in the same run. The peer is the same model in torch, compiled, replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_cases import ROWS, Row
from gpu_limits import gpu_seconds, limits
from gpu_page import write_page
from opened_case import OpenedCase

from llamac.errors import LlamacError
from llamac.runtime.gpu.found import find_gpu

STEPS = 60
PEERS = frozenset({"1b-bf16", "8b-bf16"})
"""Cases that torch has a fast form of too."""


def main() -> None:
    """Measure what the folder has code for, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/gpu/result.json"))
    parser.add_argument("--page", type=Path, help="write the page with the result")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no row after so long")
    parser.add_argument("--no-peer", action="store_true", help="leave torch's rows out")
    options = parser.parse_args()
    _, gpu = find_gpu("cuda")
    found: dict[str, Any] = {
        "gpu": gpu.label,
        "date": datetime.date.today().isoformat(),
        "limits": limits(),
        "rows": [],
    }
    files = {path.name.rsplit("-", 1)[0]: path for path in sorted(options.folder.glob("*.zip"))}
    end = time.monotonic() + 60 * options.minutes
    for row in ROWS:
        if row.case in files and time.monotonic() < end:
            found["rows"].append(measured(row, files[row.case], found["limits"], not options.no_peer))
            print(json.dumps(found["rows"][-1]), file=sys.stderr)
            options.out.write_text(json.dumps(found, indent=1))
    if options.page:
        write_page(options.page, found)


def measured(row: Row, path: Path, roofs: dict[str, float], with_peer: bool) -> dict[str, Any]:
    """One row; `refused` says why the model does not fit, where it does not."""
    about: dict[str, Any] = {"case": row.case, "batch": row.batch, "context": row.context, "prefill": row.prefill}
    try:
        longest = max(row.prefill, row.context + 1)
        with OpenedCase(path, longest, row.batch) as case:
            if row.prefill:
                seconds = statistics.median(case.prefill_seconds(row.prefill, 5))
                about |= {"seconds": seconds, "tflops": case.prefill_operations(row.prefill) / seconds * 1e-12}
            else:
                steps = case.decode_seconds(row.batch, row.context, STEPS)
                floor = case.least_bytes(row.batch, row.context) / roofs["copy"]
                about |= {"seconds": statistics.median(steps), "least": min(steps), "most": max(steps), "floor": floor}
            if with_peer and row.case in PEERS and not row.prefill and row.batch * row.context <= 131_072:
                description, weights = case.about, case.weights
            else:
                return about
    except LlamacError as error:
        return about | {"refused": error.message()}
    return about | {"peer_seconds": peer_seconds(description, weights, row)}


def peer_seconds(about: dict[str, Any], weights: Any, row: Row) -> float:
    """Median GPU seconds of torch's decode step with the same weights."""
    import torch
    from torch_llama import TorchLlama, replayed

    model = TorchLlama(about, weights, torch.bfloat16, row.batch, row.context + 1)
    graph = replayed(model, row.batch, row.context)
    seconds = gpu_seconds(graph.replay, STEPS)
    del graph, model
    torch.cuda.empty_cache()
    return seconds


if __name__ == "__main__":
    main()

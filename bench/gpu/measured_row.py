"""One number of the table on the GPU, as a process of its own: it prints what it found as a line of JSON.

    python bench/gpu/measured_row.py limits
    python bench/gpu/measured_row.py row 3 build/gpu/8b-bf16-h100.zip
    python bench/gpu/measured_row.py peer 3 build/gpu/8b-bf16-h100.zip

The number is that of the row in `gpu_cases.ROWS`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_cases import ROWS, Row
from gpu_limits import gpu_seconds, limits
from opened_case import OpenedCase, described, read_members

from llamac.errors import LlamacError
from llamac.runtime.gpu.found import find_gpu

STEPS = 60


def main(what: str, number: str = "0", path: str = "") -> None:
    """Measure one thing and print it."""
    row = ROWS[int(number)]
    if what == "limits":
        found: dict[str, Any] = {"gpu": find_gpu("cuda")[1].label, "limits": limits()}
    elif what == "row":
        found = measured(row, Path(path))
    else:
        found = {"peer_seconds": peer_seconds(row, Path(path))}
    print(json.dumps(found), flush=True)


def measured(row: Row, path: Path) -> dict[str, Any]:
    """The step of a row; `refused` says why the model does not fit, where it does not."""
    longest = max(row.prefill, row.context + 1)
    try:
        with OpenedCase(path, longest, row.batch) as case:
            if row.prefill:
                seconds = statistics.median(case.prefill_seconds(row.prefill, 5))
                return {"seconds": seconds, "tflops": case.prefill_operations(row.prefill) / seconds * 1e-12}
            steps = case.decode_seconds(row.batch, row.context, STEPS)
            bounds = {"least": min(steps), "most": max(steps)}
            return {"seconds": statistics.median(steps), "bytes": case.least_bytes(row.batch, row.context), **bounds}
    except LlamacError as error:
        if error.code != "LLC0866":
            raise
        return {"refused": error.message()}


def peer_seconds(row: Row, path: Path) -> float:
    """Median GPU seconds of torch's decode step with the same weights."""
    import torch
    from torch_llama import TorchLlama, replayed

    about, weights = described(read_members(path))
    model = TorchLlama(about, weights, torch.bfloat16, row.batch, row.context + 1)
    return gpu_seconds(replayed(model, row.batch, row.context).replay, STEPS)


if __name__ == "__main__":
    main(*sys.argv[1:])

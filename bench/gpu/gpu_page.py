"""docs/benchmarks/gpu.md: the table of `gpu_cases.ROWS`, filled by a result of `measure_gpu.py`, empty without one.

python bench/gpu/gpu_page.py docs/benchmarks/gpu.md [build/gpu/result.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_cases import ROWS, Row

INTRODUCTION = """\
# GPU benchmarks

Written by `bench/gpu/gpu_page.py`; do not edit it here.

{state}

```
make gpu-code GPU_TARGETS=h200    # where Triton is: compiles kernels and cases into build/gpu, no GPU needed
make gpu-test                     # where the GPU is: every kernel and whole models against numpy and torch in fp32
make gpu-bench                    # the table below
```

The last two need numpy, torch, pytest, hypothesis and cuda-bindings, take less than ten minutes each and fetch nothing:
the code is in `build/gpu`, weights are random and made on the way. Run again, `gpu-bench` goes on where it ended.

*ms*: median GPU time of a whole decode step, one graph launch, greedy, with head and choice of the token. *floor*: its
bytes at the rate of a copy, measured in the same run: each weight once but the table of embeddings, keys and values
once. *torch*: the same model and weights in bf16, `torch.compile`, replayed as a CUDA graph. *goal*: on one H200.
"""

EMPTY = "**Nothing has been measured on a GPU yet**: the columns are empty until these commands have run on one."


def write_page(path: Path, found: dict[str, Any] | None) -> None:
    """The page with the result, or with empty columns."""
    state = EMPTY
    if found is not None:
        limits = found["limits"]
        state = (
            f"{found['gpu']}, {found['date']}. Measured in the same run: reading {limits['read'] / 1e12:.2f} TB/s, "
            f"copying {limits['copy'] / 1e12:.2f} TB/s (both directions counted), a product of bf16 matrices of 8192 "
            f"{limits['bf16'] / 1e12:.0f} TFLOPS."
        )
    rows = {(r["case"], r["batch"], r["context"], r["prefill"]): r for r in (found or {"rows": []})["rows"]}
    lines = ["| model | step | ms | floor ms | floor / ms | torch ms | goal |", "|---|---|---|---|---|---|---|"]
    for row in ROWS:
        lines.append(_line(row, rows.get((row.case, row.batch, row.context, row.prefill), {})))
    path.write_text(INTRODUCTION.format(state=state) + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _line(row: Row, result: dict[str, Any]) -> str:
    step = f"prefill of {row.prefill}" if row.prefill else f"batch {row.batch}, context {row.context}"
    for word in ("refused", "failed"):
        if word in result:
            return f"| {row.case} | {step} | {word}: {result[word]} | | | | {row.goal} |"
    ms = f"{result['seconds'] * 1e3:.3f}" if result else ""
    if "tflops" in result:
        ms += f" ({result['tflops']:.0f} TFLOPS)"
    floor = f"{result['floor'] * 1e3:.3f}" if "floor" in result else ""
    share = f"{result['floor'] / result['seconds']:.2f}" if "floor" in result else ""
    peer = f"{result['peer_seconds'] * 1e3:.3f}" if "peer_seconds" in result else ""
    return f"| {row.case} | {step} | {ms} | {floor} | {share} | {peer} | {row.goal} |"


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else None)

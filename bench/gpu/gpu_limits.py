"""What the GPU reaches at most, measured with torch beside every result: reading, copying, multiplying."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

GIGABYTES = 4


def gpu_seconds(run: Callable[[], Any], times: int = 10) -> float:
    """Median GPU time of a call, after two that do not count."""
    import torch

    found = []
    for number in range(times + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if number > 1:
            found.append(start.elapsed_time(stop) * 1e-3)
    return statistics.median(found)


def limits() -> dict[str, float]:
    """Bytes a second of a read-only stream and of a copy (both directions counted), bf16 operations a second."""
    import torch

    bandwidth = _bandwidth()
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return bandwidth | {"bf16": 2.0 * n**3 / gpu_seconds(lambda: a @ b)}


def _bandwidth() -> dict[str, float]:
    import torch

    values = torch.ones(GIGABYTES << 28, dtype=torch.float32, device="cuda")
    into = torch.empty_like(values)
    reading = min(gpu_seconds(values.sum), gpu_seconds(values.amax))
    copying = gpu_seconds(lambda: into.copy_(values))
    size = values.numel() * 4
    return {"read": size / reading, "copy": 2 * size / copying}

"""Pictures through a whole runtime on a GPU that Triton's interpreter plays.

python interpreted_pictures.py ARTIFACT ARCHITECTURE OUT.npz: as `interpreted_gpu`, for the prompts of stdin, which are
pairs of a text and the sizes of its pictures.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

from interpreted_gpu import InterpretedGpu

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
import numpy as np
import torch
from gpu_stub_library import Stub, vendor_of
from picture_prompts import generated

from llamac.runtime.device_gpu import GpuDevice
from llamac.runtime.loader import load


def main(path: str, architecture: str, out: str) -> None:
    """Answer the prompts on one interpreted GPU."""
    torch.set_num_threads(1)
    faulthandler.enable()
    stub = Stub(vendor_of(architecture))
    stub.be(architecture)
    gpu = InterpretedGpu(stub)
    prompts = json.loads(sys.stdin.read())
    with load(path, device=stub.vendor, sequences=len(prompts), images=2, context=256) as model:
        assert isinstance(model._device, GpuDevice)
        gpu.learn(model._device.launch_plan)
        found = generated(model, prompts)
        assert not gpu.failure, gpu.failure
    assert not stub.violations() and (stub.blocks, stub.handles) == (0, 0), stub.violations()
    np.savez(out, launches=gpu.launches, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

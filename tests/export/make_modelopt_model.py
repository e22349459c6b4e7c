"""Makes tests/export/modelopt_model/: a small Llama 4 in bf16, and what ModelOpt's own export makes of it in fp8.

    pip install "nvidia-modelopt[hf]==0.47.0" && python tests/export/make_modelopt_model.py

It runs on a CPU. The routers and the head stay bf16; activations are calibrated on random ids.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from tiny_llama4 import Tiny4, make_model

FOLDER = Path(__file__).parent / "modelopt_model"
SHAPE = Tiny4(layers=2, heads=2, kv_heads=1, hidden=32, inner=48, expert_inner=40, vocab=64, dtype="bf16")
KEPT = ("config.json", "model.safetensors", "hf_quant_config.json")


def main() -> None:
    """Both folders, with nothing in them but what a reader needs."""
    import modelopt.torch.quantization as quantization
    from modelopt.torch.export import export_hf_checkpoint

    model = make_model(SHAPE).to(torch.bfloat16)
    model.config.architectures = ["Llama4ForCausalLM"]
    model.save_pretrained(FOLDER / "plain")
    ids = torch.randint(0, SHAPE.vocab, (4, 32), generator=torch.Generator().manual_seed(0))
    quantization.quantize(model, quantization.FP8_DEFAULT_CFG, forward_loop=lambda quantized: quantized(ids))
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=FOLDER / "fp8")
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.name not in KEPT:
            path.unlink()


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    main()

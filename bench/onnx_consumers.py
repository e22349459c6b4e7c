"""The standard ONNX form in other runtimes: OpenVINO's logits, and the text that optimum's models generate from it.

    python bench/onnx_consumers.py --openvino PYTHON --optimum PYTHON

PYTHON: interpreters that have openvino, and optimum-intel and optimum-onnx with what they need; --source names another
model than SmolLM2-135M. Exits with 1 when anything differs: OpenVINO's f32 logits of a prompt and of a token with a
past against llamac's interpreter (1e-4 of the largest), optimum's greedy ids against onnxruntime's on the same file,
alone and in a batch with padding before the shorter text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llamac.backends.onnx.sessions import OnnxSession
from llamac.export.entry import export
from llamac.export.onnx_check import greedy, prompt_of, reference_logits, relative_error
from llamac.export.request import ExportRequest
from llamac.models.sources import EMBEDDED, open_source

BOUND = 1e-4
NEW = 12

OPENVINO = """
import json, sys
import numpy as np
import openvino
folder, ids = sys.argv[1], json.loads(sys.argv[2])
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
model = openvino.Core().compile_model(f"{folder}/model.onnx", "CPU", exact)
pasts = {i.any_name: i.partial_shape for i in model.inputs if i.any_name.startswith("past")}
state = {n: np.zeros((1, s[1].get_length(), 0, s[3].get_length()), np.float32) for n, s in pasts.items()}
rows, start = [], 0
for part in (ids[:-1], ids[-1:]):
    stop = start + len(part)
    places = np.arange(start, stop, dtype=np.int64)[None]
    feeds = {"input_ids": np.array([part]), "attention_mask": np.ones((1, stop), np.int64), "position_ids": places}
    found = model(feeds | state)
    rows.append(found["logits"][0])
    state = {n: found[n.replace("past_key_values", "present")] for n in pasts}
    start = stop
np.save(f"{folder}/openvino.npy", np.concatenate(rows))
print(json.dumps({"openvino": openvino.__version__}))
"""

OPTIMUM = """
import json, sys
from importlib.metadata import version
import torch
from optimum.intel import OVModelForCausalLM
from optimum.onnxruntime import ORTModelForCausalLM
folder, prompts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
width = max(map(len, prompts))
ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
models = {
    "optimum-intel": OVModelForCausalLM.from_pretrained(folder, from_onnx=True, ov_config=exact),
    "optimum-onnx": ORTModelForCausalLM.from_pretrained(folder),
}
found = {}
for name, model in models.items():
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    batch = model.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
    alone = [model.generate(torch.tensor([p]), **options)[0, len(p):].tolist() for p in prompts]
    found[name] = {"version": version(name), "batch": batch, "alone": alone}
print(json.dumps(found))
"""


def answer(python: str, script: str, *arguments: object) -> Any:
    """The last line that a script prints in another interpreter, as JSON."""
    command = [python, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def ids_after(session: OnnxSession, prompt: list[int]) -> list[int]:
    """The greedy ids after a prompt."""
    session.restart()
    return greedy(session, prompt, NEW)


def main() -> int:
    """Export, run every consumer that was named, compare."""
    options = _options()
    checkpoint, failed = open_source(options.source), 0
    with tempfile.TemporaryDirectory(prefix="llamac-onnx-") as place:
        folder = Path(place) / "model"
        export(checkpoint, to="onnx", output=folder, quantize=options.quantize)
        ids = prompt_of(checkpoint)
        if options.openvino:
            version = answer(options.openvino, OPENVINO, folder, json.dumps(ids))["openvino"]
            request = ExportRequest(checkpoint, "onnx", options.quantize, {}, 1 << 30, [], lambda *_: None)
            error = relative_error(np.load(folder / "openvino.npy"), reference_logits(request, ids))
            print(f"OpenVINO {version}: logits within {error:.1e} of the interpreter's, allowed {BOUND:.0e}")
            failed += not error <= BOUND
        if options.optimum:
            prompts = [ids[:5], ids]
            # onnxruntime rounds the activations of products with integers to 8 bits; OpenVINO was told not to.
            sessions = {"optimum-intel": OnnxSession(folder, exact=True), "optimum-onnx": OnnxSession(folder)}
            for name, found in answer(options.optimum, OPTIMUM, folder, json.dumps(prompts), NEW).items():
                wanted = [ids_after(sessions[name], prompt) for prompt in prompts]
                same = found["alone"] == wanted and found["batch"] == wanted
                print(f"{name} {found['version']}: {'the same ids' if same else f'{found} for {wanted}'}")
                failed += not same
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=EMBEDDED)
    parser.add_argument("--quantize", default="f32")
    parser.add_argument("--openvino", metavar="PYTHON")
    parser.add_argument("--optimum", metavar="PYTHON")
    found = parser.parse_args()
    if not (found.openvino or found.optimum):
        parser.error("name an interpreter with --openvino or --optimum")
    return found


if __name__ == "__main__":
    sys.exit(main())

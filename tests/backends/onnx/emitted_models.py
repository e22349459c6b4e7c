"""Tiny models through the ONNX backend and onnxruntime: what the tests of this folder compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from llamac.backends.onnx.contributed import emit_contributed
from llamac.backends.onnx.emit import MODEL, Emitted, emit_standard
from llamac.backends.onnx.emitter import Settings
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.layer_kinds import is_uniform, layer_counts
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.passes.pipelines import onnx_pipeline, parse_quantization
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pipeline

Floats = NDArray[np.float32]
Notes = list[tuple[str, str, str, str]]


def lowered(checkpoint: Checkpoint, scheme: str = "keep", joined: bool = False) -> Module:
    """The model-level module in a scheme."""
    config, tensors = checkpoint.config, checkpoint.tensors
    module = build_graph(config, tensors)
    steps = onnx_pipeline(layer_counts(config), parse_quantization(scheme), is_uniform(config, tensors), joined)
    run_pipeline(module, steps, PassContext(checkpoint.read_rows))
    return module


def emitted(
    checkpoint: Checkpoint, form: str, scheme: str = "keep", notes: Notes | None = None, **settings: Any
) -> Emitted:
    """The graph of a form, "standard" or "contributed", products in f32 unless `accuracy` says otherwise."""
    made = Settings(**({"accuracy": 1, "context": checkpoint.config.context_length} | settings))
    entries: Notes = [] if notes is None else notes
    emit = emit_contributed if form == "contributed" else emit_standard
    module = lowered(checkpoint, scheme, form == "contributed")
    return emit(module, made, lambda *entry: entries.append(entry), {})


def written(checkpoint: Checkpoint, folder: Path, form: str, scheme: str = "keep", **options: Any) -> Emitted:
    """A checked model in `folder`."""
    found = emitted(checkpoint, form, scheme, **options)
    found.write(folder, WeightEvaluator(checkpoint.read_rows), 1 << 26, lambda nbytes: None)
    onnx.checker.check_model(str(folder / MODEL), full_check=form == "standard")
    return found


class Running:
    """A written model in onnxruntime, with a batch of sequences and their past."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(str(folder / MODEL), options, ["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.past: dict[str, Floats] = {}
        self.mask = np.zeros((0, 0), np.int64)

    def step(self, ids: Any, mask: Any = None) -> Floats:
        """Logits of [batch, tokens] ids; `mask` says which of them are text."""
        rows = np.array(ids, np.int64)
        seen = np.ones_like(rows) if mask is None else np.array(mask, np.int64)
        self.mask = np.concatenate([self.mask.reshape(len(rows), -1), seen], axis=1)
        places = np.where(self.mask == 0, 1, np.cumsum(self.mask, axis=1) - 1)
        feeds = {"input_ids": rows, "attention_mask": self.mask, "position_ids": places[:, -rows.shape[1] :]}
        wanted = {}
        for given in self.session.get_inputs():
            if given.name in feeds:
                wanted[given.name] = feeds[given.name]
            else:
                empty = np.zeros((len(rows), given.shape[1], 0, given.shape[3]), np.float32)
                wanted[given.name] = self.past.get(given.name, empty)
        found = dict(zip(self.outputs, self.session.run(None, wanted), strict=True))
        self.past = {name.replace("present", "past_key_values"): found[name] for name in self.outputs[1:]}
        return np.asarray(found["logits"])


def interpreted(module: Module, checkpoint: Checkpoint, ids: list[int]) -> Floats:
    """The interpreter's logits after every id."""
    config = checkpoint.config
    empty = np.zeros((config.kv_heads, 0, config.head_dim), np.float32)
    inputs: dict[str, Any] = {argument.name: empty for argument in module.step.arguments}
    inputs |= {"ids": np.array(ids, np.int32), "positions": np.arange(len(ids), dtype=np.int32)}
    return np.asarray(Interpreter(module, checkpoint.read_rows).run(inputs)[0], np.float32)

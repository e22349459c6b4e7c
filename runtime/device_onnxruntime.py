"""The device of the ONNX Runtime target: a session over the file's graph, and its weights where they lie in the file.

ONNX Runtime maps every weight from the artifact itself. Keys, values and logits are bound to arrays of the runtime:
nothing is copied on the way in or out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .kv_pages import Past
from .one_sequence import OneSequenceDevice
from .onnx_places import moved
from .run_plan import CodeTarget, RunPlan

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
SIDES = ("key", "value")

INTEGERS = frozenset({"u8", "i8"})
"""Formats of weights whose products need them packed in another order, which ONNX Runtime does as it loads them."""


def open_onnxruntime(
    plan: RunPlan,
    target: CodeTarget,
    read: Callable[[str], bytes],
    file: tuple[Path, int],
    tensors: Sequence[Mapping[str, Any]],
    page_counts: Sequence[int],
    threads: int,
) -> OneSequenceDevice:
    """The device of `target`; `file` is where the member of its weights begins, `tensors` what lies in it.

    LLC0938 when ONNX Runtime is not installed or refuses the graph, LLC0711 for a graph that does not fit the file.
    """
    path, start = file
    graph = moved(read(target.code), path.name, start, target.code)
    repacks = any(row["format"] in INTEGERS for row in tensors)
    backend = OnnxRuntimeBackend(graph, path.absolute().parent, plan, threads, repacks, target.code)
    return OneSequenceDevice(backend, plan.memory, page_counts, plan.token_ids)


def _library() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        reason = f"it cannot be imported: {error}"
        raise LlamacError("LLC0938", "onnxruntime", reason, "pip install onnxruntime") from error


def _unfit(where: str, reason: str) -> LlamacError:
    return LlamacError("LLC0711", where, reason, "get the file again from its source, or compile it again")


class OnnxRuntimeBackend:
    """A `SequenceBackend` over a session of ONNX Runtime on the CPU."""

    cache_dtype: npt.DTypeLike = np.float32

    def __init__(
        self, graph: bytes, folder: Path, plan: RunPlan, threads: int, repacks: bool, where: str = "onnx/model.onnx"
    ) -> None:
        library = _library()
        self.name = f"ONNX Runtime {library.__version__}"
        self.vocab_size = plan.vocab_size
        self.threads = threads
        self._session = _session(library, graph, folder, threads, repacks, self.name)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._pasts, self._presents, shapes = _states(self._session, plan, where)
        self.cache_shapes: Sequence[tuple[int, int]] = shapes

    def forward(self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s) -> tuple[Float32s, Past]:
        """As `SequenceBackend.forward`."""
        tokens, length = ids.size, int(past[0].shape[1]) + ids.size
        logits = np.empty((1, tokens, self.vocab_size), np.float32)
        present = [np.empty((heads, length, size), np.float32) for heads, size in self.cache_shapes for _ in SIDES]
        binding = self._session.io_binding()
        given = {IDS: ids[None].astype(np.int64), POSITIONS: positions[None].astype(np.int64)}
        given[MASK] = np.ones((1, length), np.int64)
        given |= {name: array[None] for name, array in zip(self._pasts, past, strict=True)}
        for name, array in given.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, array)
        for name, out in ((LOGITS, logits), *zip(self._presents, (a[None] for a in present), strict=True)):
            binding.bind_output(name, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            reason = f"step of {tokens} tokens: {_first_line(error)}"
            raise LlamacError("LLC0806", self.name, reason, "check the file with `llamac verify`") from error
        return logits[0][rows], present

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def _session(library: Any, graph: bytes, folder: Path, threads: int, repacks: bool, name: str) -> Any:
    options = library.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not repacks:  # else every matrix of floats would be in memory a second time
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return library.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        hint = "upgrade onnxruntime, or compile the model again"
        raise LlamacError("LLC0938", name, f"it refuses the graph: {_first_line(error)}", hint) from error


def _states(session: Any, plan: RunPlan, where: str) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """The names of past and present, k.0, v.0, k.1 ..., and each layer's KV heads and head size."""
    layers = sorted(layer for cache in plan.memory.caches for layer in cache.layers)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    places = list(itertools.product(range(len(layers)), SIDES))
    pasts = [f"past_key_values.{layer}.{side}" for layer, side in places]
    presents = [f"present.{layer}.{side}" for layer, side in places]
    missing = [n for n in (*pasts, *presents, LOGITS, IDS) if n not in inputs and n not in outputs]
    if missing or layers != list(range(len(layers))):
        raise _unfit(where, f"the graph has no {missing[0] if missing else 'place for every layer of the caches'}")
    shapes = [inputs[name] for name in pasts[::2]]
    if any(not isinstance(shape[1], int) or not isinstance(shape[3], int) for shape in shapes):
        raise _unfit(where, "the sizes of its keys are not fixed")
    return pasts, presents, [(shape[1], shape[3]) for shape in shapes]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

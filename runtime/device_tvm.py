"""The device of TVM targets: an executable of TVM's virtual machine that knows one sequence with explicit past.

The weights are those of the mapped file, seen by TVM where they lie. TVM is imported when such a target is opened.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamac.artifact.tvm_plan import TvmPlan, TvmState, TvmWeight, read_tvm_plan, require_tvm
from llamac.errors import LlamacError

from .host_cpu import allowed_cpus
from .kv_pages import Past
from .one_sequence import OneSequenceDevice
from .run_plan import CodeTarget, RunPlan

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Of every array that TVM's code reads, in bytes."""

_TEXT_INPUTS = ("token_ids", "positions", "logit_rows")


def open_tvm(
    plan: RunPlan,
    target: CodeTarget,
    read: Callable[[str], bytes],
    weights: Bytes,
    tensors: Sequence[Mapping[str, Any]],
    page_counts: Sequence[int],
    threads: int,
) -> OneSequenceDevice:
    """The device of `target`; `weights` is the member of its layout, `tensors` where the weights lie in it.

    LLC0940, LLC0941 (TVM), LLC0943 for a target that is source only, LLC0711 for a plan that does not fit the file.
    """
    if target.kind != "tvm":
        raise source_only(target.name)
    require_tvm()
    calls = read_tvm_plan(read(target.code), target.code)
    if set(calls.inputs) - set(_TEXT_INPUTS) - {"image_rows", "image_embeddings"}:
        reason = "its code takes vision tokens, which this device does not keep"
        raise LlamacError("LLC0943", target.name, reason, "run the model on a CPU target")
    places = {t["name"]: (int(t["offset"]), int(t["bytes"])) for t in tensors}
    arrays = [_weight(row, weights, places, target.code) for row in calls.weights]
    machine = load_machine(read(calls.code))
    backend = TvmBackend(machine, calls, arrays, plan, threads)
    return OneSequenceDevice(backend, plan.memory, page_counts, plan.token_ids)


def source_only(name: str) -> LlamacError:
    """What running a target is that TVM has only written the source of."""
    reason = "the file holds the source of its kernels, which was not compiled or run"
    hint = "compile the model with --target tvm:llvm or a CPU or GPU target, or take the source out with unzip"
    return LlamacError("LLC0943", name, reason, hint)


def load_machine(code: bytes) -> Any:
    """TVM's virtual machine over a shared library, on the CPU."""
    # Read by TVM when its first threads start: it would take half of the processors, and tie the caller to the first.
    os.environ.setdefault("TVM_NUM_THREADS", str(len(allowed_cpus())))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm
    from tvm.runtime.vm import VirtualMachine

    with tempfile.TemporaryDirectory(prefix="llamac-tvm-") as folder:
        path = Path(folder) / "code.so"
        path.write_bytes(code)
        module = tvm.runtime.load_module(str(path))  # loaded when this returns: the file may go
    return VirtualMachine(module, tvm.cpu())


_SHARE_ALL_CORES = -3
"""Of TVM's ways to place threads: wherever the system wants, on these processors."""


def use_threads(count: int) -> None:
    """Let TVM's code work with so many threads where it is called from this one."""
    import tvm

    processors = [str(cpu) for cpu in allowed_cpus()]
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, min(count, len(processors)), processors)


def _weight(row: TvmWeight, data: Bytes, places: Mapping[str, tuple[int, int]], where: str) -> Array:
    """A weight's bytes as the array that the code sees."""
    offset, nbytes = places.get(row.name, (0, -1))
    if nbytes != row.nbytes or offset % ALIGNMENT or offset + nbytes > data.nbytes:
        reason = f"takes {row.nbytes} bytes of {ascii(row.name)[:60]}, the manifest has {nbytes}"
        raise LlamacError("LLC0711", where, reason, "get the file again from its source, or compile it again")
    return data[offset : offset + nbytes].view(row.dtype).reshape(row.shape)


def as_tensor(array: Array) -> Any:
    """`array` as TVM sees it: in place where it is aligned, else a copy. TVM does not write to it."""
    import tvm

    array = np.ascontiguousarray(array)
    if array.size == 0 or array.ctypes.data % ALIGNMENT:
        return tvm.runtime.tensor(array)
    if not array.flags.writeable:
        # DLPack refuses what is read only, as the mapped weights are.
        memory: Any = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
        array = np.frombuffer(memory, array.dtype).reshape(array.shape)
    return tvm.runtime.from_dlpack(array)


class TvmBackend:
    """A `SequenceBackend` over TVM's virtual machine."""

    name = "TVM code"

    def __init__(self, machine: Any, calls: TvmPlan, weights: Sequence[Array], plan: RunPlan, threads: int) -> None:
        self.vocab_size = plan.vocab_size
        self.threads = threads
        layers = [cache.layers for cache in plan.memory.caches]
        keys = {_model_layer(state, layers): state for state in calls.past if state.part == 0}
        order = [2 * _model_layer(state, layers) + state.part for state in calls.past]
        if sorted(order) != list(range(2 * len(keys))):
            reason = "its layers are not those of the manifest's caches"
            raise LlamacError("LLC0711", calls.code, reason, "compile the model again")
        self.cache_shapes: Sequence[tuple[int, int]] = [(keys[n].kv_heads, keys[n].head_dim) for n in sorted(keys)]
        self.cache_dtype: npt.DTypeLike = np.dtype(calls.past[0].dtype)
        self._order, self._inputs, self._image_width = order, calls.inputs, calls.image_width
        self._held = list(weights)  # the tensors below are views of their memory
        self._weights = [as_tensor(array) for array in weights]
        self._run: Any = machine[calls.function]
        self._caller = 0

    def forward(self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s) -> tuple[Float32s, Past]:
        """As `SequenceBackend.forward`."""
        wanted = rows if rows.size else np.zeros(1, np.int32)
        given: dict[str, Array] = {"token_ids": ids, "positions": positions, "logit_rows": wanted}
        given |= self._no_pictures(ids.size)
        inputs = [as_tensor(given[name]) for name in self._inputs]
        states = [as_tensor(past[place]) for place in self._order]
        found = [np.from_dlpack(part) for part in self._called([*self._weights, *inputs, *states])]
        present: list[Array] = [found[0]] * len(states)
        for place, part in zip(self._order, found[1:], strict=True):
            present[place] = part
        return np.asarray(found[0][: rows.size], np.float32), present

    def _called(self, arguments: Sequence[Any]) -> Any:
        if threading.get_ident() != self._caller:  # TVM keeps a pool of threads for each thread that calls it
            use_threads(self.threads)
            self._caller = threading.get_ident()
        try:
            return self._run(*arguments)
        except Exception as error:  # TVM raises whatever its C++ side threw
            lines = str(error).strip().splitlines() or [type(error).__name__]
            hint = "check the file with `llamac verify`"
            raise LlamacError("LLC0806", self.name, lines[-1][:200], hint) from None

    def _no_pictures(self, tokens: int) -> dict[str, Array]:
        """What a step without pictures says of them."""
        return {
            "image_rows": np.full(tokens, -1, np.int32),
            "image_embeddings": np.zeros((1, self._image_width), np.float32),
        }

    def close(self) -> None:
        """Let go of code and weights."""
        self._run, self._weights, self._held = None, [], []


def _model_layer(state: TvmState, layers: Sequence[Sequence[int]]) -> int:
    """The number of a layer in the model; -1 for one that the manifest does not have."""
    known = state.cache < len(layers) and state.layer < len(layers[state.cache])
    return layers[state.cache][state.layer] if known else -1

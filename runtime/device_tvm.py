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
from .sequence_pictures import SequencePictures

Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Of every array that TVM's code reads, in bytes."""

_TEXT_INPUTS = ("token_ids", "positions", "logit_rows")
_PICTURE_INPUTS = ("image_rows", "image_embeddings", "vision_start", "vision_stop")


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
    unknown = set(calls.inputs) - set(_TEXT_INPUTS) - set(_PICTURE_INPUTS)
    if unknown:
        reason = f"its code takes {min(unknown)!a}, which this version does not know"
        raise LlamacError("LLC0943", target.name, reason, "upgrade llamac, or compile the model again")
    places = {t["name"]: (int(t["offset"]), int(t["bytes"])) for t in tensors}

    def function(called: TvmPlan, where: str) -> TvmFunction:
        arrays = [_weight(row, weights, places, where) for row in called.weights]
        return TvmFunction(load_machine(read(called.code)), called, arrays, threads)

    encoder = None
    if calls.encoder and plan.image is not None:
        encoder = function(read_tvm_plan(read(calls.encoder), calls.encoder), calls.encoder)
    backend = TvmBackend(function(calls, target.code), encoder, plan)
    return OneSequenceDevice(backend, plan.memory, page_counts, plan.token_ids, plan.image)


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


class TvmFunction:
    """One function of TVM's code with its weights."""

    def __init__(self, machine: Any, calls: TvmPlan, weights: Sequence[Array], threads: int) -> None:
        self.calls, self.threads = calls, threads
        self._held = list(weights)  # the tensors below are views of their memory
        self._weights = [as_tensor(array) for array in weights]
        self._run: Any = machine[calls.function]
        self._caller = 0

    def __call__(self, inputs: Mapping[str, Array], past: Sequence[Array]) -> list[Array]:
        """The results, for inputs by name and what comes behind them; LLC0806 when TVM refuses."""
        if threading.get_ident() != self._caller:  # TVM keeps a pool of threads for each thread that calls it
            use_threads(self.threads)
            self._caller = threading.get_ident()
        given = [as_tensor(inputs[name]) for name in self.calls.inputs]
        try:
            found = self._run(*self._weights, *given, *(as_tensor(array) for array in past))
        except Exception as error:  # TVM raises whatever its C++ side threw
            lines = str(error).strip().splitlines() or [type(error).__name__]
            hint = "check the file with `llamac verify`"
            raise LlamacError("LLC0806", TvmBackend.name, lines[-1][:200], hint) from None
        return [np.from_dlpack(part) for part in found]

    def close(self) -> None:
        """Let go of code and weights."""
        self._run, self._weights, self._held = None, [], []


class TvmBackend:
    """A `SequenceBackend` over TVM's virtual machine."""

    name = "TVM code"

    def __init__(self, step: TvmFunction, encoder: TvmFunction | None, plan: RunPlan) -> None:
        calls = step.calls
        self.vocab_size = plan.vocab_size
        self.threads = step.threads
        self.encodes = encoder is not None
        caches = plan.memory.caches
        places = _past_places(calls, [cache.layers for cache in caches], [cache.cross for cache in caches])
        self._order = places
        shapes = {place // 2: (s.kv_heads, s.head_dim) for place, s in zip(places, calls.past, strict=True)}
        self.cache_shapes: Sequence[tuple[int, int]] = [shapes[number] for number in sorted(shapes)]
        self.cache_dtype: npt.DTypeLike = np.dtype(calls.past[0].dtype)
        crossing = [s for s in calls.past if s.cache < len(caches) and caches[s.cache].cross]
        self._unseen = [np.zeros((s.kv_heads, 1, s.head_dim), s.dtype) for s in crossing]
        self._step, self._encoder, self._image_width = step, encoder, calls.image_width

    def forward(
        self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s, pictures: SequencePictures | None
    ) -> tuple[Float32s, Past]:
        """As `SequenceBackend.forward`."""
        wanted = rows if rows.size else np.zeros(1, np.int32)
        inputs: dict[str, Array] = {"token_ids": ids, "positions": positions, "logit_rows": wanted}
        inputs |= self._no_pictures(ids.size) | _given(pictures)
        # Rows that see no vision tokens need some to look away from all the same.
        vision = pictures.vision if pictures is not None and pictures.vision else self._unseen
        states = [*past, *vision]
        found = self._step(inputs, [states[place] for place in self._order])
        written = [place for place in self._order if place < len(past)]
        present: list[Array] = [found[0]] * len(past)
        for place, part in zip(written, found[1:], strict=True):
            present[place] = part
        return np.asarray(found[0][: rows.size], np.float32), present

    def _no_pictures(self, tokens: int) -> dict[str, Array]:
        """What a step without pictures says of them."""
        nothing = np.zeros(tokens, np.int32)
        return {
            "image_rows": np.full(tokens, -1, np.int32),
            "image_embeddings": np.zeros((1, self._image_width), np.float32),
            "vision_start": nothing,
            "vision_stop": nothing,
        }

    def encode(self, pixels: Float32s, aspect_ratio: int, tokens: int) -> Past:
        """As `SequenceBackend.encode`."""
        assert self._encoder is not None
        shape, positions = np.array([aspect_ratio], np.int32), np.arange(tokens, dtype=np.int32)
        return self._encoder({"pixels": pixels, "aspect_ratio": shape, "positions": positions}, [])

    def close(self) -> None:
        """Let go of code and weights."""
        self._step.close()
        if self._encoder is not None:
            self._encoder.close()


def _given(pictures: SequencePictures | None) -> dict[str, Array]:
    """The picture arguments of a step by name, those that there are."""
    found = {name: getattr(pictures, name, None) for name in _PICTURE_INPUTS}
    return {name: value for name, value in found.items() if value is not None}


def _past_places(calls: TvmPlan, layers: Sequence[Sequence[int]], crosses: Sequence[bool]) -> list[int]:
    """Where each state of the code's past stands in the runtime's: layers that attend to the text, then the others.

    LLC0711 when they are not the layers of the manifest's caches.
    """
    known = sorted((cross, layer) for cross, own in zip(crosses, layers, strict=True) for layer in own)
    numbers = {layer: number for number, (_, layer) in enumerate(known)}
    order = [2 * numbers.get(_model_layer(state, layers), -1) + state.part for state in calls.past]
    if sorted(order) != list(range(2 * len(known))):
        reason = "its layers are not those of the manifest's caches"
        raise LlamacError("LLC0711", calls.code, reason, "compile the model again")
    return order


def _model_layer(state: TvmState, layers: Sequence[Sequence[int]]) -> int:
    """The number of a layer in the model; -1 for one that the manifest does not have."""
    known = state.cache < len(layers) and state.layer < len(layers[state.cache])
    return layers[state.cache][state.layer] if known else -1

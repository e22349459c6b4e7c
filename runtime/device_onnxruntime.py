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
from .sequence_pictures import SequencePictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
IMAGE_ROWS, IMAGE_EMBEDDINGS = "image_rows", "image_embeddings"
CROSS_MASK, PIXELS, SHAPES = "cross_attention_mask", "pixel_values", "aspect_ratio_ids"
SIDES = ("key", "value")

ENCODER_MEMBER = "onnx/vision_encoder.onnx"
"""The graph of the image encoder, of a model that has one."""

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
    folder = path.absolute().parent
    encoder = None
    if plan.image is not None:
        encoder = moved(read(ENCODER_MEMBER), path.name, start, ENCODER_MEMBER)
    backend = OnnxRuntimeBackend(graph, folder, plan, threads, repacks, target.code, encoder)
    return OneSequenceDevice(backend, plan.memory, page_counts, plan.token_ids, plan.image)


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
        self,
        graph: bytes,
        folder: Path,
        plan: RunPlan,
        threads: int,
        repacks: bool,
        where: str = "onnx/model.onnx",
        encoder: bytes | None = None,
    ) -> None:
        library = _library()
        self.name = f"ONNX Runtime {library.__version__}"
        self.vocab_size = plan.vocab_size
        self.threads = threads
        self._session = _session(library, graph, folder, threads, repacks, self.name)
        self._encoder = None if encoder is None else _session(library, encoder, folder, threads, repacks, self.name)
        self.encodes = encoder is not None
        self._inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._pasts, self._presents, self._cross = _states(self._session, plan, where)
        self.cache_shapes: Sequence[tuple[int, int]] = [
            (self._inputs[name][1], self._inputs[name][3]) for name in (*self._pasts[::2], *self._cross[::2])
        ]

    def forward(
        self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s, pictures: SequencePictures | None
    ) -> tuple[Float32s, Past]:
        """As `SequenceBackend.forward`."""
        tokens, length = ids.size, int(past[0].shape[1]) + ids.size
        logits = np.empty((1, tokens, self.vocab_size), np.float32)
        present = [np.empty((heads, length, size), np.float32) for heads, size in self._own_shapes for _ in SIDES]
        binding = self._session.io_binding()
        given = {IDS: ids[None].astype(np.int64), POSITIONS: positions[None].astype(np.int64)}
        given[MASK] = np.ones((1, length), np.int64)
        given |= {name: array[None] for name, array in zip(self._pasts, past, strict=True)}
        given |= self._pictures(tokens, pictures or SequencePictures())
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

    @property
    def _own_shapes(self) -> Sequence[tuple[int, int]]:
        """Of the layers that attend to the text."""
        return self.cache_shapes[: len(self._pasts) // 2]

    def _pictures(self, tokens: int, pictures: SequencePictures) -> dict[str, npt.NDArray[Any]]:
        """The picture inputs of the graph, those that it has."""
        if IMAGE_ROWS in self._inputs:
            width = self._inputs[IMAGE_EMBEDDINGS][1]
            rows = np.full(tokens, -1) if pictures.image_rows is None else pictures.image_rows
            embeddings = pictures.image_embeddings
            shown = np.zeros((1, width), np.float32) if embeddings is None else embeddings
            return {IMAGE_ROWS: rows[None].astype(np.int64), IMAGE_EMBEDDINGS: shown}
        if not self._cross:
            return {}
        vision = pictures.vision or [np.zeros((h, 0, d), np.float32) for h, d in self._cross_shapes for _ in SIDES]
        at = np.arange(vision[0].shape[1])
        seen = np.zeros((tokens, at.size), np.int64)
        if pictures.vision_start is not None and pictures.vision_stop is not None:
            seen[:] = (at >= pictures.vision_start[:, None]) & (at < pictures.vision_stop[:, None])
        # Every vision token is a picture of its own, of one tile of one token.
        return {CROSS_MASK: seen[None, :, :, None]} | {n: a[None] for n, a in zip(self._cross, vision, strict=True)}

    @property
    def _cross_shapes(self) -> Sequence[tuple[int, int]]:
        """Of the layers that attend to vision tokens."""
        return self.cache_shapes[len(self._pasts) // 2 :]

    def encode(self, pixels: Float32s, aspect_ratio: int, tokens: int) -> Past:
        """As `SequenceBackend.encode`."""
        session = self._encoder
        assert session is not None
        joint = any(value.name == SHAPES for value in session.get_inputs())
        shape = np.array([[aspect_ratio]], np.int64)
        given = {PIXELS: pixels[None, None], SHAPES: shape} if joint else {PIXELS: pixels}
        try:
            found = session.run(None, given)
        except Exception as error:
            reason = f"picture of {len(pixels)} tiles: {_first_line(error)}"
            raise LlamacError("LLC0806", self.name, reason, "check the file with `llamac verify`") from error
        return [part[0, :, :tokens] if joint else part[0] for part in found]

    def close(self) -> None:
        """Let go of the sessions."""
        self._session = self._encoder = None


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


def _states(session: Any, plan: RunPlan, where: str) -> tuple[list[str], list[str], list[str]]:
    """The names of past and present, key and value of each layer in order; and those of layers that see pictures.

    LLC0711 for a graph that has them not, or not in fixed sizes.
    """
    own = sorted(layer for cache in plan.memory.caches if not cache.cross for layer in cache.layers)
    seeing = sorted(layer for cache in plan.memory.caches if cache.cross for layer in cache.layers)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    pasts = [f"past_key_values.{layer}.{side}" for layer, side in itertools.product(own, SIDES)]
    presents = [name.replace("past_key_values", "present") for name in pasts]
    cross = [f"cross_attn_key_values.{layer}.{side}" for layer, side in itertools.product(seeing, SIDES)]
    missing = [n for n in (*pasts, *cross, IDS) if n not in inputs]
    missing += [n for n in (*presents, LOGITS) if n not in outputs]
    if missing:
        raise _unfit(where, f"the graph has no {missing[0]}")
    shapes = [inputs[name] for name in (*pasts, *cross)]
    if any(not isinstance(shape[1], int) or not isinstance(shape[3], int) for shape in shapes):
        raise _unfit(where, "the sizes of its keys are not fixed")
    return pasts, presents, cross


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

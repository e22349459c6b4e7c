"""Runs written ONNX models: through onnxruntime, step by step, and through onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .emit import MODEL
from .emitter import IDS, LOGITS, MASK, POSITIONS
from .library import library

Floats = NDArray[np.float32]


class OnnxSession:
    """One sequence through a model of either form, its past kept from step to step.

    exact: products with integer weights keep their activations in f32, whatever the model asks for.
    """

    def __init__(self, folder: Path, exact: bool = False) -> None:
        self._session = open_session(folder, MODEL, exact)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._pasts = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]
        self._names = {i.name for i in self._session.get_inputs()}
        self.restart()

    def restart(self) -> None:
        """Forget the past."""
        shapes = [(1, i.shape[1], 0, i.shape[3]) for i in self._pasts]
        self._state = {i.name: np.zeros(shape, np.float32) for i, shape in zip(self._pasts, shapes, strict=True)}
        self._length = 0

    def step(self, ids: Sequence[int]) -> Floats:
        """The logits after each of `ids`, [len(ids) or 1, vocab]; they come behind what came before."""
        start, self._length = self._length, self._length + len(ids)
        feeds: dict[str, NDArray[Any]] = {
            IDS: np.array([ids], np.int64),
            MASK: np.ones((1, self._length), np.int64),
            POSITIONS: np.arange(start, self._length, dtype=np.int64)[None],
        }
        given = {name: value for name, value in feeds.items() if name in self._names}
        found = dict(zip(self._outputs, self._session.run(None, given | self._state), strict=True))
        self._state = {name: found[name.replace("past_key_values", "present")] for name in self._state}
        return np.asarray(found[LOGITS][0], np.float32)


def open_session(folder: Path, file: str, exact: bool) -> Any:
    """ONNX Runtime's session over one graph of a folder; see `OnnxSession` for `exact`."""
    options = library("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    model: Any = str(folder / file)
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        model = _with_wide_activations(folder / file)
    return library("onnxruntime").InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _with_wide_activations(path: Path) -> bytes:
    """The graph with the accuracy_level that keeps activations in f32."""
    proto = library("onnx").load(str(path), load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    return bytes(proto.SerializeToString())


class GenaiModel:
    """A folder as onnxruntime-genai runs it."""

    def __init__(self, folder: Path) -> None:
        self._genai = library("onnxruntime_genai")
        self._model = self._genai.Model(str(folder))

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` ids that follow the prompt, fewer where a text ends."""
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, top_k=1, max_length=len(prompt) + count, min_length=0)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        found: list[int] = []
        while not generator.is_done() and len(found) < count:
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, as the folder's tokenizer gives them."""
        return [int(i) for i in self._genai.Tokenizer(self._model).encode(text)]

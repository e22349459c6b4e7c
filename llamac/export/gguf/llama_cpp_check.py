"""llama.cpp on an exported file, where `llama-cpp-python` is installed: it loads it, and chooses the same words."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamac.models.checkpoint import Checkpoint
from llamac.runtime.text.tokenizer import load_tokenizer

from ..hf_tokenizer import TEXTS
from ..interpreted_logits import MOST_PARAMETERS, interpreted_logits, prompt_of, relative_rms
from ..request import Check, ExportRequest

if TYPE_CHECKING:
    from types import ModuleType

BOUNDS = {"f32": 0.01, "f16": 0.03, "bf16": 0.03}
"""Type of the weights -> largest part of the logits' spread that may differ: the cache is rounded to f16 always, and
activations are to the weights' 16 bits. Where a weight is in blocks they are rounded to 8 bits: `IN_BLOCKS`."""
IN_BLOCKS = 0.3


def llama_cpp_checks(request: ExportRequest, back: Checkpoint, path: Path) -> Iterator[Check]:
    """Loading, ids of texts, logits; only a note where llama.cpp is not installed."""
    try:
        import llama_cpp
    except ImportError:
        request.note("note", "check", "llama.cpp was not run", "the package llama-cpp-python is not installed")
        return
    with _Loaded(llama_cpp, path) as model:
        version = f"llama.cpp {llama_cpp.__version__}"
        yield Check(f"{version} loads it", bool(model.handle), "it does" if model.handle else "it does not")
        if not model.handle:
            return
        if back.tokenizer is not None:
            yield _ids(request, model, back, version)
        if back.config.parameters <= MOST_PARAMETERS:
            yield _logits(model, back, version)


def _ids(request: ExportRequest, model: _Loaded, back: Checkpoint, version: str) -> Check:
    assert back.tokenizer is not None
    tokenizer = load_tokenizer(back.tokenizer.kind, back.tokenizer.files, back.tokenizer.info)
    texts = [text for text in TEXTS if model.pre != "llama4" or not _has_marks(text)]
    if len(texts) < len(TEXTS):
        reason = f"{version} takes combining marks for symbols there, as Meta's tokenizer does not"
        request.note("note", "check", "texts with combining marks were not compared in llama.cpp", reason)
    odd = [text for text in texts if model.ids(text) != tokenizer.encode(text, add_bos=False)]
    said = f"other ids for {odd[0][:60]!r}" if odd else f"equal on {len(texts)} texts"
    return Check(f"{version}, ids", not odd, said)


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


def _logits(model: _Loaded, back: Checkpoint, version: str) -> Check:
    ids = prompt_of(back)
    found, wanted = model.logits(ids, back.config.vocab_size), interpreted_logits(back, ids)
    bound = max(BOUNDS.get(tensor.encoding, IN_BLOCKS) for tensor in back.tensors.values())
    apart = relative_rms(found, wanted)
    equal = int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
    said = f"apart by {apart:.1e} of their spread, {equal} of {len(ids)} choices equal"
    return Check(f"{version}, logits", apart <= bound, said, f"{bound:g}")


class _Loaded:
    """A file in llama.cpp; `handle` is None where it does not load."""

    def __init__(self, library: ModuleType, path: Path) -> None:
        self._library: Any = library
        self._silence = library.llama_log_callback(lambda level, text, data: None)
        library.llama_log_set(self._silence, None)
        library.llama_backend_init()
        parameters = library.llama_model_default_params()
        self.handle = library.llama_model_load_from_file(str(path).encode(), parameters)

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        if self.handle:
            self._library.llama_model_free(self.handle)

    @property
    def pre(self) -> str:
        """The name of how text is cut into words."""
        room = ctypes.create_string_buffer(64)
        key = b"tokenizer.ggml.pre"
        found = self._library.llama_model_meta_val_str(self.handle, key, room, len(room))
        return str(room.value.decode()) if found > 0 else ""

    def ids(self, text: str) -> list[int]:
        """Ids of ordinary text, without a begin-of-sequence token."""
        library, data = self._library, text.encode()
        vocabulary = library.llama_model_get_vocab(self.handle)
        room = (library.llama_token * (len(data) + 16))()
        count = library.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
        return [int(room[i]) for i in range(count)]

    def logits(self, ids: list[int], vocabulary: int) -> NDArray[np.float32]:
        """Logits after every id, [ids, vocabulary]."""
        library = self._library
        parameters = library.llama_context_default_params()
        parameters.n_ctx = 256
        context = library.llama_init_from_model(self.handle, parameters)
        batch = library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, True
        failed = library.llama_decode(context, batch)
        shape = (len(ids), vocabulary)
        pointer = library.llama_get_logits(context)
        found = np.full(shape, np.nan, np.float32) if failed else np.ctypeslib.as_array(pointer, shape).copy()
        library.llama_batch_free(batch)
        library.llama_free(context)
        return found

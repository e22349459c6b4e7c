"""Pictures in llama.cpp: what its library `mtmd`, which comes with `llama-cpp-python`, makes of one tile."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class NotLoaded(Exception):
    """Why nothing was encoded, in words."""


def llama_cpp_embeddings(
    text: Path, images: Path, samples: NDArray[np.uint8], hidden: int, threads: int = 1
) -> tuple[str, Floats]:
    """The library's name, and the embeddings [tokens, hidden] of a tile of RGB samples [height, width, 3].

    No rows where it fails on the files; `NotLoaded` where it is not installed.
    """
    try:
        import llama_cpp
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise NotLoaded(f"the package llama-cpp-python is not installed, or comes without mtmd: {error}") from error
    name = f"llama.cpp {llama_cpp.__version__}"
    for set_log in (llama_cpp.llama_log_set, mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
        set_log(_silence(llama_cpp), None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(text).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise NotLoaded(f"{name} does not load the text model")
    parameters = mtmd_cpp.mtmd_context_params_default()
    parameters.use_gpu, parameters.print_timings, parameters.n_threads = False, False, threads
    parameters.warmup = False
    context = mtmd_cpp.mtmd_init_from_file(str(images).encode(), model, parameters)
    try:
        found = _encoded(mtmd_cpp, context, samples, hidden) if context else None
        return name, np.zeros((0, hidden), np.float32) if found is None else found
    finally:
        if context:
            mtmd_cpp.mtmd_free(context)
        llama_cpp.llama_model_free(model)


@cache
def _silence(library: Any) -> Any:
    """A log that says nothing; the library calls it as long as it lives."""
    return library.llama_log_callback(lambda level, words, data: None)


def _encoded(library: Any, context: Any, samples: NDArray[np.uint8], hidden: int) -> Floats | None:
    """The embeddings of a picture that is all of a prompt; None where the library fails."""
    height, width, _ = samples.shape
    flat = np.ascontiguousarray(samples).reshape(-1)
    bitmap = library.mtmd_bitmap_init(width, height, flat.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    marker = library.mtmd_default_marker()
    words = library.mtmd_input_text(marker, len(marker), False, True)
    chunks = library.mtmd_input_chunks_init()
    pictures = (library.mtmd_bitmap_p_ctypes * 1)(bitmap)
    try:
        if library.mtmd_tokenize(context, chunks, ctypes.byref(words), pictures, 1) != 0:
            return None
        parts = (library.mtmd_input_chunks_get(chunks, n) for n in range(library.mtmd_input_chunks_size(chunks)))
        kind = library.MTMD_INPUT_CHUNK_TYPE_IMAGE
        chunk = next((part for part in parts if library.mtmd_input_chunk_get_type(part) == kind), None)
        if chunk is None or library.mtmd_encode_chunk(context, chunk) != 0:
            return None
        shape = (library.mtmd_input_chunk_get_n_tokens(chunk), hidden)
        return np.ctypeslib.as_array(library.mtmd_get_output_embd(context), shape).copy()
    finally:
        library.mtmd_input_chunks_free(chunks)
        library.mtmd_bitmap_free(bitmap)

"""Writes a GGUF file in another block type with llama.cpp's own quantizer, in a Python that has `llama_cpp`.

    PYTHON requantize.py SOURCE.gguf TARGET.gguf q4_0|q8_0|bf16

Pure: every matrix in that type, embedding and head in q8_0 (in bf16 for bf16), as in the random files.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llama_cpp

FILE_TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}
Q8_0 = 8
"""Number of the type in GGML."""
_SILENT: Any = llama_cpp.llama_log_callback(lambda level, text, data: None)


def requantize(source: str, target: str, kind: str) -> None:
    """Write `target`."""
    llama_cpp.llama_log_set(_SILENT, None)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[kind]
    parameters.allow_requantize = True
    if kind == "bf16":
        parameters.pure = True
    else:
        parameters.token_embedding_type = parameters.output_tensor_type = Q8_0
        parameters.pure = kind == "q4_0"
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp could not write {target}")


if __name__ == "__main__":
    requantize(*sys.argv[1:4])

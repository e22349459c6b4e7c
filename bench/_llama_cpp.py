"""llama.cpp beside llamac: a process of its own, in an interpreter that has `llama_cpp`."""

from __future__ import annotations

from pathlib import Path

from _peer import Peer

WORKER = Path(__file__).parent / "_llama_cpp_worker.py"


class LlamaCpp(Peer):
    """llama.cpp with one GGUF file, and room for `sequences` sequences of `tokens` tokens."""

    def __init__(self, python: str | Path, path: Path, threads: int, tokens: int, sequences: int = 1) -> None:
        super().__init__("llama.cpp", python, WORKER, path, threads, tokens, sequences)

    def quantize(self, path: Path, output: Path, file_type: int) -> None:
        """Write `path`, a file of floats, as `output` with llama.cpp's own quantizer."""
        self._ask(do="quantize", path=str(path), output=str(output), file_type=file_type)

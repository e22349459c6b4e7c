"""llama.cpp beside llamac: a process of its own, in an interpreter that has `llama_cpp`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "_llama_cpp_worker.py"


class LlamaCpp:
    """llama.cpp in a process of its own, loaded once; a context manager."""

    def __init__(self, python: str, path: Path, threads: int, tokens: int) -> None:
        command = [python, str(WORKER), str(path), str(threads), str(tokens)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = str(self._answer()["version"])

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, prompt: list[int], new_tokens: int) -> tuple[float, float]:
        """Seconds of prefill and of the remaining tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        return found["prefill_seconds"], found["decode_seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

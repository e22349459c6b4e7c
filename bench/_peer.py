"""Another engine in a process of its own, in an interpreter that has it; `_worker.py` is the other side."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Peer:
    """A loaded engine; a context manager. `worker` is the program, `words` its arguments."""

    def __init__(self, name: str, python: str | Path, worker: Path, *words: object) -> None:
        self.name = name
        command = [str(python), str(worker), *map(str, words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = str(self._answer()["version"])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, prompt: list[int], new_tokens: int) -> tuple[float, float]:
        """A fresh sequence, decoded greedily: seconds to the first token, and seconds for all the others."""
        found = self._ask(do="run", prompt=prompt, new=new_tokens)
        return found["first"], found["rest"]

    def greedy(self, prompt: list[int], new_tokens: int) -> list[int]:
        """The ids of a fresh sequence, decoded greedily."""
        return [int(i) for i in self._ask(do="run", prompt=prompt, new=new_tokens)["ids"]]

    def together(self, prompt: list[int], new_tokens: int, sequences: int) -> float:
        """Seconds for `new_tokens` - 1 steps of `sequences` sequences that are decoded together."""
        return float(self._ask(do="together", prompt=prompt, new=new_tokens, sequences=sequences)["rest"])

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """The logits after every id of a fresh sequence, [len(ids), vocab]."""
        with tempfile.TemporaryDirectory(prefix="llamac-logits-") as folder:
            path = Path(folder) / "logits.npy"
            self._ask(do="logits", ids=ids, path=str(path))
            return np.asarray(np.load(path), np.float32)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

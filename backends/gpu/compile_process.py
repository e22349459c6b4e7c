"""Compiles kernels in a process of its own, so that several are compiled at once: the process, and its client.

A pool of `multiprocessing` would import the caller's main module anew, which a script that compiles a model when it is
run would not survive.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from types import TracebackType

from llamac.errors import LlamacError

from .compile import CompiledKernel, compile_request
from .request import KernelRequest


class CompileProcess:
    """The client: a process that is started by the first kernel and ends with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CompileProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def compile(self, request: KernelRequest, target: str) -> CompiledKernel:
        """As `compile_request`, with its errors; LLC0610 too when the process dies."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((request, target), process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            reason = f"the process that compiles it ended (exit status {process.poll()})"
            hint = "is there enough memory? Triton takes about 300 MB for each processor"
            raise LlamacError("LLC0610", f"{request.label} for {target}", reason, hint) from None
        if isinstance(answer, CompiledKernel):
            return answer
        raise LlamacError(*answer)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process


def serve() -> None:
    """Answer requests on stdin, kernels or the parts of an error on stdout, until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get among the answers
    while True:
        try:
            request, target = pickle.load(requests)
        except EOFError:
            return
        answer: CompiledKernel | tuple[str, ...]
        try:
            answer = compile_request(request, target)
        except LlamacError as error:
            answer = (error.code, error.where, error.reason, error.hint)
        pickle.dump(answer, answers)
        answers.flush()
